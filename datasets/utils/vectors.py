"""Streams of plain vectors: points, measurements, features; labels are classes, or numbers to be predicted."""

import torch.nn.functional as F
from torch import Tensor

from datasets.utils.loaders import Split
from datasets.utils.per_task import PerTaskStream
from datasets.utils.streams import checked_order
from datasets.utils.task import RegressionTask


def as_it_is(x: Tensor) -> Tensor:
    """Stored vectors are network inputs."""
    return x


class VectorStream(PerTaskStream):
    """Every task is a set of vectors; inputs (B, D) are float32 and enter the network as they are stored.

    A subclass defines `_vectors` and sets `SIZE` = (D,). Labels are classes, int64 (B,), as in a stream of images.
    """

    INPUT = "vectors"
    _to_input = staticmethod(as_it_is)

    def _vectors(self, domain: int) -> tuple[Split, Split]:
        """Training and test set of domain number `domain`, on the host: float32 (N, D) and labels.

        Classes count from 0 within the domain. The domain is the task, unless `--custom_task_order` says otherwise.
        """
        raise NotImplementedError

    def _prepare(self) -> None:
        given = self.args.custom_task_order
        self._order = checked_order(given, self.N_TASKS, "task") if given else list(range(self.N_TASKS))
        super()._prepare()

    def _splits(self, task: int) -> tuple[Split, Split]:
        splits = self._vectors(self._order[task])
        if self.SETTING != "class-il":
            return splits
        first = sum(self.cpt(t) for t in range(task))
        return tuple(Split(split.images, split.targets + first) for split in splits)


class RegressionStream(VectorStream):
    """The same with numbers to be predicted: labels float32 (B, K), K = `N_CLASSES` outputs that all tasks share.

    Loss: mean squared error over the batch and its outputs. Score: R^2 in percent, and the error itself beside it.
    """

    SETTING = "domain-il"
    TASK = RegressionTask

    def get_loss(self):
        """Mean squared error."""
        super().get_loss()  # refuses --multi_head
        return F.mse_loss
