"""Six Gaussian modes on a circle in the plane, 3 tasks of 2 classes, one mode each (no download).

    mode k: mean (5 sin a_k, 5 cos a_k), a_k = (k + 1/2) 2 pi / 6, covariance 0.2^2 I;  task t: modes 2t and 2t + 1

10 training and 100 test points per mode. Mode k draws its training points and then its test points as mean + 0.2 z, z
standard normal, from a numpy RandomState(42 + k), whatever the seed of the run.

Reference: the two-dimensional classification problem of Henning et al. 2021, "Posterior Meta-Replay for Continual
Learning".
"""

import math

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.vectors import VectorStream

RADIUS, DEVIATION, N_MODES = 5.0, 0.2, 6
N_TRAIN, N_TEST = 10, 100
REACH = 8.0


class SequentialGMM2D(VectorStream):
    NAME = "seq-gmm2d"
    SETTING = "class-il"
    N_TASKS = 3
    N_CLASSES = N_MODES
    SIZE = (2,)
    DEFAULTS = {
        "backbone": "mnistmlp", "mlp_hidden_size": 10, "mlp_hidden_layers": 2, "optimizer": "adam", "lr": 0.001,
        "fitting_mode": "iters", "n_iters": 2000, "n_epochs": 2000, "batch_size": 20, "num_threads": 1,
    }  # fmt: skip

    @staticmethod
    def centre(mode: int) -> tuple[float, float]:
        """Mean of a mode."""
        angle = (mode + 0.5) * 2 * math.pi / N_MODES
        return RADIUS * math.sin(angle), RADIUS * math.cos(angle)

    def plot_grid(self, n: int) -> Tensor:
        """(n * n, 2) points over [-8, 8]^2, row by row from the bottom: point i * n + j is (g_j, g_i)."""
        g = torch.linspace(-REACH, REACH, n)
        y, x = torch.meshgrid(g, g, indexing="ij")
        return torch.stack((x.flatten(), y.flatten()), 1)

    def _splits(self, domain):
        train, test = [], []
        for mode in (2 * domain, 2 * domain + 1):
            rng = np.random.RandomState(42 + mode)  # noqa: NPY002 - the published stream's generator
            for points, n in ((train, N_TRAIN), (test, N_TEST)):
                points.append(torch.from_numpy(self.centre(mode) + DEVIATION * rng.standard_normal((n, 2))).float())
        return tuple(
            Split(torch.cat(points), torch.arange(2).repeat_interleave(n))
            for points, n in ((train, N_TRAIN), (test, N_TEST))
        )
