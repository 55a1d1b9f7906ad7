"""Batches of a task, gathered by index from tensors that already live on the training device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Split:
    """Resident data on one device: raw images (N, C, H, W) uint8 and targets (N,) int64; or tokens, or vectors."""

    images: Tensor
    targets: Tensor


class TaskData:
    """The rows of a split that one task uses; what a loader's `dataset` attribute shows."""

    def __init__(self, split: Split, rows: Tensor, transform: Callable[[Tensor], Tensor]):
        self.split, self.rows, self.transform = split, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        raw = self.split.images[self.rows[i]]
        return self.transform(raw), self.split.targets[self.rows[i]], raw

    @property
    def data(self) -> Tensor:
        """Raw images of the task (n, C, H, W), uint8."""
        return self.split.images[self.rows]

    @property
    def targets(self) -> Tensor:
        """Labels of the task (n,), int64."""
        return self.split.targets[self.rows]


class TrainLoader:
    """Training batches (inputs, labels, not_aug_inputs) of one task.

    Args:
        split: the resident data.
        rows: (n,) int64, rows of the split that belong to the task.
        batch_size: examples per batch.
        transform: raw uint8 batch -> network input, augmentation included.
        order: (n, epoch) -> permutation of 0..n-1; a function, so that any epoch can be entered at any batch.
        device: where the batches are wanted; raw bytes are moved there first, where the data live elsewhere.
        drop_last: leave out a last, smaller batch.
        max_batches: stop an epoch after this many batches (`--debug_mode`), or None.
    """

    def __init__(
        self,
        split: Split,
        rows: Tensor,
        batch_size: int,
        transform: Callable[[Tensor], Tensor],
        order: Callable[[int, int | str], Tensor],
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        max_batches: int | None = None,
    ):
        self.dataset = TaskData(split, rows, transform)
        self.batch_size, self.order, self.device = batch_size, order, torch.device(device)
        self.drop_last, self.max_batches = drop_last, max_batches

    def __len__(self) -> int:
        n, size = len(self.dataset), self.batch_size
        batches = n // size if self.drop_last else -(-n // size)
        return batches if self.max_batches is None else min(batches, self.max_batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A pass of a method's own, outside the epochs of training: always in the same shuffled order."""
        return self.epoch("extra")

    def keep(self, rows: Tensor) -> None:
        """Train only on these of the task's examples, given as positions (k,) within the task."""
        self.dataset.rows = self.dataset.rows[rows.to(self.dataset.rows.device)]

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of one epoch, from batch `start` on."""
        images, targets, transform = self.dataset.split.images, self.dataset.split.targets, self.dataset.transform
        rows = self.dataset.rows[self.order(len(self.dataset), epoch).to(images.device)]
        for index in rows.split(self.batch_size)[start : len(self)]:
            raw, labels = gather(images, index, self.device), gather(targets, index, self.device)
            yield transform(raw), labels, raw


class EvalLoader:
    """Evaluation batches (inputs, labels) in storage order, without augmentation."""

    def __init__(
        self,
        split: Split,
        rows: Tensor,
        batch_size: int,
        transform: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
    ):
        self.dataset = TaskData(split, rows, transform)
        self.batch_size, self.device = batch_size, torch.device(device)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        split, transform = self.dataset.split, self.dataset.transform
        for index in torch.split(self.dataset.rows, self.batch_size):
            raw = gather(split.images, index, self.device)
            yield transform(raw), gather(split.targets, index, self.device)


def gather(data: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Rows `index` of resident data, on `device`; from the host through pinned memory, without waiting."""
    rows = data.index_select(0, index)
    if rows.device == device:
        return rows
    return (rows.pin_memory() if device.type == "cuda" and rows.device.type == "cpu" else rows).to(
        device, non_blocking=True
    )
