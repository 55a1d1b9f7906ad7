"""FeCAM: the nearest class mean by a Mahalanobis distance of each class's own.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
then     t = phi(x)^l,  l = `--tukey`;  mu_c, S_c = mean and covariance of t over class c
         S'_c = S_c + a V1 I + b V2 (1 - I),  V1, V2 = mean of S_c on and off the diagonal,  a, b = `--shrink`
         N_c = S'_c with entry ij divided by the square roots of entries ii and jj
scores   -(t - mu_c)^T N_c^-1 (t - mu_c)

Tukey's power needs features that are not negative, as after a ReLU; one below 0 in a test counts as 0. Sums per class
do not depend on the order of classes and tasks by a bit; they take 8 d^2 bytes a class.

Deviations: released code also scales t and mu_c to length 1 before the distance.

Reference: Goswami et al. 2023, "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual
Learning", equations 4 to 9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.models.utils.closed_form import ClosedForm, Gram
from palimpsest.utils.args import non_negative_float, positive_float
from palimpsest.utils.errors import UserError


class FeCAM(ClosedForm):
    NAME = "fecam"
    LEAST_PER_CLASS = 2

    @staticmethod
    def get_parser(parser):
        ClosedForm.get_parser(parser)
        add = parser.add_argument
        add("--tukey", type=positive_float, default=0.5, help="power l of the features; 1 leaves them as they are")
        what = "added to variances and to covariances, in units of their means"
        add("--shrink", type=non_negative_float, nargs=2, default=[1.0, 1.0], metavar=("A", "B"), help=what)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sums = nn.ModuleDict()  # class -> sum of [t, 1] [t, 1]^T: moments and count
        self.register_buffer("means", None)  # (k, d)
        self.register_buffer("precisions", None)  # N^-1 (k, d, d)

    def transform_features(self, h):
        """Tukey's power."""
        return h if self.args.tukey == 1 else h.clamp(min=0) ** self.args.tukey

    def learn(self, data):
        for c in data.classes:
            if str(c) not in self.sums:
                self.sums[str(c)] = Gram(self.net.feature_dim + 1, self.device)
            self.sums[str(c)].add(self.moments(data, c))
        found = [moments_of(self.sums[str(c)].value()) for c in self.classes.tolist()]
        self.means = torch.stack([mean for mean, _ in found])
        shrunk = [normalise_covariance(covariance, *self.args.shrink) for _, covariance in found]
        self.precisions = torch.stack([torch.linalg.inv(matrix) for matrix in shrunk])

    def moments(self, data, c):
        """[t, 1] of the examples of a class."""
        for h, _ in data.of(c):
            if self.args.tukey != 1 and bool((h < 0).any()):
                raise UserError("some features are negative, which have no power --tukey: give --tukey 1")
            yield F.pad(self.transform_features(h), (0, 1), value=1.0)

    def scores(self, h):
        t, scores = self.transform_features(h), []
        for mean, precision in zip(self.means, self.precisions, strict=True):
            scores.append(-((t - mean) @ precision * (t - mean)).sum(1))
        return torch.stack(scores, 1)


def moments_of(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), divided by n - 1, from sum [t, 1] [t, 1]^T."""
    n = gram[-1, -1]
    mean = gram[:-1, -1] / n
    return mean, (gram[:-1, :-1] - n * mean.outer(mean)) / (n - 1)


def normalise_covariance(covariance: Tensor, a: float = 1.0, b: float = 1.0) -> Tensor:
    """Shrink a covariance (d, d) and scale it to a correlation.

    Raises:
        UserError: the result cannot be inverted.
    """
    d = len(covariance)
    variance = covariance.diagonal().mean()
    off = (covariance.sum() - covariance.diagonal().sum()) / max(d * (d - 1), 1)
    identity = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    shrunk = covariance + a * variance * identity + b * off * (1 - identity)
    scale = shrunk.diagonal().sqrt()
    correlation = shrunk / scale.outer(scale)
    if bool(torch.linalg.cholesky_ex(correlation)[1]) or not bool(correlation.isfinite().all()):
        raise UserError(f"a class's covariance cannot be inverted with --shrink {a:g} {b:g}: raise the first number")
    return correlation
