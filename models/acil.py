"""ACIL: analytic class-incremental learning, ridge regression on a random expansion of a frozen network's features.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
then     h = relu(phi(x) B),  B (d, D) from N(0, 1 / d) and fixed,  D = `--n_features`
         W = (G + g I)^-1 Q,  G = sum h h^T, Q = sum h y^T over all examples so far,  g = `--ridge`
scores   h W

`--recursive` computes the same W as published, from R = (G + g I)^-1 without G and Q:
         R_k = R_{k-1} - R_{k-1} H^T (I + H R_{k-1} H^T)^-1 H R_{k-1},  R_0 = I / g
         W_k = W_{k-1} - R_k H^T H W_{k-1} + R_k H^T Y
Both agree within rounding; the sums do not depend on the order of classes and tasks by a bit, the recursion does.

Deviations: published with D = 8192 and a network trained on half of the classes.

Reference: Zhuang et al. 2022, "ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy
Protection", theorem 1.
"""

import torch

from palimpsest.models.utils.closed_form import RandomExpansion, update_recursively
from palimpsest.utils.args import add_bool


class ACIL(RandomExpansion):
    NAME = "acil"

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        add_bool(parser, "--recursive", help="the published recursion in place of sums; slower, same head")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("inverse", None)  # R (D, D)

    def learn(self, data):
        if not self.args.recursive:
            return super().learn(data)
        if self.inverse is None:
            d, like = self.args.n_features, self.projection
            self.inverse = torch.eye(d, dtype=like.dtype, device=like.device) / self.args.ridge
            self.weights = torch.zeros(d, self.net.num_classes, dtype=like.dtype, device=like.device)
        for c in data.classes:
            for h, y in data.of(c):
                self.inverse, self.weights = update_recursively(self.inverse, self.weights, self.expand(h), y)
