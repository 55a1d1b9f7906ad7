"""The boundary of `ContinualTrainer`: what a loader of somebody else gives, as tensors that methods read."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.scores import IGNORED
from palimpsest.utils.errors import UserError, one_line

FORM = "expected batches of (inputs, labels)"


class ReadOnce:
    """An iterator that can be gone through again: what it gave is kept.

    Args:
        source: an iterator, as a generator is.
    """

    def __init__(self, source: Iterator):
        self.source, self.given, self.broken = source, [], False

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator:
        n = 0
        while n < len(self.given) or self._read():
            yield self.given[n]
            n += 1

    def _read(self) -> bool:
        if self.broken:
            raise UserError("the loader failed before, and is an iterator that cannot begin again: make a new one")
        try:
            self.given.append(next(self.source))
        except StopIteration:
            return False
        except BaseException:
            self.broken = True  # a generator says that it is at its end from now on
            raise
        return True


def repeatable(loader: Any) -> Iterable:
    """The loader, or one that can be gone through more than once.

    Raises:
        UserError: nothing that can be gone through.
    """
    if isinstance(loader, Iterator):
        return ReadOnce(loader)
    if isinstance(loader, dict) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise UserError(f"the loader is a {type(loader).__name__}: {FORM}, as a DataLoader or a list gives them")
    return loader


def split_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch as tensors, wherever they lie.

    Args:
        batch: (inputs, labels, ...), each a tensor, a numpy array or a list of numbers.

    Raises:
        UserError: something else, or numbers of inputs and labels that differ.
    """
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        keys = f" with {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise UserError(f"the loader gives {type(batch).__name__}{keys}: {FORM}")
    inputs, labels = (as_tensor(part, what) for part, what in zip(batch, ("inputs", "labels"), strict=False))
    if not inputs.dim() or not labels.dim():
        raise UserError(
            f"the loader gives inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)}: expected batches of "
            "them, as a DataLoader over the data set makes them"
        )
    if len(inputs) != len(labels):
        raise UserError(f"the loader gives {len(inputs)} inputs with {len(labels)} labels: expected as many of both")
    if not len(inputs):
        raise UserError("the loader gives a batch of no examples: leave it out")
    return inputs, labels


def read_inputs(inputs: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Inputs where the network is; numbers with a fraction get the network's type."""
    return inputs.to(device, dtype if inputs.is_floating_point() else None, non_blocking=True)


def read_numbers(labels: Tensor, outputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Targets (B, outputs) of a regression; (B,) is read as (B, 1).

    Raises:
        UserError: of another shape, or not finite as far as that is seen without waiting for a GPU.
    """
    labels = labels.unsqueeze(1) if labels.dim() == 1 else labels
    shape, expected = tuple(labels.shape), (len(labels), outputs)
    if shape != expected:
        raise UserError(f"labels have shape {shape}: expected {expected}, a number per output")
    if labels.device.type == "cpu" and not labels.isfinite().all():
        raise UserError("labels are nan or infinite: expected a number per output, leave out examples without one")
    return labels.to(device, dtype, non_blocking=True)


def read_classes(labels: Tensor, outputs: int, per_position: bool, look: bool) -> Tensor:
    """Class numbers int64: (B,), of which (B, 1) is another form, or (B, L) with `IGNORED` where none is scored.

    Args:
        labels: of any type, as long as they are whole numbers.
        outputs: of the network; a label is one of 0..outputs-1.
        per_position: whether the network answers at each position of a sequence.
        look: whether their values are looked at, for which one has to wait where they are on a GPU.

    Raises:
        UserError: other shapes or numbers.
    """
    if labels.dim() == 2 and labels.shape[1] == 1 and not per_position:
        labels = labels.squeeze(1)
    if labels.dim() != 1 + per_position:
        expected = "(B, L), a class number per position" if per_position else "(B,), class numbers"
        raise UserError(f"labels have shape {tuple(labels.shape)}: expected {expected}")
    if labels.is_complex() or (look and labels.is_floating_point() and bool((labels != labels.round()).any())):
        kind = str(labels.dtype).removeprefix("torch.")
        raise UserError(
            f"labels are {kind} with fractions: expected class numbers, or targets with setting 'regression'"
        )
    labels = labels.long()
    if look and (bad := labels[(labels < 0) | (labels >= outputs)]).numel():
        bad = bad[bad != IGNORED] if per_position else bad
        if bad.numel():
            ignored = f", or {IGNORED} where none is scored" if per_position else ""
            ends = sorted({int(bad.min()), int(bad.max())})
            raise UserError(
                f"the loader gives label {' to '.join(map(str, ends))}: the network's {outputs} outputs stand for "
                f"labels 0 to {outputs - 1}{ignored}"
            )
    return labels


def are_numbers(labels: Tensor, outputs: torch.Size) -> bool:
    """Whether labels are targets of a regression: numbers with a fraction in the shape of the network's output.

    Args:
        labels: (B, ...).
        outputs: shape of the network's output for the batch.
    """
    if not labels.is_floating_point() or len(outputs) != 2:
        return False
    if labels.dim() == 1 or labels.shape[1:] == (1,):
        return outputs[1] == 1
    one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
    return labels.shape == outputs and not one_hot


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor, an array or a list of numbers as a tensor.

    Raises:
        UserError: something else, named by `what`.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, np.ndarray):
            value = np.require(value, requirements=["C", "W"])  # copied where torch could not read it in place
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return torch.stack(list(value))
        elif not isinstance(value, list | tuple | np.generic):
            raise TypeError(f"{type(value).__name__}")
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(
            f"{what} are {type(value).__name__}: expected a tensor or an array of numbers ({one_line(e)})"
        ) from None
