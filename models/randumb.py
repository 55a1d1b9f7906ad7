"""RanDumb, the control that learns no representation: random Fourier features of raw pixels and ridge regression.

z = sqrt(2 / D) cos(x w + b),  x pixels in [0, 1], w (d, D) from N(0, 2 gamma), b uniform in [0, 2 pi]
W = (G + g I)^-1 Q,  G = sum z z^T, Q = sum z y^T over all examples so far, y one-hot
scores  z W

z z'^T approximates the kernel exp(-gamma ||x - x'||^2). D = `--n_features`, g = `--ridge`. Every example is read once,
when its task ends; there is no buffer, no gradient step and no network: `--backbone`, `--lr` and the like have no
effect.

gamma is `--gamma`, or chosen when the first task ends, from its training examples alone: of 1/4, 1/2, 1, 2, 4 times
1 / (d var x) that with the smallest squared error on every fifth example of a class, with up to 500 features and the
others to fit. With `--gamma` G and Q do not depend on the order of classes and tasks by a bit.

Deviations: ridge regression in place of the paper's class means with a Mahalanobis distance; the paper has D = 25,000.

Reference: Prabhu et al. 2024, "RanDumb: Random Representations Outperform Online Continually Learned Representations",
section 3; Rahimi & Recht 2007.
"""

import math

import torch

from palimpsest.models.utils.closed_form import RidgeHead, add_n_features, solvable, solve_ridge
from palimpsest.utils.args import positive_float
from palimpsest.utils.errors import UserError

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of 1 / (d var x)
TRIED = 500  # features
PARTS = 5  # one of so many examples is held out


class RanDumb(RidgeHead):
    NAME = "randumb"
    DEFAULTS = {"n_epochs": 1}
    UNUSED = ("multi_head",)
    ALONE = "never"
    NETWORK = False

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        add_n_features(parser)
        what = "of the kernel exp(-gamma ||x - x'||^2) on pixels in [0, 1] (default: chosen on the first task)"
        parser.add_argument("--gamma", type=positive_float, help=what)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if dataset.INPUT == "tokens":
            raise UserError("randumb is for images and vectors: the stream holds tokens")
        d = math.prod(dataset.SIZE)
        self.register_buffer("directions", torch.randn(d, args.n_features).to(self.device))  # N(0, 1)
        self.register_buffer("phases", (2 * math.pi * torch.rand(args.n_features)).to(self.device))
        self.gamma = args.gamma

    def embed(self, x):
        return self.fourier(self.pixels(x), self.gamma)

    def pixels(self, x):
        """Network inputs as they were before normalisation, flattened: (B, d)."""
        return self.dataset.get_denormalization_transform()(x).flatten(1)

    def fourier(self, x, gamma, features=None):
        """z (B, D) of pixels (B, d), of the first so many features scaled as if there were no others."""
        directions, phases = self.directions[:, :features], self.phases[:features]
        z = torch.cos(x @ directions * math.sqrt(2 * gamma) + phases)
        return z * math.sqrt(2 / len(phases))

    def learn(self, data):
        if self.gamma is None:
            self.gamma = self.choose_gamma(data)
        super().learn(data)

    def choose_gamma(self, data):
        """The kernel's gamma, from a task's training examples."""
        parts = [torch.cat([self.pixels(inputs) for inputs in data.inputs(c)]) for c in data.classes]
        x, sizes = torch.cat(parts), [len(part) for part in parts]
        y = torch.block_diag(*(torch.ones(n, 1, dtype=torch.float64, device=x.device) for n in sizes))  # one-hot
        held = torch.cat([torch.arange(n, device=x.device) % PARTS == PARTS - 1 for n in sizes])
        variance = float(x.double().var())
        if not variance > 0:
            raise UserError("all pixels of the first task are the same: give --gamma")
        errors = {}
        for gamma in [factor / (x.shape[1] * variance) for factor in FACTORS]:
            z = self.fourier(x, gamma, TRIED).double()
            ridge = self.args.ridge
            weights = solvable(solve_ridge(z[~held].T @ z[~held], z[~held].T @ y[~held], ridge), ridge)
            errors[gamma] = float((z[held] @ weights - y[held]).square().sum())
        return min(errors, key=errors.get)

    def report(self, dataset, tasks):
        report = super().report(dataset, tasks)
        if self.gamma:
            report.numbers["gamma"] = self.gamma
        return report
