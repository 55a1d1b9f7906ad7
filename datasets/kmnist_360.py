"""Kuzushiji-MNIST turning through 360 degrees: a stream of classes 0 to 8 without task boundaries."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Rotating360


class KMNIST360(Rotating360):
    NAME = "kmnist-360"
    SOURCE = sources.kmnist
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 1, "batch_size": 16, "num_threads": 1}
