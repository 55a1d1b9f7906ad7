"""Everything a method remembers, in one file that cannot run code.

`torch.save` writes the method with the pickler below: an object as the name of its class, with its attributes in a
table of their own ("held"), so that objects may hold one another; what belongs to the run (options, stream, loss,
transform) and functions as names, for which the method that reads the file has its own. It is read by
`torch.load(weights_only=True)`, which may call `make` and what torch itself allows, no constructor. A method author
writes nothing for this. What is not known here to come back the same is refused by its name.
"""

import argparse
import copy
import io
import pickle
import random
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.models.utils.outside import keeps_order, note_of, same_value
from palimpsest.utils.errors import UserError

OWNED = ("args", "dataset", "loss", "transform", "normalization_transform")
SCALARS = (type(None), bool, int, float, str, bytes)
BY_TORCH = (OrderedDict, Counter, torch.dtype, torch.device, torch.Size, bytearray, complex)
HOUSE = ("palimpsest.models.utils.", "palimpsest.backbone.", "palimpsest.utils.buffer")
HOUSE += ("torch.nn.modules.", "torch.optim.", "palimpsest.utils.optimise.eager")
TABLES = {"_parameters": Tensor, "_buffers": Tensor, "_modules": nn.Module}
HOOKS = [name for name in vars(nn.Module()) if "hook" in name]
NOT_HELD = {*HOOKS, "_origin", "_compiled_call_impl", "_proximal_step"}  # of a module: the one that reads has its own
NUMBERS = [np.dtype(f"{sign}int{n}").type for sign in ("", "u") for n in (8, 16, 32, 64)]
NUMBERS += [np.bool_, np.float16, np.float32, np.float64]
NAMED: dict[str, Any] = {kind.__name__: kind for kind in (dict, float, int, list, str)}
for _name, _function in [*vars(torch).items(), *vars(nn.functional).items()]:  # functions of tensors, not of files
    if isinstance(_function, types.BuiltinFunctionType) and hasattr(Tensor, _name):
        NAMED[f"torch.{_name}"] = _function
    elif getattr(_function, "__module__", "") == nn.functional.__name__ and not isinstance(_function, type):
        NAMED[f"F.{_name}"] = _function


class Origin:
    """A method as it was constructed: what a checkpoint of it may name.

    Args:
        model: the method.
        free: options that the runner itself changes on the way.
    """

    def __init__(self, model: nn.Module, free: tuple[str, ...] = ()):
        self.model, self.free, self.tried, self.parts = model, free, False, dict(model.named_modules())
        self.places = {id(part): name for name, part in self.parts.items()}
        self.kinds = {name: (type(part), _hooks(part)) for name, part in self.parts.items()}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.shapes = {name: list(tensor.shape) for name, tensor in tensors}
        held = [(f"{name}.{k}".lstrip("."), v) for name, part in self.parts.items() for k, v in vars(part).items()]
        self.settings = {name: value for name, value in held if type(value) in SCALARS}
        self.classes = {argparse.Namespace, *(type(value) for _, value in held)}
        self.files = {c.__module__ for part in self.parts.values() for c in type(part).__mro__} - {"builtins"}
        self.owned = {name: value for name in OWNED if (value := vars(model).get(name)) is not None}
        file = vars(sys.modules[type(model).__module__])
        functions = {f"file.{k}": v for k, v in file.items() if type(v) is types.FunctionType and v.__globals__ is file}
        generators = {"torch's generator": torch.default_generator, "numpy's generator": np.random.mtrand._rand}
        self.named = NAMED | functions | generators | self.owned
        self.names = {id(value): name for name, value in self.named.items()}
        self.private = {k: {a for a in getattr(v, "__dict__", ()) if a[0] == "_"} for k, v in self.owned.items()}
        self.note = note_of(self)

    def class_of(self, module: str, name: str) -> type | None:
        """A class of which a stored state may have objects, None for any other name: all they have is in their
        `__dict__`, and nothing runs when they go.
        """
        found = vars(sys.modules.get(module, argparse)).get(name)
        if not isinstance(found, type):
            return None
        ours = module in self.files or module.startswith(HOUSE) or found in self.classes
        if not ours or (found.__module__, found.__qualname__) != (module, name):
            return None
        python = 1 << 9  # the flag of a class that is written in Python
        plain = all(c is object or c.__flags__ & python and not vars(c).get("__slots__") for c in found.__mro__)
        try:
            object.__new__(found)  # refuses a class that has more than its __dict__
        except TypeError:
            return None
        return found if plain and not hasattr(found, "__del__") else None

    def form(self, value: Any) -> tuple[tuple, dict | None] | None:
        """How a value is written: what `make` is given, and an object's attributes; None: as torch writes it.

        Raises:
            ValueError, TypeError, AttributeError: it would not come back the same.
        """
        kind, place = type(value), self.places.get(id(value))
        if id(value) in self.names:
            return ("named", self.names[id(value)]), None
        if kind in (Tensor, nn.Parameter):
            given = _parts_of_tensor(value)
            plain = kind is Tensor and not (given[2] or given[4]) and given[3] is None
            return None if plain else (("tensor", *given), None)
        if kind in KINDS:
            if kind is np.ndarray and not value.flags.writeable:
                raise ValueError("an array that is read-only: copy it")
            return (KINDS[kind][0], *KINDS[kind][1](value)), None
        if kind in BY_TORCH:
            return None
        expected, hooks = self.kinds.get(place) or (self.class_of(kind.__module__, kind.__qualname__), {})
        if kind is not expected:
            raise ValueError(f"a {kind.__name__}")
        # A schedule puts a `step` of its own into an optimiser, for a warning.
        held = {k: v for k, v in vars(value).items() if k not in NOT_HELD and not hasattr(v, "_wrapped_by_lr_sched")}
        _refuse_hidden(value, held)
        if isinstance(value, torch.optim.Optimizer):
            mine = [hook for name, table in held.items() if "hook" in name for hook in table.values()]
            if not all(type(hook).__module__ == "palimpsest.models.utils.continual_model" for hook in mine):
                raise ValueError("a hook")
        elif isinstance(value, nn.Module):
            if (mine := _hooks(value)) != hooks or any("ward" in name for name in mine):
                raise ValueError("a hook")
            for table, of in TABLES.items():
                if type(held[table]) is not dict or not all(isinstance(v, of | None) for v in held[table].values()):
                    raise ValueError(f"{table} of other things")
        return ("object", kind.__module__, kind.__qualname__, place), held


