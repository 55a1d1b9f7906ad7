"""What DYNAMOS computes from the actions of its gates: reward, losses, overlap, multiply-accumulates. Pure functions.

A batch has N images and A gates, the same number for each of G agents; `actions` (N, A) are 1 (kept) and 0 (dropped).

Reference: Varma, Arani, Zonooz 2023, "Dynamically Modular and Sparse General Continual Learning".
"""

import torch
from torch import Tensor


def kept_fractions(actions: Tensor, n_agents: int) -> Tensor:
    """Share of its channels that each agent keeps, (N, G)."""
    return actions.view(len(actions), n_agents, -1).mean(2)


def reward(kept: Tensor, correct: Tensor, keep_ratio: float, penalty: float) -> Tensor:
    """R = -(keep_ratio - kept)^2, times `penalty` where the answer was wrong; at most 0, (N, G).

    The label enters as that factor alone: an agent that keeps exactly `keep_ratio` gets 0 for any answer.

    Args:
        kept: (N, G).
        correct: (N,) bool.
    """
    factor = torch.where(correct, 1.0, penalty).unsqueeze(1)
    return -(keep_ratio - kept).square() * factor


def policy_loss(logp: Tensor, rewards: Tensor) -> Tensor:
    """REINFORCE without a baseline: mean over images and agents of -log p(actions) R.

    Since log p and R are at most 0 the loss is too, and has no lower bound: it says nothing about progress. Its
    gradient at the logit of a gate is -R (a - p) / (N G).
    """
    return -(logp * rewards).mean()


def prototype_loss(v: Tensor, labels: Tensor, correct: Tensor) -> Tensor:
    """P = (1 + S_same / A) / (1 + S_diff / A), S the sum of ||v_i - v_j||^2 over pairs i < j of correctly classified
    images with equal labels, and with different ones; 0 where fewer than three are correct.

    Args:
        v: (N, A).
        labels: (N,).
        correct: (N,) bool.
    """
    weight = correct.to(v.dtype)
    pairs = weight.unsqueeze(1) * weight
    same = pairs * (labels.unsqueeze(1) == labels)
    # sum over i < j of M_ij ||v_i - v_j||^2 = sum of (diag(M 1) - M) * (v v^T), for a symmetric M
    graphs = torch.stack((same, pairs - same))
    laplacians = graphs.sum(2).diag_embed() - graphs
    same_spread, other_spread = (1 + (laplacians * (v @ v.t())).sum((1, 2)) / v.shape[1]).unbind()
    return torch.where(weight.sum() > 2, same_spread / other_spread, 0.0)


def soft_jaccard(a: Tensor, b: Tensor) -> Tensor:
    """sum min(a, b) / sum max(a, b) over the last dimension, 1 where both are 0; for masks the Jaccard index."""
    union = torch.maximum(a, b).sum(-1)
    return torch.where(union > 0, torch.minimum(a, b).sum(-1) / union.clamp(min=1e-12), 1.0)


def dense_macs(nf: int, size: tuple[int, int], num_classes: int) -> int:
    """Multiply-accumulates of the plain network per image of height and width `size`; BatchNorm and sums left out."""
    fixed, gated = _macs(nf, size, num_classes)
    return fixed + sum(gated.values())


def agent_macs(nf: int, hidden_dim_ratio: int = 16) -> int:
    """Multiply-accumulates of the four agents per image of any size, pooled before their 1x1 convolution."""
    channels = 2 * nf
    return nf * channels + 3 * channels**2 + 4 * 2 * channels * max(1, channels // hidden_dim_ratio)


def kept_macs(kept: Tensor, nf: int, size: tuple[int, int], num_classes: int) -> Tensor:
    """Multiply-accumulates per image of the gated network where dropped channels cost nothing, the agents' own left
    out.

    A convolution costs in proportion to the channels it reads times those it writes; the first stage is never gated.

    Args:
        kept: (..., 4) fractions of the four agents.
    """
    fixed, gated = _macs(nf, size, num_classes)
    k1, k2, k3, k4 = kept.unbind(-1)
    share = {"conv1": k1, "conv2": k1 * k2, "shortcut": k2, "conv3": k2 * k3, "conv4": k3 * k4, "linear": k4}
    return fixed + sum(share[name] * cost for name, cost in gated.items())


def _macs(nf: int, size: tuple[int, int], num_classes: int) -> tuple[int, dict[str, int]]:
    """Cost of stem and first stage, and of every layer of the second."""
    height, width = size
    first, second, channels = height * width, -(-height // 2) * -(-width // 2), 2 * nf
    square = 9 * channels * channels * second
    gated = {
        "conv1": 9 * nf * channels * second, "conv2": square, "shortcut": nf * channels * second,
        "conv3": square, "conv4": square, "linear": channels * num_classes,
    }  # fmt: skip
    return (9 * 3 * nf + 4 * 9 * nf * nf) * first, gated
