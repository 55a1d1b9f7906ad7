"""The spectral Stein gradient estimator: the score of a distribution of which there are only samples.

Shi, Sun & Zhu 2018, "A spectral approach to gradient estimation for implicit distributions", eqs. 11 to 14.
"""

import torch
from torch import Tensor

SMALLEST = 1e-3  # of the largest eigenvalue; below it 1 / lambda only amplifies rounding errors


def score(
    samples: Tensor, at: Tensor, width: float | None = None, ratio: float = 0.95, eigenvalues: int | None = None
) -> Tensor:
    """Estimate of grad_x ln q(x), from samples of q.

    With k(x, y) = exp(-|x - y|^2 / 2 w^2), K u_j = lambda_j u_j (largest first):
        psi_j(x) = sqrt(M) / lambda_j sum_m u_jm k(x, x_m)
        b_j = -1/M sum_m grad psi_j(x_m),    score(x) = sum_{j <= J} b_j psi_j(x)

    Computed in float64 and without a tensor of M x M x D: grad psi_j(x_n) = sum_m c_jm k(x_n, x_m) (x_m - x_n) / w^2.
    Far from all samples the estimate is 0, whatever q is there.

    Args:
        samples: (M, D).
        at: (N, D) where to estimate.
        width: w of the kernel; None for the median of the M^2 distances between samples, those of 0 included.
        ratio: J is the smallest number of eigenvalues that sum up to this share of all; with 1 all of them. Never more
            than are above a thousandth of the largest.
        eigenvalues: J itself, or None.

    Returns:
        (N, D) in the dtype of `at`; detached.
    """
    x, y = samples.detach().double(), at.detach().double()
    n = len(x)
    apart = _squared_distances(x, x)
    scale = apart.sqrt().median().square() if width is None else x.new_tensor(width**2)
    scale = scale.clamp(min=1e-30)
    K = torch.exp(-apart / (2 * scale))
    values, vectors = torch.linalg.eigh(K)
    values, vectors = values.flip(0), vectors.flip(1)  # (M,), columns u_j
    rank = torch.arange(n, device=x.device)
    if eigenvalues is not None:
        kept = rank < eigenvalues
    else:
        positive = values.clamp(min=0)
        kept = (positive.cumsum(0) - positive < ratio * positive.sum()) | (rank < n * (ratio >= 1))
    kept = kept & (values > SMALLEST * values[0])
    # psi_j at a set of points = k(points, x) @ weights[:, j]
    weights = torch.where(kept, n**0.5 / torch.where(kept, values, 1.0), 0.0) * vectors
    # sum_n grad psi_j(x_n) = sum_m w_mj sum_n K_nm (x_m - x_n) / w^2
    flow = (K.sum(0).unsqueeze(1) * x - K.T @ x) / scale  # (M, D), of every m
    b = -(weights.T @ flow) / n  # (M, D), row j
    psi = torch.exp(-_squared_distances(y, x) / (2 * scale)) @ weights
    return (psi @ b).to(at.dtype)


def surrogate(samples: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to what made the samples (S, D) is that of a mean over them whose own
    gradient is `gradient` (S, D): mean_n <gradient_n, x_n>.
    """
    return (gradient.detach() * samples).sum(1).mean()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1).unsqueeze(1) - 2 * a @ b.T + b.square().sum(1)).clamp(min=0)