def _parts_of_tensor(value: Tensor) -> tuple:
    if value.layout is not torch.strided or value.is_quantized or value.grad_fn is not None:
        raise ValueError("a tensor on a graph (detach it), or of another layout")
    if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
        raise ValueError("a hook")
    if not value.is_meta and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("it is larger than its memory: clone it")
    marks = _refuse_hidden(value, vars(value))
    return value.detach(), type(value) is nn.Parameter, value.requires_grad, value.grad, marks


def _hooks(part: nn.Module) -> dict[str, Any]:
    return {name: copy.copy(table) for name in HOOKS if (table := vars(part).get(name))}


def _refuse_hidden(value: Any, attributes: dict) -> dict:
    """The attributes of an object, of which none may hide a method of its class."""
    for name in attributes:
        if type(name) is not str or name.startswith("__") or callable(getattr(type(value), name, None)):
            raise ValueError(f"its {name} hides a method")
    return attributes


# ---- reading: all that a checkpoint may call


class _Reading:
    """One state that is being read for a method: into its own modules, or to look at it."""

    def __init__(self, origin: Origin, into: bool):
        self.origin, self.into = origin, into
        self.objects: dict[int, Any] = {}
        self.places: dict[int, str] = {}

    def blank(self, number: int, module: str, name: str, place: str | None) -> Any:
        """An object without attributes, or one of the fresh method's modules where it was one."""
        mine = self.origin.parts.get(place)
        if mine is not None and (place in self.places.values() or type(mine).__qualname__ != name):
            raise ValueError(f"another module in the place of {place or 'the method'}")
        cls = self.origin.class_of(module, name) if mine is None else type(mine)
        out = self.objects[number] = mine if mine is not None and self.into else object.__new__(cls)
        if mine is not None:
            self.places[id(out)] = place
        return out

    def finish(self, held: dict[int, dict]) -> None:
        """Give the objects their attributes, all of which are there now."""
        if held.keys() != self.objects.keys():
            raise ValueError("attributes without an object, or the other way round")
        for number, part in held.items():
            out = self.objects[number]
            if isinstance(out, nn.Module):
                blank, place = vars(nn.Module()), self.places.get(id(out))
                mine = blank if place is None else vars(self.origin.parts[place])
                part = {k: v for k, v in part.items() if k not in NOT_HELD}
                # A pass had no hook when it was saved.
                part |= {k: (blank if "ward" in k else mine)[k] for k in NOT_HELD & mine.keys()}
            object.__setattr__(out, "__dict__", _refuse_hidden(out, part))
            if isinstance(out, torch.optim.Optimizer):
                out._patch_step_function()  # without which its hooks are not called


_reading: _Reading | None = None


def make(number: int, kind: str, *given) -> Any:
    """A blank object, or a value of a kind in `MAKERS`, none of which does more than to make it."""
    if _reading is None:
        return None  # only the rest of a checkpoint is read
    return _reading.blank(number, *given) if kind == "object" else MAKERS[kind][2](*given)


