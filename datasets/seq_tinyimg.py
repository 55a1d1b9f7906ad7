"""Split TinyImageNet: 10 tasks of 20 classes, sorted WordNet ids.

Augmentation: random crop with padding 4 and horizontal flip. The official validation folder is the test set.
"""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import ClassIncremental


class SequentialTinyImageNet(ClassIncremental):
    NAME = "seq-tinyimg"
    SOURCE = sources.tinyimagenet
    N_TASKS = 10
    AUGMENT = {"crop_padding": 4, "flip": True}
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 100, "batch_size": 32}
