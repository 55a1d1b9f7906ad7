"""Rotated scikit-learn's 8x8 digits: 20 tasks of all 10 classes, each under a fixed rotation in [0, 180) degrees."""

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.streams import Rotated


class RotatedDigits(Rotated):
    NAME = "rot-digits"
    SOURCE = sources.digits
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 10, "batch_size": 32, "num_threads": 1}
