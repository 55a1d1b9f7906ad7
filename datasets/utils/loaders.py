"""Batches of a task, gathered by index from tensors that already live on the training device.

A loader reads from a source: a `Split`, or what `datasets.utils.streaming` reads from the disk.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


class Split:
    """Resident data on one device: raw images (N, C, H, W) uint8 and targets (N,) int64; or tokens, or vectors.

    Attributes:
        note: called where somebody reads them, all or some rows, see `utils.leaks.reads`; None where nobody counts.
    """

    def __init__(self, images: Tensor, targets: Tensor):
        self._images, self._targets, self.note = images, targets, None

    @property
    def images(self) -> Tensor:
        """All images."""
        if self.note is not None:
            self.note()
        return self._images

    @property
    def targets(self) -> Tensor:
        """All labels."""
        if self.note is not None:
            self.note()
        return self._targets

    def example(self, row: int) -> tuple[Tensor, Tensor]:
        """Raw image and label of a row."""
        if self.note is not None:
            self.note(row)
        return self._images[row], self._targets[row]

    def images_of(self, rows: Tensor) -> Tensor:
        """Raw images of rows (n,)."""
        if self.note is not None:
            self.note(rows)
        return self._images[rows]

    def targets_of(self, rows: Tensor) -> Tensor:
        """Labels of rows (n,)."""
        if self.note is not None:
            self.note(rows)
        return self._targets[rows]

    def batches(self, index: list[Tensor], epoch: int | str | None, device: torch.device) -> Iterator[tuple]:
        """(raw, labels) of the given rows on `device`, batch by batch."""
        if self.note is not None:
            self.note([*index])
        for rows in index:
            yield gather(self._images, rows, device), gather(self._targets, rows, device)


class ShownSplit:
    """As `Split`, with images that are transformed whenever they are read: what is kept is the split's own.

    Args:
        split: resident data.
        show: images (N, C, H, W) uint8 -> as many, as they are shown.
    """

    def __init__(self, split: Split, show: Transform):
        self._split, self._show, self.targets = split, show, split.targets

    @property
    def images(self) -> Tensor:
        """All of them, transformed now."""
        return self._show(self._split.images)

    def example(self, row: int) -> tuple[Tensor, Tensor]:
        """Raw image and label of a row."""
        return self.images_of(torch.tensor([row]))[0], self.targets[row]

    def images_of(self, rows: Tensor) -> Tensor:
        """Raw images of rows (n,)."""
        return self._show(self._split.images_of(rows))

    def targets_of(self, rows: Tensor) -> Tensor:
        """Labels of rows (n,)."""
        return self._split.targets_of(rows)

    def batches(self, index: list[Tensor], epoch: int | str | None, device: torch.device) -> Iterator[tuple]:
        """(raw, labels) of the given rows on `device`, batch by batch."""
        for raw, labels in self._split.batches(index, epoch, device):
            yield self._show(raw), labels


class TaskData:
    """The rows of a source that one task uses; what a loader's `dataset` attribute shows, in storage order.

    Attributes:
        note: called at each read, see `utils.leaks.reads`; None where nobody counts.
    """

    def __init__(self, source, rows: Tensor, transform: Transform, note: Callable[[], None] | None = None):
        self.source, self.rows, self.transform, self.note = source, rows, transform, note

    def __len__(self) -> int:
        return len(self.rows)

    def count_read(self) -> None:
        """Somebody reads the data."""
        if self.note is not None:
            self.note()

    def __getitem__(self, i: int) -> tuple[Tensor, Any, Tensor]:
        self.count_read()
        raw, label = self.source.example(int(self.rows[i]))
        return self.transform(raw), label, raw

    def first(self) -> tuple[Tensor, Any]:
        """Raw image and label of the first example, as a batch of one."""
        self.count_read()
        return self.source.images_of(self.rows[:1]), self.source.targets_of(self.rows[:1])

    @property
    def data(self) -> Tensor:
        """Raw images of the task (n, C, H, W), uint8."""
        self.count_read()
        return self.source.images_of(self.rows)

    @property
    def targets(self) -> Any:
        """Labels of the task (n,), int64, or as a batch has them."""
        self.count_read()
        return self.source.targets_of(self.rows)


class EvalLoader:
    """Evaluation batches (inputs, labels) in storage order, without augmentation.

    Args:
        source: the data.
        rows: (n,) int64, rows of the source that belong to the task.
        batch_size: examples per batch.
        transform: raw uint8 batch -> network input.
        device: where the batches are wanted; raw bytes are moved there first, where the data live elsewhere.
    """

    def __init__(self, source, rows: Tensor, batch_size: int, transform: Transform, device: torch.device | str = "cpu"):
        self.dataset = TaskData(source, rows, transform)
        self.batch_size, self.device = batch_size, torch.device(device)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        self.dataset.count_read()
        index = self.dataset.rows.split(self.batch_size)
        for raw, labels in self.dataset.source.batches(index, None, self.device):
            yield self.dataset.transform(raw), labels


class TrainLoader(EvalLoader):
    """Training batches (inputs, labels, not_aug_inputs) of one task.

    Args:
        source, rows, batch_size, device: as in `EvalLoader`.
        transform: raw uint8 batch -> network input, augmentation included.
        order: (n, epoch) -> permutation of 0..n-1; a function, so that any epoch can be entered at any batch.
        drop_last: leave out a last, smaller batch.
        max_batches: stop an epoch after this many batches (`--debug_mode`), or None.
        task: index of the task.
    """

    def __init__(
        self,
        source,
        rows: Tensor,
        batch_size: int,
        transform: Transform,
        order: Callable[[int, int | str], Tensor],
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        max_batches: int | None = None,
        task: int = 0,
    ):
        super().__init__(source, rows, batch_size, transform, device)
        self.order, self.drop_last, self.max_batches, self.task = order, drop_last, max_batches, task

    def __len__(self) -> int:
        batches = len(self.dataset) // self.batch_size if self.drop_last else super().__len__()
        return batches if self.max_batches is None else min(batches, self.max_batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """A pass of a method's own, outside the epochs of training: always in the same order and augmentation."""
        return self.epoch("extra")

    def keep(self, rows: Tensor) -> None:
        """Train only on these of the task's examples, given as positions (k,) within the task."""
        self.dataset.rows = self.dataset.rows[rows.to(self.dataset.rows.device)]

    def join(self, images: Tensor, targets: Tensor) -> None:
        """Train on these raw images (n, C, H, W) and targets (n,) besides the task's own."""
        own = self.dataset
        device = own.rows.device
        source = Split(torch.cat((own.data, images.to(device))), torch.cat((own.targets, targets.to(device))))
        self.dataset = TaskData(source, torch.arange(len(source.targets), device=device), own.transform, own.note)

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """The batches of one epoch, from batch `start` on; what came before is not read."""
        data, transform = self.dataset, self.dataset.transform
        data.count_read()
        rows = data.rows[self.order(len(data), epoch).to(data.rows.device)]
        for raw, labels in data.source.batches(rows.split(self.batch_size)[start : len(self)], epoch, self.device):
            yield transform(raw), labels, raw


def gather(data: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Rows `index` of resident data, on `device`; from the host through pinned memory, without waiting."""
    rows = data.index_select(0, index)
    if device.type == "cuda" and rows.device.type == "cpu":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)
