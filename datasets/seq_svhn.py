"""Split SVHN: 5 tasks of 2 classes.

Augmentation: random crop with padding 4; digits are not flipped.
"""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import ClassIncremental


class SequentialSVHN(ClassIncremental):
    NAME = "seq-svhn"
    SOURCE = sources.svhn
    N_TASKS = 5
    AUGMENT = {"crop_padding": 4, "flip": False}
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 70, "batch_size": 32}
