"""Split MNIST: 5 tasks of 2 classes."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import ClassIncremental


class SequentialMNIST(ClassIncremental):
    NAME = "seq-mnist"
    SOURCE = sources.mnist
    N_TASKS = 5
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.03, "n_epochs": 1, "batch_size": 10, "num_threads": 1}
