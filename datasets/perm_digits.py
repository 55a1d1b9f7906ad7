"""Permuted scikit-learn's 8x8 digits: 20 tasks of all 10 classes, each under a fixed pixel permutation."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Permuted


class PermutedDigits(Permuted):
    NAME = "perm-digits"
    SOURCE = sources.digits
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 10, "batch_size": 32, "num_threads": 1}
