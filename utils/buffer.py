"""The replay buffer: fixed capacity, reservoir sampling, named fields kept in their own dtype.

Which slots are written and which rows are drawn depends on counts alone, never on tensor values. So both are
decided on the host, with a numpy generator of the buffer's own, and only small index tensors travel to the device:
nothing waits for it, and a batch that the reservoir rejects as a whole, most batches once the buffer is full, costs
nothing at all.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

FIELDS = ("examples", "labels", "logits", "task_labels")
SHORT = 512  # rows up to which permuting all of them costs no more than a draw of some


def reservoir_slots(n_seen: int, n_new: int, capacity: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Slots that a batch of a stream takes under reservoir sampling (Vitter 1985, Algorithm R).

    Item k of the stream (counted from 0) takes slot k while k < capacity; afterwards it draws r uniformly from 0..k
    and takes slot r if r < capacity. Where two items of the batch draw one slot the later one stays, as with
    one-by-one insertion.

    Args:
        n_seen: items of the stream before this batch.
        n_new: items in the batch.
        capacity: slots of the buffer.
        rng: source of the draws.

    Returns:
        (items, slots), int64: batch rows to store and where; each slot at most once.
    """
    position = np.arange(n_seen, n_seen + n_new)
    if n_seen + n_new <= capacity:
        return position - n_seen, position
    # A double holds 53 random bits, so floor(u * (k + 1)) is uniform on 0..k to one part in 2**53 / k.
    slots = (rng.random(n_new) * (position + 1)).astype(np.int64)
    if n_seen < capacity:
        slots = np.where(position < capacity, position, slots)
    items = (slots < capacity).nonzero()[0]
    if len(items) > 1:
        last = {slot: item for item, slot in zip(items, slots[items], strict=True)}
        items = np.array(list(last.values()))
    return items, slots[items]


