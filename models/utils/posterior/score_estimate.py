"""What methods share that estimate the score of an implicit posterior by SSGE."""

import warnings

import torch
from torch import Tensor

from models.utils.posterior import ssge
from utils.args import fraction, number, positive_float, positive_int

SSGE_WAITS = "the eigenvalues of the kernel matrix are computed by a solver that waits"


def add_ssge_args(parser):
    """Options of the estimator."""
    add = parser.add_argument
    add("--num_ssge_samples", type=number(int, 2), default=50, help="samples from which a score is estimated")
    add("--rbf_kernel_width", type=positive_float, default=None, help="width of the kernel; by default the median")
    add("--thr_ssge_eigenvals", type=fraction, default=0.95, help="share of the kernel's spectrum that is used")
    add("--num_ssge_eigenvals", type=positive_int, default=None, help="eigenvalues used, instead of a share")
    return parser


class ScoreEstimate:
    """Adds `estimated_score` to a method, and a warning where the estimate vanished.

    With a fixed kernel much narrower than the distances between samples the estimated score is 0 everywhere, and the
    method is maximum a posteriori with a noisy network.
    """

    NO_TERMS = ("score",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("score_size", torch.ones((), device=self.device))

    def estimated_score(self, weights: Tensor, extra: Tensor) -> Tensor:
        """grad ln q (S, P) at weights (S, P), from these and `extra` samples (M - S, P) of q."""
        n = max(self.args.num_ssge_samples, 2)
        score = self.score_at(weights, torch.cat([weights, extra])[:n])
        with torch.no_grad():
            self.score_size.copy_(score.norm(dim=1).mean())
        return score

    def score_at(self, weights: Tensor, samples: Tensor) -> Tensor:
        """grad ln of the density of `samples` (M, P) at weights (S, P)."""
        args = self.args
        return ssge.score(samples, weights, args.rbf_kernel_width, args.thr_ssge_eigenvals, args.num_ssge_eigenvals)

    def end_task(self, dataset):
        super().end_task(dataset)
        if self.score_size.item() == 0:
            warnings.warn(
                f"{self.NAME}: the estimated score is 0, the kernel is too narrow for {self.net.size} weights: "
                "drop --rbf_kernel_width",
                stacklevel=1,
            )
