"""DS-AL: dual-stream analytic learning, a second head that fits what the first one leaves.

task 0   CE(f(x), y): base training of the network, none with `--no_base_training`
main     h = relu(phi(x) B),  W = (G + g I)^-1 Q,  G = sum h h^T, Q = sum h y^T,  g = `--ridge`
second   r = y - h W  at the end of the example's task, 0 for classes that the task does not have
         k = tanh(phi(x) B),  V = (K + g' I)^-1 P,  K = sum k k^T, P = sum k r^T,  g' = `--second_ridge`
scores   h W + `--compensation` k V

B (d, D) is from N(0, 1 / d) and fixed, D = `--n_features`. The residuals of a task are found in a second pass through
it, and stay as they were: V depends on the order of tasks, W does not by a bit.

Deviations: heads come from sums, not from the published recursion, which gives the same; residuals are those after the
whole task, in the released code those after each batch.

Reference: Zhuang et al. 2024, "DS-AL: A Dual-Stream Analytic Learning for Exemplar-Free Class-Incremental Learning",
section 3.
"""

import torch

from palimpsest.models.utils.closed_form import LeastSquares, RandomExpansion, solvable
from palimpsest.utils.args import non_negative_float, positive_float


class DSAL(RandomExpansion):
    NAME = "ds_al"

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        add = parser.add_argument
        add("--second_ridge", type=positive_float, default=0.1, help="weight of ||V||^2 in the second stream")
        add("--compensation", type=non_negative_float, default=1.0, help="weight of the second stream's scores")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.second: LeastSquares | None = None
        self.register_buffer("second_weights", None)

    def learn(self, data):
        super().learn(data)
        self.second = self.second or self.empty_sums(data)
        own = torch.zeros_like(self.weights[0])
        own[data.classes] = 1
        for c in data.classes:
            self.second.add((self.expand_second(h), (y - self.expand(h) @ self.weights) * own) for h, y in data.of(c))
        ridge = self.args.second_ridge
        self.second_weights = solvable(self.second.solve(ridge), ridge)

    def expand_second(self, h):
        """tanh(phi B) of features (B, d)."""
        return torch.tanh(h @ self.projection)

    def scores(self, h):
        second = self.expand_second(h) @ self.second_weights[:, self.classes]
        return super().scores(h) + self.args.compensation * second
