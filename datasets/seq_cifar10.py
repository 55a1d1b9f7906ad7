"""Split CIFAR-10: 5 tasks of 2 classes.

Augmentation: random crop with padding 4 and horizontal flip, on the stream and on replay.
"""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import ClassIncremental


class SequentialCIFAR10(ClassIncremental):
    NAME = "seq-cifar10"
    SOURCE = sources.cifar10
    N_TASKS = 5
    AUGMENT = {"crop_padding": 4, "flip": True}
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 50, "batch_size": 32}
