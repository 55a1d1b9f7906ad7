"""Split SVHN: 5 tasks of 2 classes (Netzer et al. 2011).

Augmentation: random crop with padding 4; digits are not flipped.
"""

from datasets.utils import sources
from datasets.utils.streams import ClassIncremental


class SequentialSVHN(ClassIncremental):
    NAME = "seq-svhn"
    SOURCE = staticmethod(sources.svhn)
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    N_CLASSES = 10
    SIZE = (3, 32, 32)
    MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    AUGMENT = {"crop_padding": 4, "flip": False}
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 70, "batch_size": 32}