def _make_tensor(data: Tensor, parameter: bool, learns: bool, gradient: Tensor | None, marks: dict) -> Tensor:
    out = nn.Parameter(Tensor.detach(data), learns) if parameter else Tensor.requires_grad_(data, learns)
    out.grad = gradient
    vars(out).update(_refuse_hidden(out, marks))
    return out


def _put(generator: Any, state: Any, method: Callable) -> Any:
    method(generator, state)
    return generator


# kind -> (class, what it is made of, how it is made of that)
MAKERS: dict[str, tuple[type | None, Callable | None, Callable]] = {
    "named": (None, None, lambda name: _reading.origin.named[name]),
    "tensor": (None, None, _make_tensor),
    "array": (np.ndarray, lambda a: (torch.from_numpy(a),), lambda memory: memory.numpy()),
    "deque": (deque, lambda d: (list(d), d.maxlen), deque),
    "defaultdict": (defaultdict, lambda d: (d.default_factory, dict(d)), defaultdict),
    "random": (
        random.Random,
        lambda r: (r.getstate(),),
        lambda state: _put(random.Random(0), state, random.Random.setstate),
    ),
    "bits": (
        np.random.PCG64,
        lambda b: (b.seed_seq.state, b.state),
        lambda seeds, state: _put(
            np.random.PCG64(np.random.SeedSequence(**seeds)), state, np.random.PCG64.state.__set__
        ),
    ),
    "numpy": (np.random.Generator, lambda g: (g.bit_generator,), np.random.Generator),
    "torch": (
        torch.Generator,
        lambda g: (g.device.type, g.get_state()),
        lambda device, state: _put(torch.Generator(device), state.cpu(), torch.Generator.set_state),
    ),
    **{k.__name__: (k, lambda number: (number.item(),), k) for k in NUMBERS},
}
KINDS = {kind: (name, parts) for name, (kind, parts, _) in MAKERS.items() if kind}


class _Look:
    """A look at all that a method holds: `flat` describes it, `forms` and `held` are how it is written."""

    def __init__(self, origin: Origin, most: int = sys.maxsize):
        self.origin, self.most = origin, most
        self.flat: dict[str, Any] = {}
        self.forms: dict[int, tuple] = {}
        self.held: dict[int, dict] = {}
        self.seen: dict[int, tuple[str, Any]] = {}  # with the object: an id is unique only while it lives
        self.memory: dict[int, tuple[int, int, str]] = {}
        self.visit(origin.model, "")
        spans = sorted(self.memory.values())
        for (_, end, first), (start, _, path) in zip(spans, spans[1:], strict=False):
            if start < end:
                raise self.refusal(path, f"it shares its memory with {first}")

    def visit(self, value: Any, path: str) -> None:
        """Note a value and all within it."""
        kind = type(value)
        if len(self.flat) > self.most:
            raise ValueError("more entries than the file can hold")
        if kind in SCALARS:
            self.flat[path] = value
            return
        if id(value) in self.seen:
            self.flat[path] = f"= {self.seen[id(value)][0]}"
            return
        if kind is not tuple:  # whether two equal ones are one, nobody can tell
            self.seen[id(value)] = path, value
        if kind is set and path.endswith("_non_persistent_buffers_set"):
            self.flat[path] = sorted(value)
        elif kind in (list, tuple, set):
            if kind is set and not keeps_order(value):
                raise self.refusal(path, "a set whose order another process would not have")
            self.flat[path] = f"{kind.__name__} of {len(value)}"
            for i, part in enumerate(value):
                self.visit(part, f"{path}[{i}]")
        elif kind in (dict, OrderedDict, Counter):
            self.flat[path] = [key if type(key) in SCALARS else f"key {i}" for i, key in enumerate(value)]
            for i, (key, part) in enumerate(value.items()):
                if type(key) not in SCALARS:
                    self.visit(key, f"{path} key {i}")
                self.visit(part, f"{path}[{key!r}]" if type(key) in SCALARS else f"{path}[{i}]")
        else:
            self.other(value, path)

    def other(self, value: Any, path: str) -> None:
        """Note what is no plain value."""
        try:
            form = self.origin.form(value)
        except (ValueError, TypeError, AttributeError) as e:
            raise self.refusal(path, e) from None
        if form is None:
            return self.tensor(value, path) if isinstance(value, Tensor) else self.flat.update({path: str(value)})
        (kind, *given), held = form
        number = len(self.forms)
        self.forms[id(value)] = make, (number, kind, *given)
        self.flat[f"{path} as"] = [kind, *(part for part in given if type(part) in SCALARS)]
        if kind in ("tensor", "array"):
            self.tensor(given.pop(0), path)
        for part in given:
            if type(part) not in SCALARS:
                self.visit(part, f"{path}.{'grad' if isinstance(part, Tensor) else 'of'}")
        if held is None:
            return
        self.held[number] = held
        for name, part in held.items():
            if name in TABLES:
                self.flat[f"{path}.{name}".lstrip(".")] = list(part)
                for key, inner in part.items():
                    self.visit(inner, f"{path}.{key}".lstrip("."))
            else:
                self.visit(part, f"{path}.{name}".lstrip("."))

    def tensor(self, value: Tensor, path: str) -> None:
        """Note a tensor, and whose memory it is a part of."""
        self.flat[path] = value.detach()
        if not value.is_meta and value.numel():
            memory = value.untyped_storage()
            start = memory.data_ptr()
            owner = self.memory.setdefault(memory._cdata, (start, start + memory.nbytes(), path))[2]
            self.flat[f"{path} memory"] = [owner, value.storage_offset(), *value.stride()]

    def refusal(self, path: str, why: object) -> UserError:
        method = getattr(self.origin.model, "NAME", type(self.origin.model).__name__)
        return UserError(
            f"attribute '{path}' of {method} ({why}) cannot be kept in a checkpoint: keep tensors, numbers, lists, "
            "dicts and copies of networks, or make it in __init__"
        )


