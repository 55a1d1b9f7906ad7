"""Batches of a task whose images are read from the disk while one trains; to methods they look like `TrainLoader`s.

Every batch holds (inputs, labels, raw images); the raw images are those the labels belong to, flipped and shifted like
them. Order and augmentation are functions of (seed, task, epoch, example), so that any epoch can be entered at any
batch. torch's DataLoader does the work, with worker processes where asked for; the decoded images stay in memory that
all workers share.
"""

import mmap
import multiprocessing
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from utils.errors import TrainingFailed, UserError


class Cache:
    """Decoded examples in memory: the first `capacity` rows, which the same process or another one finds again.

    Which rows are kept does not depend on the order they come in: in a shuffled pass over more examples than fit,
    keeping those used last would never find one.

    Args:
        shape: of an example, uint8.
        capacity: rows kept, 0 for none.
    """

    def __init__(self, shape: tuple[int, ...], capacity: int):
        self.capacity = capacity
        if capacity:
            # An anonymous shared mapping: worker processes inherit it, and it takes memory only where it is written.
            size = torch.Size(shape).numel()
            self.rows = torch.frombuffer(mmap.mmap(-1, capacity * size), dtype=torch.uint8).view(capacity, *shape)
            self.known = torch.frombuffer(mmap.mmap(-1, capacity), dtype=torch.uint8)

    def get(self, row: int, decode: Callable[[], Tensor]) -> Tensor:
        """Example `row`, decoded if it is not here yet; do not change it."""
        if row >= self.capacity:
            return decode()
        if not self.known[row]:
            self.rows[row] = decode()
            self.known[row] = 1
        return self.rows[row]


class Streamed(Protocol):
    """What a loader reads from."""

    def __len__(self) -> int: ...

    def example(self, row: int, epoch: int | str | None) -> tuple[Tensor, Any]:
        """Raw image (C, H, W) uint8 and label of one example; as it is stored where `epoch` is None, else augmented as
        in that epoch. Raises UserError, naming the file, where it cannot be read.
        """


class Part:
    """The examples of a task that a loader uses; what its `dataset` attribute shows, in storage order.

    Args:
        source: of the examples.
        rows: (n,) int64, those used.
        transform: raw images -> network inputs.
    """

    def __init__(self, source: Streamed, rows: Tensor, transform: Callable[[Tensor], Tensor]):
        self.source, self.rows, self.transform = source, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Any, Tensor]:
        raw, label = self.source.example(int(self.rows[i]), None)
        return self.transform(raw), label, raw

    @property
    def data(self) -> Tensor:
        """Raw images (n, C, H, W), uint8; reads them all."""
        return torch.stack([self.source.example(row, None)[0] for row in self.rows.tolist()])

    @property
    def targets(self) -> Any:
        """Labels of the examples, collated as in a batch; reads them all."""
        return default_collate([self.source.example(row, None)[1] for row in self.rows.tolist()])


class _Pass:
    """The examples of one pass, for DataLoader: a batch at a time, or the UserError that it met.

    An exception raised in a worker would come back with the traceback of the worker as its text.
    """

    def __init__(self, source: Streamed, epoch: int | str | None):
        self.source, self.epoch = source, epoch

    def __getitems__(self, rows: list[int]) -> Any:
        try:
            return default_collate([self.source.example(row, self.epoch) for row in rows])
        except UserError as e:
            return e


