"""Which task an input belongs to, told from how certain the posterior of each task is about it.

For head j with S samples of its class probabilities p_js: mean prediction p_j = mean_s p_js. All values are computed
from logarithms in float64: in float32 the largest probability is exactly 1 for logits 17 apart, and heads tie.
"""

import math

import torch
from torch import Tensor

CRITERIA = ("ent", "conf", "agree")


def mean_log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """ln p_j (B, C) and ln p_js (S, B, C) of logits (S, B, C), float64."""
    each = torch.log_softmax(logits.double(), -1)
    return torch.logsumexp(each, 0) - math.log(len(each)), each


def uncertainties(mean: Tensor, each: Tensor) -> dict[str, Tensor]:
    """How uncertain a head is about each input (B,), by criterion; the head of the smallest value is chosen.

    ent: entropy of the mean prediction over ln C, in [0, 1]. conf: ln(1 - max_c p_j(c)), which orders as minus the
    confidence max_c p_j(c) does. agree: mean over classes of the standard deviation over samples (biased); nan for a
    single sample, which cannot disagree with itself.

    Args:
        mean: (B, C) ln p_j.
        each: (S, B, C) ln p_js.
    """
    n_classes = mean.shape[-1]
    p = mean.exp()
    entropy = -torch.where(p == 0, 0.0, p * mean).sum(-1) / math.log(max(n_classes, 2))
    best = mean.argmax(-1, keepdim=True)
    rest = torch.logsumexp(mean.scatter(-1, best, -torch.inf), -1)
    agree = each.exp().std(0, correction=0).mean(-1) if len(each) > 1 else torch.full_like(entropy, torch.nan)
    return {"ent": entropy, "conf": rest, "agree": agree}
