"""scikit-learn's 8x8 digits turning through 360 degrees: a stream of classes 0 to 8 without task boundaries (1797
images, embedded: no download).

Inputs are scaled to [-1, 1].
"""

from datasets.utils import sources
from datasets.utils.streams import Rotating360


class Digits360(Rotating360):
    NAME = "digits-360"
    SOURCE = staticmethod(sources.digits)
    SIZE = (1, 8, 8)
    MEAN, STD = (0.5,), (0.5,)
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 1, "batch_size": 4, "num_threads": 1}