def draw_distinct(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """min(size, n) distinct numbers from 0..n-1 in a random order: every ordered choice is as likely as any other.

    About 6 microseconds for up to 100 of 50,000, where a permutation of all takes 500.

    Args:
        n: numbers to draw from.
        size: numbers wanted.
        rng: source of the draws.

    Returns:
        int64, (min(size, n),).
    """
    if n <= SHORT or size >= n:
        return rng.permutation(n)[:size]
    return rng.choice(n, size, replace=False)


class Buffer(nn.Module):
    """Reservoir of past examples, shared by every replay method.

    Fields are allocated at the first `add_data`, each with the dtype and row shape it is given there; any further
    keyword becomes a field of its own. Everything, the generator's state included, is part of a checkpoint.

    Args:
        buffer_size: number of slots, at least 1.
        device: where the rows live, default the CPU.

    Attributes:
        examples, labels, logits, task_labels: storage (buffer_size, ...), of which the first len(self) rows are filled;
            None for a field never given.
        num_seen_examples: items offered so far.
    """

    def __init__(self, buffer_size: int, device: torch.device | str = "cpu"):
        super().__init__()
        if buffer_size < 1:
            raise ValueError(f"buffer_size is {buffer_size}: expected at least 1")
        self.buffer_size = buffer_size
        self.device = torch.device(device)
        self.num_seen_examples = 0
        # Seeded from the global generator: reproducible under the run's seed, and no two buffers alike.
        self.rng = np.random.default_rng(torch.randint(2**62, ()).item())
        self.fields: list[str] = []
        for name in FIELDS:
            self.register_buffer(name, None)

    def __len__(self) -> int:
        return min(self.num_seen_examples, self.buffer_size)

    def is_empty(self) -> bool:
        """Whether no example was ever added."""
        return self.num_seen_examples == 0

    def empty(self) -> None:
        """Forget every row; the fields and the generator's state stay."""
        self.num_seen_examples = 0

    def add_data(self, examples: Tensor, labels=None, logits=None, task_labels=None, **more) -> None:
        """Offer a batch to the reservoir.

        Args:
            examples: (B, ...), stored in its own dtype (raw images: uint8).
            labels, logits, task_labels: (B, ...) or None.
            more: further named fields (B, ...).

        Raises:
            ValueError: a field is missing that earlier batches had, or a new one appears after the first batch.
        """
        given = self._given(examples=examples, labels=labels, logits=logits, task_labels=task_labels, **more)
        items, slots = reservoir_slots(self.num_seen_examples, len(examples), self.buffer_size, self.rng)
        self.num_seen_examples += len(examples)
        if not len(items):
            return
        whole = len(items) == len(examples)
        items, slots = self._to_device(items), self._to_device(slots)
        for name in self.fields:
            stored = self._buffers[name]  # at each step, and not by the slower attribute
            rows = given[name].detach().to(self.device, stored.dtype, non_blocking=True)
            stored.index_copy_(0, slots, rows if whole else rows.index_select(0, items))

    def replace(self, slots: Tensor, taken: Tensor, **given: Tensor) -> None:
        """Write rows at slots of the method's own choice, without a wait.

        Args:
            slots: (n,) indices of filled slots; where one is there twice, its rows must agree.
            taken: (n,) bool; where False the stored row stays.
            given: every field of the buffer, (n, ...).
        """
        for name in self.fields:
            stored = getattr(self, name)
            old, new = stored.index_select(0, slots), given[name].detach().to(self.device, stored.dtype)
            stored.index_copy_(0, slots, torch.where(taken.view(-1, *[1] * (new.dim() - 1)), new, old))

    def get_data(
        self,
        size: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        return_index: bool = False,
        device: torch.device | str | None = None,
        mask_task_out: int | None = None,
        balanced: bool = False,
    ) -> tuple[Tensor, ...]:
        """Draw min(size, len) distinct rows, uniformly.

        Args:
            size: rows wanted.
            transform: applied to the whole batch of examples.
            return_index: put the rows' indices first.
            device: where to move the result.
            mask_task_out: leave rows with this task label out (waits for the device).
            balanced: uniformly within each task label instead: floor(size / T) rows of each of the T tasks that have
                any, the remainder from random distinct tasks; a task with fewer rows gives all it has.

        Returns:
            The fields in the order (examples, labels, logits, task_labels, more...), those never given left out.
        """
        if not self.num_seen_examples:
            raise ValueError("the buffer is empty: nothing to draw (ask is_empty() first)")
        if balanced:
            index = self._balanced(size)
        elif mask_task_out is None:
            index = self._draw(size)
        else:
            candidates = (self.task_labels[: len(self)] != mask_task_out).nonzero().squeeze(1)
            index = candidates[self._to_device(draw_distinct(len(candidates), size, self.rng))]
        return self.get_data_by_index(index, transform, return_index, device)

    def _draw(self, size: int) -> Tensor:
        """min(size, len) distinct slots."""
        return self._to_device(draw_distinct(len(self), size, self.rng))

    def _balanced(self, size: int) -> Tensor:
        """Rows in rounds, one of every task in each, the tasks in a random order that is the same in all rounds."""
        shuffled = self._to_device(self.rng.permutation(len(self)))
        labels, order = self.task_labels[shuffled].sort(stable=True)
        first = torch.searchsorted(labels, labels)  # where each row's task begins
        round_of = torch.arange(len(labels), device=self.device) - first
        turn = self._to_device(self.rng.random(len(self)))[first]
        return shuffled[order[(round_of + turn).argsort()[:size]]]

    def get_data_by_index(
        self,
        indexes: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
        return_index: bool = False,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, ...]:
        """The rows at `indexes` (n,), as `get_data` returns them."""
        index, stored = indexes.to(self.device), self._buffers
        rows = [stored[name].index_select(0, index) for name in self.fields]
        return self._finish(([index] if return_index else []) + rows, transform, device, first=int(return_index))

    def get_all_data(
        self, transform: Callable[[Tensor], Tensor] | None = None, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """All stored rows, as `get_data` returns them, in slot order."""
        return self._finish([getattr(self, name)[: len(self)] for name in self.fields], transform, device, first=0)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.device = fn(torch.empty(0, device=self.device)).device
        return self

    def _finish(self, out: list[Tensor], transform, device, first: int) -> tuple[Tensor, ...]:
        if device is not None:
            out = [rows.to(device, non_blocking=True) for rows in out]
        if transform is not None:
            out[first] = transform(out[first])
        return tuple(out)

    def _given(self, **values: Tensor | None) -> dict[str, Tensor]:
        """The fields of a batch, allocated if it is the first one."""
        given = {name: value for name, value in values.items() if value is not None}
        if not self.fields:
            self._allocate(given)
        elif set(given) != set(self.fields):
            raise ValueError(f"this buffer stores {', '.join(self.fields)}; this batch has {', '.join(given)}")
        return given

    def _allocate(self, given: dict[str, Tensor]) -> None:
        for name, value in given.items():
            shape = (self.buffer_size, *value.shape[1:])
            self._buffers[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
        self.fields = list(given)

    def _to_device(self, index: np.ndarray) -> Tensor:
        index = torch.from_numpy(index)
        return index if self.device.type == "cpu" else index.to(self.device, non_blocking=True)


class SelectiveBuffer(Buffer):
    """A reservoir over those of the offered examples that are admitted, as one that was right, which only the device
    knows.

    The stream of the reservoir is that of the admitted examples: what is refused takes no slot and no number. Since
    counts and slots live on the device nothing waits for it, at the price that a draw always has the size it was asked
    for: while fewer rows are stored than wanted, rows come more than once, and before the first one is stored the draw
    is of rows of the first batch. Whoever replays weights them by `num_admitted > 0` (0-d). `len`, `is_empty` and draws
    by task do wait.

    Attributes:
        num_admitted: examples admitted so far, 0-d int64 tensor.
        num_seen_examples: examples offered so far; as long as it is 0 nothing can be drawn.
    """

    def __init__(self, buffer_size: int, device: torch.device | str = "cpu"):
        super().__init__(buffer_size, device)
        self.register_buffer("num_admitted", torch.zeros((), dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return min(int(self.num_admitted), self.buffer_size)

    def is_empty(self) -> bool:
        """Whether no example was ever admitted."""
        return len(self) == 0

    def empty(self) -> None:
        super().empty()
        self.num_admitted.zero_()

    def add_data(self, examples: Tensor, admitted: Tensor, **fields: Tensor | None) -> None:
        """Offer a batch of which some are admitted.

        Args:
            examples: (B, ...).
            admitted: (B,) bool.
            fields: as in `Buffer.add_data`.
        """
        given, capacity, n = self._given(examples=examples, **fields), self.buffer_size, len(examples)
        self.num_seen_examples += n
        # An example's number among the admitted, and the slot that it would take.
        number = self.num_admitted + admitted.cumsum(0)
        drawn = self._to_device(self.rng.integers(2**62, size=n)) % number.clamp(min=1)
        slot = torch.where(number <= capacity, number - 1, drawn)
        kept = admitted & (slot < capacity)
        # Of those that take one slot the last one stays: all of them write its rows. The others, which take none,
        # write to slot 0 what it will hold anyway.
        slot = torch.where(kept, slot, 0)
        order = torch.arange(1, n + 1, device=self.device)
        last = ((slot == slot.unsqueeze(1)) * (kept * order)).amax(1) - 1
        row = last.clamp(min=0)
        self.replace(slot, last >= 0, **{name: value.index_select(0, row) for name, value in given.items()})
        self.num_admitted += admitted.sum()

    def _draw(self, size: int) -> Tensor:
        """min(size, capacity) slots: distinct filled ones in random order, then the same again.

        All slots are permuted, since the host does not know how many are filled.
        """
        filled = self.num_admitted.clamp(max=self.buffer_size)
        order = self._to_device(self.rng.permutation(self.buffer_size))
        order = order[(order >= filled).byte().argsort(stable=True)]  # the filled ones first
        turn = torch.arange(min(size, self.buffer_size), device=self.device)
        return order[turn % torch.where(filled > 0, filled, self.buffer_size)]

    def _allocate(self, given: dict[str, Tensor]) -> None:
        super()._allocate(given)
        rows = torch.arange(self.buffer_size, device=self.device) % len(given["examples"])
        for name, value in given.items():
            self._buffers[name].copy_(value.detach().to(self.device).index_select(0, rows))


Labels = Tensor | dict[str, Tensor]


class Reservoirs(nn.ModuleList):
    """A reservoir for each pool of a stream, see `TaskStream.pools`: labels of unlike tasks have different shapes.

    Args:
        size: examples kept in all; each pool has an equal share, at least one.
        stream: the stream.
        device: where they are kept.
    """

    def __init__(self, size: int, stream, device: torch.device | str = "cpu"):
        n = len(stream.pools(stream.N_TASKS))
        super().__init__(Buffer(max(size // n, 1), device) for _ in range(n))
        self.mixed = stream.MIXED

    def _of(self, pools: list) -> Buffer:
        """That of the last of them; twice a step, and an index of a ModuleList is slow."""
        return self._modules[str(len(pools) - 1)]

    def add(self, pools: list, raw: Tensor, labels: Labels) -> None:
        """Offer raw inputs (B, ...) of the last of `pools`, with their labels."""
        fields = labels if isinstance(labels, dict) else {"labels": labels}
        self._of(pools).add_data(examples=raw, **fields)

    def join(self, pools: list, inputs: Tensor, labels: Labels, size: int, transform) -> list[tuple]:
        """The batch of the last of `pools`, joined by `size` old examples of its own where they can stand in it; and a
        batch of up to `size` old examples of each pool before.
        """
        own = self._of(pools)
        if self.mixed and not own.is_empty():
            x, y = _draw(own, size, transform)
            inputs, labels = torch.cat((inputs, x)), torch.cat((labels, y))
        old = [(task, part) for task, part in zip(pools[:-1], self, strict=False) if not part.is_empty()]
        return [(pools[-1], inputs, labels), *((task, *_draw(part, size, transform)) for task, part in old)]


def _draw(buffer: Buffer, size: int, transform) -> tuple[Tensor, Labels]:
    inputs, *rest = buffer.get_data(size, transform=transform)
    names = buffer.fields[1:]
    return inputs, rest[0] if names == ["labels"] else dict(zip(names, rest, strict=True))
