"""Fashion-MNIST turning through 360 degrees: a stream of classes 0 to 8 without task boundaries."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Rotating360


class FashionMNIST360(Rotating360):
    NAME = "fmnist-360"
    SOURCE = sources.fashion_mnist
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 1, "batch_size": 16, "num_threads": 1}
