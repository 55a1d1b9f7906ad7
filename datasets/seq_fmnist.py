"""Split Fashion-MNIST: 5 tasks of 2 classes (Xiao et al. 2017).

Inputs are scaled to [0, 1] and not normalised further, the published protocol. Natural class order.
"""

from datasets.utils import sources
from datasets.utils.streams import ClassIncremental


class SequentialFashionMNIST(ClassIncremental):
    NAME = "seq-fmnist"
    SOURCE = staticmethod(sources.fashion_mnist)
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    N_CLASSES = 10
    SIZE = (1, 28, 28)
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.03, "n_epochs": 1, "batch_size": 10, "num_threads": 1}
