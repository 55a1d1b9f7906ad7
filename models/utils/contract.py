"""What a method of somebody else sets and returns, looked at where it enters."""

import inspect
import sys
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.utils.errors import UserError


class Count:
    """A number that the runner keeps for a method to read. A method that sets an attribute of this name keeps one of
    its own: the runner does not read it back.

    Args:
        get: method -> the number.
    """

    def __init__(self, get):
        self.get = get

    def __get__(self, model, owner=None):
        return self if model is None else self.get(model)


def reserved_names(cls: type) -> frozenset[str]:
    """The names of a class that no attribute of an object may hide: its methods and properties."""
    names = {name for name in dir(cls) if not name.startswith("__")}
    return frozenset(
        name
        for name in names
        if callable(getattr(cls, name)) or isinstance(inspect.getattr_static(cls, name), property)
    ) | {"_origin"}


def refuse_hidden(model: nn.Module, name: str) -> None:
    """Raise UserError: a method sets an attribute that hides what the runner calls."""
    frame = sys._getframe(2)
    raise UserError(
        f"{frame.f_code.co_filename}, line {frame.f_lineno}: {_name(model)} sets self.{name}, which hides the "
        f"{name}() that every method has: choose another name"
    )


def loss_problem(returned: Any) -> str | None:
    """What is wrong with what `observe` returned, None if it is a loss: a 0-d tensor, a number, or a dict with such a
    'loss' whose other terms are that, too, or None.
    """
    if not isinstance(returned, dict):
        return None if _is_number(returned) else _told(returned)
    if "loss" not in returned:
        return f"a dict without 'loss' ({', '.join(map(str, returned)) or 'empty'})"
    for term, value in returned.items():
        if type(term) is not str:
            return f"a dict with the key {term!r}, which is no name"
        if not _is_number(value) and (value is not None or term == "loss"):
            return f"a dict whose '{term}' is {_told(value)}"
    return None


def checked_loss(model: nn.Module, returned: Any) -> Any:
    """What `observe` returned, where it is a loss.

    Raises:
        UserError: it is none; the line says what was given.
    """
    if problem := loss_problem(returned):
        raise UserError(
            f"observe of {_name(model)} returned {problem}: return the loss as a 0-d tensor, a float, or a dict with "
            "'loss'"
        )
    return returned


def checked_rows(model: nn.Module, rows: Any, n: int) -> Tensor:
    """What `training_rows` returned, where it is positions (k,) of a task's n examples.

    Raises:
        UserError: it is not; the line says what was given.
    """
    fits = isinstance(rows, Tensor) and rows.dim() == 1 and rows.dtype == torch.int64 and len(rows) > 0
    if not fits or int(rows.min()) < 0 or int(rows.max()) >= n:
        ends = f", from {int(rows.min())} to {int(rows.max())}" if fits else ""
        raise UserError(
            f"training_rows of {_name(model)} returned {_told(rows)}{ends}: expected positions (k,) int64 from 0 to "
            f"{n - 1}"
        )
    return rows


def checked_extra(model: nn.Module, extra: Any, data: Any) -> tuple[Tensor, Tensor]:
    """What `extra_examples` returned, where it can join a task's `data`.

    Raises:
        UserError: it cannot; the line says what was given and what is expected.
    """
    parts = extra if isinstance(extra, tuple | list) and len(extra) == 2 else (extra, None)
    given, expected = ([_shape(x, any_length=True) for x in both] for both in (parts, data.first()))
    if given != expected or len(parts[0]) != len(parts[1]):
        told = " and ".join(_shape(x) for x in parts)
        raise UserError(
            f"extra_examples of {_name(model)} returned {told}: expected {' and '.join(expected)}, as many of both"
        )
    return parts


def check_constructed(model: Any) -> None:
    """Refuse a method whose constructor left something that the runner cannot work with.

    Raises:
        UserError: what it left and what is expected.
    """
    name = _name(model)
    if not isinstance(vars(model).get("_task_iteration"), int):
        raise UserError(f"__init__ of {name} does not call super().__init__(backbone, loss, args, transform, dataset)")
    if isinstance(model.device, str):
        model.device = torch.device(model.device)
    expected = {"net": nn.Module, "device": torch.device, "opt": torch.optim.Optimizer | None}
    for attribute, kind in expected.items():
        value = getattr(model, attribute, None)
        if not isinstance(value, kind):
            wanted = "an optimiser or None" if attribute == "opt" else f"a torch {kind.__name__}"
            raise UserError(f"__init__ of {name} leaves self.{attribute} as {_told(value)}: expected {wanted}")


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a{' complex' if value.is_complex() else ''} tensor of shape {tuple(value.shape)}"
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80] if value is not None else "None"


def _shape(value: Any, any_length: bool = False) -> str:
    """'(n, 1, 8, 8) torch.uint8', with the first number where it matters; other things as `_told`."""
    if not isinstance(value, Tensor) or not value.dim():
        return _told(value)
    numbers = ["n" if any_length else str(len(value)), *map(str, value.shape[1:])]
    return f"({', '.join(numbers)}{',' * (len(numbers) == 1)}) {value.dtype}"


def _name(model: Any) -> str:
    return getattr(type(model), "NAME", type(model).__name__)
