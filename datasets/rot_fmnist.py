"""Rotated Fashion-MNIST: 20 tasks of all 10 classes, each under a fixed rotation in [0, 180) degrees (Xiao et al.
2017).

Inputs are scaled to [0, 1] and not normalised further, the published protocol.
"""

from datasets.utils import sources
from datasets.utils.streams import Rotated


class RotatedFashionMNIST(Rotated):
    NAME = "rot-fmnist"
    SOURCE = staticmethod(sources.fashion_mnist)
    N_TASKS = 20
    N_CLASSES_PER_TASK = 10
    N_CLASSES = 10
    SIZE = (1, 28, 28)
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.2, "n_epochs": 1, "batch_size": 128, "num_threads": 1}
