"""Split scikit-learn's 8x8 digits: 5 tasks of 2 classes."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import ClassIncremental


class SequentialDigits(ClassIncremental):
    NAME = "seq-digits"
    SOURCE = sources.digits
    N_TASKS = 5
    DEFAULTS = {"backbone": "convnet", "lr": 0.03, "n_epochs": 15, "batch_size": 32, "num_threads": 1}
