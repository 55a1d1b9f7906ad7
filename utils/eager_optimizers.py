"""SGD, Adam and AdamW of torch.optim without their calls to the compiler of torch.

torch.optim tells the compiler at each step and at each `zero_grad` where it must not look. The first of these calls
imports it, about 1.2 s of CPU time, the others take some 10 microseconds a step. Nothing here compiles an optimiser;
the arithmetic is that of torch.optim, bit for bit, and every other attribute, too.
"""

import inspect
from collections.abc import Callable
from functools import wraps

import torch
from torch.optim import Optimizer


def _eager(step: Callable) -> Callable:
    """A step as its author wrote it; gradients are recorded in it only with `differentiable`, as torch.optim does."""
    written = inspect.unwrap(step)

    @wraps(written)
    def eager(self, closure=None):
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return written(self, closure)

    return eager


class Eager:
    """The part that all optimisers share; it stands before the class of torch.optim."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class SGD(Eager, torch.optim.SGD):
    """`torch.optim.SGD`."""

    step = _eager(torch.optim.SGD.step)


class Adam(Eager, torch.optim.Adam):
    """`torch.optim.Adam`."""

    step = _eager(torch.optim.Adam.step)


class AdamW(Eager, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = _eager(torch.optim.AdamW.step)
