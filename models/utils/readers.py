"""All that a stored method may call when it is read, each harmless whatever it is given.

`torch.load(weights_only=True)` calls these and its own, and nothing else. An object is made of a class that the fresh
method is made of, without its `__init__`; a function or a class is looked up in the fresh method by its name.
"""

import functools
import logging
import pathlib
import random
import re
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SCALARS = (type(None), bool, int, float, str, bytes)
TABLES = ("_parameters", "_buffers", "_modules")
CODE = (
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, np.ufunc, torch.layout, torch.memory_format,
    logging.Logger, re.Pattern,
)  # fmt: skip
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
NUMBERS = (
    "bool_",
    "bool",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
BLANK = vars(nn.Module())
MODULE_HOOKS = [name for name in BLANK if "hook" in name]
LEFT_OUT = (*MODULE_HOOKS, "_origin", "_compiled_call_impl")  # of a module: these are its own

READERS: list[Callable] = [frozenset]
_reading: "Reading | None" = None


def reader(function: Callable) -> Callable:
    """Let checkpoints call a function; it does nothing while only the rest of a checkpoint is read."""

    @functools.wraps(function)
    def call(*args):
        return function(*args) if _reading else None

    READERS.append(call)
    return call


@reader
def owned(name: str):
    """What belongs to the run."""
    return _reading.origin.owned[name]


@reader
def code(label: str):
    """A function, a class or a module that the fresh method has."""
    return _reading.origin.code_of(label)


@reader
def instance(module: str, name: str, place: str | None, attributes: dict):
    """An object of a class of the method's; one of the fresh method's modules where it was one."""
    return _reading.once(attributes, lambda: _reading.blank(module, name, place))


@reader
def leaf(data: Tensor, parameter: bool, learns: bool, marks: dict):
    """A tensor with its gradient and its attributes."""
    return _reading.once(marks, lambda: nn.Parameter(data, learns) if parameter else data.requires_grad_(learns))


@reader
def bound(owner, name: str):
    """A method of a stored object."""
    function = getattr(type(owner), name)
    if name.startswith("__") or not isinstance(function, types.FunctionType):
        raise ValueError(f"{name} is no method")
    return types.MethodType(function, owner)


@reader
def made(kind: str, *given):
    """A value of a kind in `MAKERS`, none of which does more than to make it."""
    return MAKERS[kind](*given)


@reader
def member(module: str, name: str, which: str):
    """A member of an enumeration."""
    return _reading.origin.class_of(module, name).__members__[which]


def _array(memory: Tensor, writeable: bool) -> np.ndarray:
    out = memory.numpy()
    if not writeable:
        out.flags.writeable = False
    return out


def _torch_generator(state: Tensor, device: str) -> torch.Generator:
    out = torch.Generator(device if device == "cpu" else _reading.origin.model.device)
    out.set_state(state.cpu())
    return out


def _bit_generator(kind: str, state: dict, seeds: tuple):
    entropy, key, spawned = seeds
    seeds = np.random.SeedSequence(entropy, spawn_key=key, n_children_spawned=spawned)
    out = getattr(np.random, BIT_GENERATORS[BIT_GENERATORS.index(kind)])(seeds)
    out.state = state
    return out


def _numpy_random(bits, has_gauss: int, gauss: float) -> np.random.RandomState:
    out = np.random.RandomState(bits)
    out.set_state({**out.get_state(legacy=False), "has_gauss": has_gauss, "gauss": gauss})
    return out


def _python_random(state: tuple) -> random.Random:
    out = random.Random(0)
    out.setstate(state)
    return out


MAKERS: dict[str, Callable] = {
    "array": _array,
    "number": lambda dtype, value: np.dtype(NUMBERS[NUMBERS.index(dtype)]).type(value),
    "partial": lambda function, given, keywords: functools.partial(function, *given, **keywords),
    "deque": deque,
    "defaultdict": defaultdict,
    "range": range,
    "slice": slice,
    **{kind.__name__: kind for kind in (type(pathlib.Path()), type(pathlib.PurePath()))},
    "torch generator": _torch_generator,
    "bit generator": _bit_generator,
    "numpy generator": np.random.Generator,
    "numpy random": _numpy_random,
    "python random": _python_random,
}


# ---- one reading


class Reading:
    """One state that is being read for a method; into its own modules, or to look at it."""

    def __init__(self, origin: Any, into: bool):
        self.origin, self.into = origin, into
        self.found: dict[int, tuple[Any, dict]] = {}
        self.places: dict[int, str] = {}

    def once(self, attributes: dict, make: Callable) -> Any:
        """The object that has these attributes, which are known before they are complete."""
        if type(attributes) is not dict:
            raise TypeError("attributes that are no dict")
        if id(attributes) not in self.found:
            self.found[id(attributes)] = make(), attributes
        return self.found[id(attributes)][0]

    def blank(self, module: str, name: str, place: str | None) -> Any:
        """An object of a class without attributes."""
        mine = None if place is None else self.origin.parts.get(place)
        if mine is not None and (place in self.places.values() or not is_named(type(mine), module, name)):
            raise ValueError(f"another module in the place of {place or 'the method'}")
        cls = self.origin.class_of(module, name) if mine is None else type(mine)
        if cls is None or not (is_plain(cls) or issubclass(cls, nn.Module)):
            raise ValueError(f"an object of class {name}")
        out = mine if mine is not None and self.into else object.__new__(cls)
        if place is not None:
            self.places[id(out)] = place
        return out

    def finish(self) -> None:
        """Give the objects their attributes, which are complete now."""
        for out, attributes in self.found.values():
            if isinstance(out, Tensor):
                out.grad = attributes.pop("grad")
                vars(out).update(attributes)
                continue
            if isinstance(out, nn.Module):
                mine = self.origin.parts.get(self.places.get(id(out)))
                kept = vars(mine) if mine is not None else nn.Module.__dict__ | vars(nn.Module())
                attributes["_non_persistent_buffers_set"] = set(attributes["_non_persistent_buffers_set"])
                attributes.update((name, kept[name]) for name in LEFT_OUT if name in kept)
            object.__setattr__(out, "__dict__", attributes)


@contextmanager
def read_by(reading: Reading | None) -> Iterator[None]:
    global _reading
    _reading = reading
    try:
        with torch.serialization.safe_globals(READERS):
            yield
    finally:
        _reading = None


def is_plain(cls: type) -> bool:
    """Whether a class is written in Python and keeps its state in `__dict__` alone."""
    heap_type = 1 << 9
    return all(c is object or (c.__flags__ & heap_type and not c.__dict__.get("__slots__")) for c in cls.__mro__)


def is_named(cls: type, module: str, name: str) -> bool:
    return (cls.__module__, cls.__qualname__) == (module, name)
