"""What a method can change without holding it: options, stream, loss, transform, classes, and globals of its file.

A note of it is taken when the method was constructed. What differs from it later was changed by the method.
"""

import dis
import functools
import pickle
import random
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes)
NUMBERS = (*PLAIN, list, tuple, dict)
MOVING = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def note_of(origin: Any) -> dict[str, Any]:
    """name -> plain values that stand for what surrounds a method (a `state.Origin`)."""
    note: dict[str, Any] = {}
    for name, owner in origin.owned.items():
        attributes = getattr(owner, "__dict__", {})
        # A stream and a transform set some of their attributes themselves, and have private tables.
        left = _set_by(type(owner)) | {*(origin.free if name == "args" else ()), *origin.private[name]}
        note |= {f"{name}.{k}": _content(v, "", True) for k, v in attributes.items() if k not in left}
    module = type(origin.model).__module__
    file = {k: v for k, v in vars(sys.modules[module]).items() if not k.startswith("__")}
    note |= {f"global {k}": _content(v, module) for k, v in file.items()}
    kinds = {type(part) for part in (*origin.parts.values(), origin.owned.get("dataset"))}
    kinds |= {v for v in file.values() if isinstance(v, type) and v.__module__ == module}
    for cls in {c for kind in kinds for c in kind.__mro__ if c.__module__ not in ("builtins", "abc", "typing")}:
        parts = {k: v for k, v in vars(cls).items() if not k.startswith("__")}
        note |= {
            f"class attribute {cls.__module__}.{cls.__qualname__}.{k}": _content(v, module) for k, v in parts.items()
        }
    return note


def _content(value: Any, module: str, numbers: bool = False, within: tuple = ()) -> Any:
    """Plain values that stand for what a value holds: with `numbers`, only the plain ones in lists and dicts; else also
    functions and objects of a file; of others, which one it is.
    """
    if type(value) in PLAIN:
        return value
    if id(value) in within:
        return "within itself"
    look = functools.partial(_content, module=module, numbers=numbers, within=(*within, id(value)))
    if isinstance(value, dict):
        return [(look(k), look(v)) for k, v in value.items() if not numbers or isinstance(v, NUMBERS)]
    if isinstance(value, list | tuple | set | frozenset):
        return [look(part) for part in value if not numbers or isinstance(part, NUMBERS)]
    if isinstance(value, staticmethod | classmethod):
        return look(value.__func__)
    if isinstance(value, types.FunctionType) and value.__module__ == module:
        if hasattr(value, "hooked"):  # torch wraps the `step` of an optimiser when the first one is made
            return look(value.__wrapped__)
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        return [(id(value), value), *map(look, (value.__defaults__, value.__kwdefaults__, vars(value), cells))]
    if isinstance(value, Tensor):
        return id(value), value._version, value
    if isinstance(value, nn.Module):
        return [look(tensor) for tensor in (*value.parameters(), *value.buffers())]
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, MOVING) or hasattr(type(value), "__next__"):
        try:
            return pickle.dumps(value)
        except (TypeError, AttributeError):
            return object()  # a generator, say: where it is cannot be told, so that it is never the same
    if type(value).__module__ == module and hasattr(value, "__dict__"):
        return look(vars(value))
    return id(value), value  # which is kept, since an id is unique only while its object lives


@functools.cache
def _set_by(cls: type) -> frozenset[str]:
    """Names of attributes that the methods of a class set, `__init__` apart."""
    codes = [f.__code__ for c in cls.__mro__ for k, f in vars(c).items() if hasattr(f, "__code__") and k != "__init__"]
    return frozenset(i.argval for code in codes for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")


def same_value(a: Any, b: Any) -> bool:
    """Whether two entries of a description are the same; nan equals nan."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return same and (a.is_meta or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def keeps_order(value: set) -> bool:
    """Whether another process lists the same integers in the same order, now and after more of them."""
    other = set(list(value))
    same = all(type(part) is int for part in value) and list(other) == list(value)
    return same and (list(value) == list(range(len(value))) or sys.getsizeof(other) == sys.getsizeof(value))
