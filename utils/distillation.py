"""Knowledge distillation between softened class distributions."""

import math

import torch
from torch import Tensor

FLOOR = math.log(1e-10)


def kd(student: Tensor, teacher: Tensor, temperature: float, direction: str = "student") -> Tensor:
    """tau^2 * sum_c p_c log(p_c / q_c) per row, with p, q = softmax(. / tau), both clamped at 1e-10.

    Args:
        student, teacher: logits (..., C).
        temperature: tau > 0.
        direction: 'student' for KL(student || teacher), the released code of prototype-augmented hypernetworks;
            'teacher' for KL(teacher || student), Hinton et al. 2015 and Li & Hoiem 2017.

    Returns:
        (...,) one divergence per row.
    """
    log_s = torch.log_softmax(student / temperature, dim=-1).clamp(min=FLOOR)
    log_t = torch.log_softmax(teacher / temperature, dim=-1).clamp(min=FLOOR)
    log_p, log_q = (log_s, log_t) if direction == "student" else (log_t, log_s)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
