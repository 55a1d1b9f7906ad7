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


def _name(model: Any) -> str:
    return getattr(type(model), "NAME", type(model).__name__)
