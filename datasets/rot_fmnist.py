"""Rotated Fashion-MNIST: 20 tasks of all 10 classes, each under a fixed rotation in [0, 180) degrees."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Rotated


class RotatedFashionMNIST(Rotated):
    NAME = "rot-fmnist"
    SOURCE = sources.fashion_mnist
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.2, "n_epochs": 1, "batch_size": 128, "num_threads": 1}
