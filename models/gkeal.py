"""GKEAL: Gaussian kernel embedded analytic learning, ridge regression on kernels around random centres.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
then     h_j = exp(-||phi(x) - m_j||^2 / (2 s^2)),  j = 1..D,  D = `--n_features`, s = `--kernel_width`
         W = (G + g I)^-1 Q,  G = sum h h^T, Q = sum h y^T over all examples so far,  g = `--ridge`
scores   h W

The centres m_j are features of random examples of the first task: features, not images, of at most D examples. By
default s is their median distance. With given centres the sums do not depend on the order of tasks by a bit.

Deviations: published for few-shot streams with augmented images and a constant s, 5 to 15 for networks on CIFAR-100.

Reference: Zhuang et al. 2023, "GKEAL: Gaussian Kernel Embedded Analytic Learning for Few-Shot Class Incremental Task",
section 3.
"""

import torch

from palimpsest.models.utils.closed_form import RidgeHead, add_n_features
from palimpsest.utils.args import positive_float
from palimpsest.utils.errors import UserError


class GKEAL(RidgeHead):
    NAME = "gkeal"
    RIDGE = 1e-3

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        add_n_features(parser)
        what = "width s of the kernels, in units of the features (default: the median distance between centres)"
        parser.add_argument("--kernel_width", type=positive_float, help=what)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("centres", None)  # (D, d)
        self.width = args.kernel_width

    def learn(self, data):
        if self.centres is None:
            h = torch.cat([h for c in data.classes for h, _ in data.of(c)])
            self.centres = h[torch.randperm(len(h))[: self.args.n_features].to(h.device)]
            self.width = self.width or float(torch.pdist(self.centres).median())
            if not self.width > 0:
                raise UserError("more than half of the centres are the same point: give --kernel_width")
        super().learn(data)

    def expand(self, h):
        return (torch.cdist(h, self.centres).square() / (-2 * self.width**2)).exp()
