"""One-dimensional regression: every task is a polynomial on an interval of its own (no download).

    --poly_set 3 (default):  (x + 3)^3 on [-4, -2],   2 x^2 - 1 on [-1, 1],   -(x - 3)^3 on [2, 4]
    --poly_set 1:            x + 3 on [-4, -2],       2 x^2 - 1 on [-1, 1],   (x - 3)^3 on [2, 4]
    --poly_set 0:            x^3 on [-4, 4], a single task

Training: 20 points, x uniform on the interval, y with noise of standard deviation 0.05 (set 0: 3). Each task draws all
its x and then all its noise from a numpy RandomState(42) of its own, whatever the seed of the run: the same 20 relative
places and noises in every task, as that seed per task implies. Test: 50 equidistant points of the interval, no noise.

Reference: the low-dimensional problem of Henning et al. 2021, "Posterior Meta-Replay for Continual Learning", after
von Oswald et al. 2020, "Continual learning with hypernetworks".
"""

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.vectors import RegressionStream

SETS = {
    0: [((-4.0, 4.0), lambda x: x**3)],
    1: [((-4.0, -2.0), lambda x: x + 3), ((-1.0, 1.0), lambda x: 2 * x**2 - 1), ((2.0, 4.0), lambda x: (x - 3) ** 3)],
    3: [
        ((-4.0, -2.0), lambda x: (x + 3) ** 3),
        ((-1.0, 1.0), lambda x: 2 * x**2 - 1),
        ((2.0, 4.0), lambda x: -((x - 3) ** 3)),
    ],
}
N_TRAIN, N_TEST, N_PLOT = 20, 50, 200


class SequentialPoly1D(RegressionStream):
    """Three polynomials, or one.

    Attributes:
        SIGMA: standard deviation of the noise, and of the likelihood that goes with it.
    """

    NAME = "seq-poly1d"
    N_TASKS = 3
    N_CLASSES_PER_TASK = N_CLASSES = 1
    SIZE = (1,)
    SIGMA = 0.05
    DEFAULTS = {
        "backbone": "mnistmlp", "mlp_hidden_size": 10, "mlp_hidden_layers": 2, "optimizer": "adam", "lr": 0.001,
        "fitting_mode": "iters", "n_iters": 2000, "n_epochs": 2000, "batch_size": 20, "num_threads": 1,
    }  # fmt: skip

    @staticmethod
    def get_parser(parser):
        parser.add_argument(
            "--poly_set", type=int, choices=sorted(SETS), default=3, help="polynomials: two of three tasks, 0 of one"
        )
        return parser

    def __init__(self, args, device="cpu"):
        self._set = SETS[args.poly_set]
        self.N_TASKS, self.SIGMA = len(self._set), 3.0 if args.poly_set == 0 else self.SIGMA
        super().__init__(args, device)

    def domain(self, task: int) -> tuple[float, float]:
        """Ends of a task's interval."""
        return self._set[self._order[task]][0]

    def target(self, task: int, x: Tensor) -> Tensor:
        """The polynomial of a task, without noise; any x, same shape."""
        return self._set[self._order[task]][1](x)

    def plot_inputs(self) -> Tensor:
        """(200, 1) equidistant points on [-4.1, 4.1]: all intervals, the gaps between them, and a little beyond."""
        return torch.linspace(-4.1, 4.1, N_PLOT).unsqueeze(1)

    def _splits(self, domain):
        (low, high), polynomial = self._set[domain]
        rng = np.random.RandomState(42)  # noqa: NPY002 - the published stream's generator
        x = rng.uniform(low, high, (N_TRAIN, 1))
        y = polynomial(x) + rng.normal(0, self.SIGMA, (N_TRAIN, 1))
        grid = np.linspace(low, high, N_TEST)[:, None]
        train, test = (x, y), (grid, polynomial(grid))
        return tuple(Split(*(torch.from_numpy(part).float() for part in split)) for split in (train, test))
