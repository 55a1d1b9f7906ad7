"""What a method can change without holding it, and what a checkpoint does not have: options, stream, classes, globals.

A note of it is taken when the method was constructed; what differs from it later was changed by the method.
"""

import dis
import functools
import io
import itertools
import random
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.utils.state import Origin

PLAIN = (type(None), bool, int, float, complex, str, bytes)
LARGE = 1 << 20  # entries from which on a tensor is known by the number of its changes


class Outside:
    """The note.

    Args:
        origin: the method as it was constructed.
    """

    def __init__(self, origin: "Origin"):
        self.origin = origin
        # A stream and a transform keep private tables of their own, filled as they go.
        self.private = {name: {k for k in _attributes(owner) if k[0] == "_"} for name, owner in origin.owned.items()}
        self.note = self._take()

    def changed(self) -> str:
        """A name for something that is not as it was, '' where all is."""
        now = self._take()
        return next((name for name in (*self.note, *now) if not _equal(self.note.get(name), now.get(name))), "")

    def _take(self) -> dict[str, Any]:
        origin = self.origin
        roots: dict[str, Any] = {}
        for name, owner in origin.owned.items():
            if isinstance(owner, torch.Generator | np.random.RandomState):
                continue
            left = _set_by(type(owner)) | self.private[name] | (set(origin.free) if name == "args" else set())
            roots |= {f"{name}.{k}": _Numbers(v) for k, v in _attributes(owner).items() if k not in left}
            if isinstance(owner, types.FunctionType):
                roots |= {name: owner}
        for name, value in origin.code.items():
            if isinstance(value, types.FunctionType) and "." not in name[5:]:
                roots |= {f"function {name}": value}
        kinds = {type(part) for part in (*origin.parts.values(), origin.owned.get("dataset"))} - {type(None)}
        file = vars(sys.modules[type(origin.model).__module__])
        own = {v for v in file.values() if isinstance(v, type) and v.__module__ == type(origin.model).__module__}
        for cls in sorted(
            {c for kind in kinds | own for c in kind.__mro__}, key=lambda c: (c.__module__, c.__qualname__)
        ):
            if cls.__module__.partition(".")[0] not in ("builtins", "abc", "typing"):
                parts = {k: v for k, v in vars(cls).items() if not k.startswith("__")}
                roots |= {f"class attribute {cls.__qualname__}.{k}": v for k, v in parts.items()}
        roots |= {f"global {k}": v for k, v in file.items() if not k.startswith("__")}
        note: dict[str, Any] = {}
        for name, value in roots.items():
            note[name] = list(_content(value, set()))
        return note


def outside_of(origin: "Origin") -> Outside:
    """The note of what is outside of a method."""
    return Outside(origin)


def _attributes(owner: Any) -> dict[str, Any]:
    return getattr(owner, "__dict__", {})


class _Numbers:
    """Marks a value of which the numbers and texts count, and not the objects, which are the run's own."""

    def __init__(self, value: Any):
        self.value = value


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.items())
    if type(value) in (list, tuple):
        for part in value:
            held = part[1] if type(part) is tuple and len(part) == 2 else part
            if type(held) in PLAIN or isinstance(held, list | tuple | dict):
                yield from _numbers(part)
    else:
        yield value if type(value) in PLAIN else id(value)


def _content(value: Any, seen: set[int]) -> Iterator[Any]:
    """Plain values that stand for what a value holds; of objects that are not looked into, which one it is."""
    if type(value) in PLAIN:
        yield value
        return
    if isinstance(value, _Numbers):
        yield from _numbers(value.value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if type(value) in (list, tuple, set, frozenset) or isinstance(value, dict):
        yield type(value).__name__
        for part in value.items() if isinstance(value, dict) else value:
            yield from _content(part, seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from _content(value.__func__, seen)
    elif isinstance(value, types.FunctionType):
        if not value.__module__ or value.__module__.partition(".")[0] not in ("torch", "numpy"):
            marks = {k: v for k, v in vars(value).items() if k not in ("__wrapped__", "hooked")}
            yield value.__qualname__
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            for part in (value.__defaults__, value.__kwdefaults__, marks, cells):
                yield from _content(part, seen)
    elif isinstance(value, Tensor):
        small = value.numel() <= LARGE and value.device.type != "meta" and value.layout is torch.strided
        yield value.detach().clone() if small else (id(value), value._version)
    elif type(value) is np.ndarray and value.dtype.kind != "O":
        yield value.tobytes()
    elif isinstance(value, random.Random):
        yield value.getstate() if type(value) is random.Random else id(value)
    elif isinstance(value, np.random.Generator):
        yield repr(value.bit_generator.state)
    elif isinstance(value, functools.partial):
        yield from _content([value.func, value.args, value.keywords], seen)
    elif hasattr(type(value), "__next__") and not isinstance(value, io.IOBase):
        try:
            yield from _content(repr(value) if isinstance(value, itertools.count) else value.__reduce__(), seen)
        except TypeError:
            yield object()  # a generator: where it is cannot be seen without moving it
    elif isinstance(value, nn.Module):
        for part in (*value.parameters(), *value.buffers()):
            yield from _content(part, seen)
    elif type(value).__module__.startswith("palimpsest_dropin_") and hasattr(value, "__dict__"):
        yield from _content(vars(value), seen)
    else:
        yield id(value)


@functools.cache
def _set_by(cls: type) -> frozenset[str]:
    """Names of attributes that the methods of a class set, `__init__` apart."""
    out: set[str] = set()
    for c in cls.__mro__:
        for name, part in vars(c).items():
            if isinstance(part, types.FunctionType) and name != "__init__":
                out |= {i.argval for i in dis.get_instructions(part.__code__) if i.opname == "STORE_ATTR"}
    return frozenset(out)


def _equal(a: list | None, b: list | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and torch.equal(x, y)):
                return False
        elif type(x) is not type(y) or not (x == y or (x != x and y != y)):
            return False
    return True
