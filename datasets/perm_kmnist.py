"""Permuted Kuzushiji-MNIST: 20 tasks of all 10 classes, each under a fixed pixel permutation."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Permuted


class PermutedKMNIST(Permuted):
    NAME = "perm-kmnist"
    SOURCE = sources.kmnist
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.2, "n_epochs": 1, "batch_size": 128, "num_threads": 1}
