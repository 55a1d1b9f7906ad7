"""Permuted scikit-learn's 8x8 digits: 20 tasks of all 10 classes, each under a fixed pixel permutation (1797
images, embedded: no download).

Inputs are scaled to [-1, 1].
"""

from datasets.utils import sources
from datasets.utils.streams import Permuted


class PermutedDigits(Permuted):
    NAME = "perm-digits"
    SOURCE = staticmethod(sources.digits)
    N_TASKS = 20
    N_CLASSES_PER_TASK = 10
    N_CLASSES = 10
    SIZE = (1, 8, 8)
    MEAN, STD = (0.5,), (0.5,)
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 10, "batch_size": 32, "num_threads": 1}
