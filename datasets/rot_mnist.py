"""Rotated MNIST: 20 tasks of all 10 classes, each under a fixed rotation in [0, 180) degrees."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Rotated


class RotatedMNIST(Rotated):
    NAME = "rot-mnist"
    SOURCE = sources.mnist
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.2, "n_epochs": 1, "batch_size": 128, "num_threads": 1}