# ---- what the runner calls


def origin_of(model: nn.Module, free: tuple[str, ...] = ()) -> Origin:
    """What a method was when it was constructed; the runner asks for it right then."""
    if "_origin" not in vars(model):
        vars(model)["_origin"] = Origin(model, free)
    return model._origin


def describe(model: nn.Module, most: int = sys.maxsize) -> dict[str, Any]:
    """All that a method remembers, by name: tensors, plain values and words, equal for equal states in any process.

    Args:
        most: entries from which on the state is refused.

    Raises:
        UserError: an attribute would not come back the same; the line names it.
    """
    return _Look(origin_of(model), most).flat


def check(model: nn.Module) -> None:
    """Refuse what the method changed and does not hold, and at the first time what would not come back the same: by
    writing and reading it.

    Raises:
        UserError: names the attribute.
    """
    origin = origin_of(model)
    for name in origin.note | (now := note_of(origin)):
        if name not in origin.note or name not in now or origin.note[name] != now[name]:
            raise UserError(f"{name} was changed by {model.NAME}, no checkpoint has it: keep an attribute instead")
    if origin.tried:
        return
    before, reading, file = _Look(origin), _Reading(origin, into=False), io.BytesIO()
    try:
        write({"model": model}, file, model)
        file.seek(0)
        read = copy.copy(origin)
        read.model, read.places = _read(file, reading)["model"], reading.places
        after = _Look(read)
    except (pickle.PickleError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as e:
        raise UserError(f"{model.NAME} cannot be kept in a checkpoint: {type(e).__name__} {e}"[:500]) from None
    for name in before.flat | after.flat:
        if not same_value(before.flat.get(name), after.flat.get(name)):
            raise before.refusal(name, "it comes back as another one")
    origin.tried = True


def write(state: dict[str, Any], file, model: nn.Module) -> None:
    """`torch.save` of plain values, tensors and the method.

    Raises:
        UserError: an attribute would not come back the same; the line names it.
    """
    look = _Look(origin_of(model))

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            return look.forms.get(id(value), NotImplemented)

    module = types.SimpleNamespace(__name__="state", Pickler=Pickler)
    torch.save(state | {"held": look.held}, file, pickle_module=module)


def _read(file, reading: _Reading | None, **how) -> dict[str, Any]:
    global _reading
    _reading = reading
    try:
        with torch.serialization.safe_globals([make]):
            state = torch.load(file, weights_only=True, **how)
    finally:
        _reading = None
    held = state.pop("held")
    if reading:
        reading.finish(held)
    return state


def read_rest(file) -> dict[str, Any]:
    """What was written, without the method."""
    return _read(file, None, map_location="cpu", mmap=True)


def read_into(model: nn.Module, file, most: int, move: bool = False) -> None:
    """Make a fresh method the stored one.

    Args:
        most: entries that the file can hold.
        move: put what was on the CPU on the method's device, too.

    Raises:
        UserError, ValueError, ...: the file is not what `write` writes.
    """

    def place(storage, location):
        device = "cpu" if location == "cpu" and not move else str(model.device)
        return torch.serialization.default_restore_location(storage, device)

    if _read(file, _Reading(origin_of(model), into=True), map_location=place)["model"] is not model:
        raise ValueError("no state of a method")
    describe(model, most)


def keep_settings(model: nn.Module, saved: dict[str, Any]) -> None:
    """Where numbers and texts of a stored method are what they were at its construction, give them this run's value.

    Args:
        saved: name -> value when the stored method was constructed.
    """
    parts = dict(model.named_modules())
    for name, mine in origin_of(model).settings.items():
        place, _, attribute = name.rpartition(".")
        held = vars(parts[place]) if place in parts else {}
        if name in saved and attribute in held and same_value(held[attribute], saved[name]):
            held[attribute] = mine
