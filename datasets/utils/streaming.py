"""Images that are read from the disk while one trains.

Every batch holds (inputs, labels, raw images); the raw images are those the labels belong to, flipped and shifted like
them. Order and augmentation are functions of (seed, task, epoch, example), so that any epoch can be entered at any
batch. torch's DataLoader does the work, with worker processes where asked for; the decoded images stay in memory that
all workers share.
"""

import mmap
import multiprocessing
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from palimpsest.datasets.utils.loaders import TrainLoader
from palimpsest.utils.errors import TrainingFailed, UserError


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


class Streamed:
    """Examples that a loader reads from the disk. A subclass defines `__len__` and `example`.

    Args:
        num_workers: processes that decode, 0 for none.

    Attributes:
        waited: seconds that training has waited for batches.
    """

    def __init__(self, num_workers: int = 0):
        if num_workers and "fork" not in multiprocessing.get_all_start_methods():
            raise UserError(f"--num_workers {num_workers}: this system cannot fork processes: use 0")
        self.num_workers, self.waited = num_workers, 0.0

    def example(self, row: int, epoch: int | str | None = None) -> tuple[Tensor, Any]:
        """Raw image (C, H, W) uint8 and label of one example; as it is stored where `epoch` is None, else augmented as
        in that epoch. Raises UserError, naming the file, where it cannot be read.
        """
        raise NotImplementedError

    def images_of(self, rows: Tensor) -> Tensor:
        """Raw images of rows (n,); reads them all."""
        return torch.stack([self.example(row)[0] for row in rows.tolist()])

    def targets_of(self, rows: Tensor) -> Any:
        """Labels of rows (n,), collated as in a batch; reads them all."""
        return default_collate([self.example(row)[1] for row in rows.tolist()])

    def batches(self, index: list[Tensor], epoch: int | str | None, device: torch.device) -> Iterator[tuple]:
        """(raw, labels) of the given rows on `device`, batch by batch; `epoch` as in `example`."""
        processes = {"multiprocessing_context": "fork", "prefetch_factor": 2} if self.num_workers else {}
        before = perf_counter()
        batches = iter(
            DataLoader(
                _Pass(self, epoch),
                batch_sampler=[rows.tolist() for rows in index],
                num_workers=self.num_workers,
                collate_fn=_as_it_is,
                pin_memory=device.type == "cuda",
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
            if batch is None:
                return
            if isinstance(batch, UserError):
                raise batch
            raw, labels = (moved(part, device) for part in batch)
            if epoch is not None:
                self.waited += perf_counter() - before
            yield raw, labels
            before = perf_counter()


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


class JointLoader:
    """The batches of several tasks mixed, each batch of one task.

    Args:
        loaders: one per task.
        order: (n, epoch) -> permutation of 0..n-1, of the batches of all tasks.

    Attributes:
        task: the task of the latest batch.
    """

    def __init__(self, loaders: list[TrainLoader], order: Callable[[int, int | str], Tensor]):
        self.loaders, self.order, self.task = loaders, order, 0
        self.batch_size = loaders[0].batch_size
        self.dataset = range(sum(len(loader.dataset) for loader in loaders))  # its length is all that is asked for

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """As `TrainLoader`."""
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
