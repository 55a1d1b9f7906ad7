"""Streams of plain vectors: points, measurements, features; labels are classes, or numbers to be predicted."""

import torch.nn.functional as F

from palimpsest.datasets.utils.per_task import PerTaskStream
from palimpsest.datasets.utils.task import RegressionTask


class VectorStream(PerTaskStream):
    """Every task is a set of vectors, which enter the network as they are stored.

    A subclass sets `SIZE` = (D,) and defines `_splits`: inputs float32 (N, D) and labels. Labels are classes, int64
    (N,), as in a stream of images.
    """

    INPUT = "vectors"


class RegressionStream(VectorStream):
    """The same with numbers to be predicted: labels float32 (N, K), K = `N_CLASSES` outputs that all tasks share.

    Loss: mean squared error over the batch and its outputs. Score: R^2 in percent, and the error itself beside it.
    """

    SETTING = "domain-il"
    TASK = RegressionTask

    def get_loss(self):
        """Mean squared error."""
        super().get_loss()  # refuses --multi_head
        return F.mse_loss
