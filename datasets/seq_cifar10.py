"""Split CIFAR-10: 5 tasks of 2 classes (Krizhevsky 2009).

Augmentation: random crop with padding 4 and horizontal flip, on the stream and on replay.
"""

from datasets.utils import sources
from datasets.utils.streams import ClassIncremental


class SequentialCIFAR10(ClassIncremental):
    NAME = "seq-cifar10"
    SOURCE = staticmethod(sources.cifar10)
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    N_CLASSES = 10
    SIZE = (3, 32, 32)
    MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
    AUGMENT = {"crop_padding": 4, "flip": True}
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 50, "batch_size": 32}