class _Streaming:
    """What training and evaluation share.

    Args:
        source: of the examples.
        rows: (n,) int64, those used.
        batch_size: examples per batch.
        transform: raw uint8 batch -> network input, on the device.
        device: where the batches are wanted.
        num_workers: processes that decode, 0 for none.

    Attributes:
        waited: seconds that whoever takes the batches has waited for them.
    """

    def __init__(
        self,
        source: Streamed,
        rows: Tensor,
        batch_size: int,
        transform: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ):
        if num_workers and "fork" not in multiprocessing.get_all_start_methods():
            raise UserError(f"--num_workers {num_workers}: this system cannot fork processes: use 0")
        self.dataset = Part(source, rows, transform)
        self.batch_size, self.device, self.num_workers = batch_size, torch.device(device), num_workers
        self.waited = 0.0

    def _batches(self, index: list[Tensor], epoch: int | str | None) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """(inputs, labels, raw) of the given rows, batch by batch."""
        processes = {"multiprocessing_context": "fork", "prefetch_factor": 2} if self.num_workers else {}
        before = perf_counter()
        batches = iter(
            DataLoader(
                _Pass(self.dataset.source, epoch),
                batch_sampler=[rows.tolist() for rows in index],
                num_workers=self.num_workers,
                collate_fn=_as_it_is,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # it draws a seed for its workers, who need none: not from the method's
                **processes,
            )
        )
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as e:
                if "DataLoader worker" not in str(e):
                    raise
                raise TrainingFailed(f"a process that reads images died ({e}): use a smaller --num_workers") from None
            if isinstance(batch, UserError):
                raise batch
            if batch is not None:
                raw, labels = moved(batch[0], self.device), moved(batch[1], self.device)
            self.waited += perf_counter() - before
            if batch is None:
                return
            yield self.dataset.transform(raw), labels, raw
            before = perf_counter()


class StreamLoader(_Streaming):
    """Training batches (inputs, labels, not_aug_inputs) of one task, as `TrainLoader` gives them.

    Args:
        order: (n, epoch) -> permutation of 0..n-1.
        task: index of the task.
        drop_last: leave out a last, smaller batch.
        max_batches: stop an epoch after this many batches (`--debug_mode`), or None.
        And those of `_Streaming`.

    Attributes:
        task: the task of the latest batch.
    """

    def __init__(
        self,
        *args,
        order: Callable[[int, int | str], Tensor],
        task: int = 0,
        drop_last: bool = False,
        max_batches: int | None = None,
        **more,
    ):
        super().__init__(*args, **more)
        self.order, self.task, self.drop_last, self.max_batches = order, task, drop_last, max_batches

    def __len__(self) -> int:
        n, size = len(self.dataset), self.batch_size
        batches = n // size if self.drop_last else -(-n // size)
        return batches if self.max_batches is None else min(batches, self.max_batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """A pass of a method's own, outside the epochs of training: always in the same order and augmentation."""
        return self.epoch("extra")

    def keep(self, rows: Tensor) -> None:
        """Train only on these of the task's examples, given as positions (k,) within the task."""
        self.dataset.rows = self.dataset.rows[rows.cpu()]

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """The batches of one epoch, from batch `start` on; what came before is not read."""
        rows = self.dataset.rows[self.order(len(self.dataset), epoch)]
        return self._batches(rows.split(self.batch_size)[start : len(self)], epoch)


class StreamEvalLoader(_Streaming):
    """Evaluation batches (inputs, labels) in storage order, without augmentation. Arguments as `_Streaming`."""

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for inputs, labels, _ in self._batches(self.dataset.rows.split(self.batch_size), None):
            yield inputs, labels


class JointLoader:
    """The batches of several tasks mixed, each batch of one task.

    Args:
        loaders: one per task.
        order: (n, epoch) -> permutation of 0..n-1, of the batches of all tasks.

    Attributes:
        task: the task of the latest batch.
    """

    def __init__(self, loaders: list[StreamLoader], order: Callable[[int, int | str], Tensor]):
        self.loaders, self.order, self.task = loaders, order, 0
        self.batch_size = loaders[0].batch_size
        self.dataset = range(sum(len(loader.dataset) for loader in loaders))  # its length is all that is asked for

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    @property
    def waited(self) -> float:
        """Of all its loaders."""
        return sum(loader.waited for loader in self.loaders)

    def __iter__(self) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """As `StreamLoader`."""
        return self.epoch("extra")

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """The batches of one epoch, from batch `start` on."""
        tasks = torch.cat([torch.full((len(loader),), t) for t, loader in enumerate(self.loaders)])
        tasks = tasks[self.order(len(tasks), epoch)].tolist()
        passes = [loader.epoch(epoch, tasks[:start].count(t)) for t, loader in enumerate(self.loaders)]
        for task in tasks[start:]:
            self.task = task
            yield next(passes[task])


def moved(data: Any, device: torch.device) -> Any:
    """A tensor, or a dict of them, on the device, without waiting."""
    if isinstance(data, dict):
        return {name: part.to(device, non_blocking=True) for name, part in data.items()}
    return data.to(device, non_blocking=True)


def _as_it_is(batch: Any) -> Any:
    return batch
