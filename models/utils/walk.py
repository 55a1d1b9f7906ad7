"""A look at all that a method holds: to describe it, and to refuse by its name what cannot be kept."""

import sys
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.utils.readers import CODE, SCALARS, TABLES, instance, leaf
from utils.errors import UserError

if TYPE_CHECKING:
    from models.utils.state import Origin


class Unkept(ValueError):
    """Why a value cannot be kept; `name` where it is an attribute of the value that cannot."""

    def __init__(self, what: str, name: str = ""):
        super().__init__(what)
        self.name = name


class Walk:
    """A look at all that an object holds, in `flat`. With `learn`, notes the code that a fresh method has."""

    def __init__(self, origin: "Origin", learn: bool = False, most: int = sys.maxsize):
        self.origin, self.learn, self.most = origin, learn, most
        self.flat: dict[str, Any] = {}
        self.seen: dict[int, str] = {}
        self.kept: list[Any] = []  # an id is unique only while its object lives
        self.memory: dict[int, tuple[int, str]] = {}
        self.spans: list[tuple[int, int, int, str]] = []
        origin.roots.clear()

    def visit(self, value: Any, path: str) -> None:
        """Note a value and all within it."""
        kind = type(value)
        if len(self.flat) > self.most:
            raise ValueError("more entries than the file can hold")
        if kind in SCALARS:
            self.flat[path] = value
            return
        if id(value) in self.seen:
            self.flat[path] = f"= {self.seen[id(value)]}"
            return
        if kind not in (tuple, frozenset):  # whether two equal ones are one, nobody can tell
            self.seen[id(value)] = path
        self.kept.append(value)
        if kind in (dict, OrderedDict, Counter):
            self.mapping(value, path, "{}[{}]")
        elif kind in (list, tuple, set, frozenset):
            if kind in (set, frozenset) and not _keeps_order(value) and not self.learn:
                raise refusal(self.origin, path, "a set whose order another process would not have")
            self.flat[path] = f"{kind.__name__} of {len(value)}"
            for i, part in enumerate(value):
                self.visit(part, f"{path}[{i}]")
        else:
            self.other(value, path)

    def mapping(self, value: dict, path: str, form: str) -> None:
        """Note a dict, and the order of its keys."""
        labels = []
        for i, (key, part) in enumerate(value.items()):
            if type(key) in SCALARS:
                labels.append(key if "[" not in form else repr(key))
            else:
                self.visit(key, f"{path} key {i}")
                labels.append(self.seen.get(id(key), f"entry {i}"))
            self.visit(part, form.format(path, labels[-1]).lstrip("."))
        self.flat[path + (" order" if "[" not in form else "")] = labels

    def other(self, value: Any, path: str) -> None:
        """Note what is no plain value."""
        if self.learn and isinstance(value, CODE) and id(value) not in self.origin.labels:
            self.origin.labels[id(value)], self.origin.code[path] = path, value
        try:
            form = self.origin.form(value)
        except Unkept as e:
            if self.learn:
                return
            raise refusal(self.origin, f"{path}.{e.name}".strip(".") if e.name else path, e) from None
        if form is NotImplemented:
            if isinstance(value, Tensor):
                self.tensor(value, path)
            else:
                self.flat[path] = f"{type(value).__name__} {value}"
            return
        self.kept.append(form)
        function, given = form
        if function is instance:
            self.flat[path] = f"{given[0]}.{given[1]}"
        else:
            self.flat[path] = [function.__name__, *(v for v in given if type(v) in SCALARS)]
        for i, part in enumerate(given):
            if i and function in (instance, leaf) and type(part) is dict:
                for name, inner in part.items():
                    if name in TABLES and isinstance(value, nn.Module):
                        self.mapping(inner, f"{path}", "{}.{}")
                    else:
                        self.visit(inner, f"{path}.{name}".lstrip("."))
            elif isinstance(part, Tensor) and function is not instance:
                self.tensor(part, path if function is leaf else f"{path}.{i}")
            elif type(part) not in SCALARS:
                self.visit(part, f"{path}.{i}")

    def tensor(self, value: Tensor, path: str) -> None:
        """Note a tensor, and whose memory it is a part of."""
        self.flat[path] = value.detach()
        self.kept.append(value)
        if value.device.type == "meta" or not value.numel():
            return
        storage = value.untyped_storage()
        start = storage.data_ptr()
        if start not in self.memory:
            self.memory[start] = storage._cdata, path
            self.spans.append((start, start + storage.nbytes(), storage._cdata, path))
        elif self.memory[start][0] != storage._cdata:
            raise refusal(self.origin, path, f"it shares its memory with {self.memory[start][1]}")
        where = [self.memory[start][1], value.storage_offset(), list(value.stride())]
        if where != [path, 0, list(torch.empty(value.shape, device="meta").stride())]:
            self.flat[f"{path} memory"] = where

    def check_memory(self) -> None:
        """Refuse tensors and arrays that share memory without knowing of each other."""
        self.spans.sort()
        for (_, end, _, first), (start, *_, path) in zip(self.spans, self.spans[1:], strict=False):
            if start < end:
                raise refusal(self.origin, path, f"it shares its memory with {first}")


def refusal(origin: "Origin", path: str, why: object) -> UserError:
    method = getattr(origin.model, "NAME", type(origin.model).__name__)
    return UserError(
        f"attribute '{path}' of {method} ({why}) cannot be kept in a checkpoint: keep tensors, "
        "numbers, lists, dicts and copies of networks, or make it in __init__"
    )


def _keeps_order(value: set | frozenset) -> bool:
    """Whether a set made of the same values, in another process, lists them in the same order, and will when it grows:
    its table is as large, or the values are 0, 1, 2 and so on, which any table has in this order.
    """
    other = type(value)(list(value))
    if not all(map(_has_fixed_hash, value)) or list(other) != list(value):
        return False
    return list(value) == list(range(len(value))) or sys.getsizeof(other) == sys.getsizeof(value)


def _has_fixed_hash(value: Any) -> bool:
    if type(value) in (tuple, frozenset):
        return all(map(_has_fixed_hash, value))
    return type(value) in (int, bool, float, complex) and value == value


def same_value(a: Any, b: Any) -> bool:
    """Whether two entries of a description are the same; nan equals nan."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return same and (a.device.type == "meta" or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)))
    return type(a) is type(b) and (a == b or (a != a and b != b))
