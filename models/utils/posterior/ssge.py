"""The spectral Stein gradient estimator: the score of a distribution of which there are only samples, and the loss of
the methods whose implicit posteriors enter by it.

Shi, Sun & Zhu 2018, "A spectral approach to gradient estimation for implicit distributions", eqs. 11 to 14.
"""

import warnings

import torch
from torch import Tensor

from palimpsest.utils.args import fraction, number, positive_float, positive_int

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
    scale = apart.sqrt().median().square() if width is None else x.new_full((), width**2)
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


def add_ssge_args(parser):
    """Options of the estimator."""
    add = parser.add_argument
    add("--num_ssge_samples", type=number(int, 2), default=50, help="samples from which a score is estimated")
    add("--rbf_kernel_width", type=positive_float, default=None, help="width of the kernel; by default the median")
    add("--thr_ssge_eigenvals", type=fraction, default=0.95, help="share of the kernel's spectrum that is used")
    add("--num_ssge_eigenvals", type=positive_int, default=None, help="eigenvalues used, instead of a share")
    return parser


class ScoreEstimate:
    """Adds the loss by an estimated score to a method with a `generator`, and a warning where the estimate vanished.

    With a fixed kernel much narrower than the distances between samples the estimated score is 0 everywhere, and the
    method is maximum a posteriori with a noisy network.
    """

    NO_TERMS = ("score",)
    WAITS = "the eigenvalues of the kernel matrix are computed by a solver that waits"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("score_size", torch.ones((), device=self.device))

    def terms(self, phi: Tensor, inputs: Tensor, labels: Tensor, prior_phi: Tensor | None = None) -> dict[str, Tensor]:
        """N E_q[CE] + kappa (E_q ln q(W) - E_q ln p(W)) of the posterior phi (n,), 'score' being no term of it.

        Args:
            prior_phi: (n,) what generates samples of p; None where p = N(0, sigma_p^2 I).
        """
        args, draw = self.args, self.generator.draw
        weights = draw(phi, args.train_sample_size)
        extra = draw(phi.detach(), max(0, args.num_ssge_samples - len(weights)))
        score = self.score_at(weights, torch.cat([weights, extra])[: args.num_ssge_samples])
        size = score.norm(dim=1).mean()
        self.score_size.copy_(size)
        if prior_phi is None:
            prior = draw(phi, args.num_kl_samples).square().sum(1).mean() / (2 * args.prior_variance)
        else:
            prior = -surrogate(weights, self.score_at(weights, draw(prior_phi, args.num_ssge_samples)))
        return {
            "nll": self.nll(self.outputs(weights, inputs), labels),
            "prior": args.kl_scale * prior,
            "entropy": args.kl_scale * surrogate(weights, score),
            "score": size,
        }

    def score_at(self, weights: Tensor, samples: Tensor) -> Tensor:
        """grad ln of the density of `samples` (M, P) at weights (S, P)."""
        args = self.args
        return score(samples, weights, args.rbf_kernel_width, args.thr_ssge_eigenvals, args.num_ssge_eigenvals)

    def end_task(self, dataset):
        super().end_task(dataset)
        if self.score_size.item() == 0:
            warnings.warn(
                f"{self.NAME}: the estimated score is 0, the kernel is too narrow for {self.net.size} weights: "
                "drop --rbf_kernel_width",
                stacklevel=1,
            )
