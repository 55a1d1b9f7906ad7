"""Split scikit-learn's 8x8 digits: 5 tasks of 2 classes (1797 images, embedded: no download).

Inputs are scaled to [-1, 1]. Natural class order.
"""

from datasets.utils import sources
from datasets.utils.streams import ClassIncremental


class SequentialDigits(ClassIncremental):
    NAME = "seq-digits"
    SOURCE = staticmethod(sources.digits)
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    N_CLASSES = 10
    SIZE = (1, 8, 8)
    MEAN, STD = (0.5,), (0.5,)
    DEFAULTS = {"backbone": "convnet", "lr": 0.03, "n_epochs": 15, "batch_size": 32, "num_threads": 1}
