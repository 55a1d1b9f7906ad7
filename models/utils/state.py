"""Everything a method remembers, as one pickle that cannot run code.

`torch.save` writes the method as it is, with its modules, tensors, optimisers, lists and objects. What belongs to the
run (options, stream, loss, transform) and all code (functions, classes) is written as a name, for which the method that
reads the file has its own. `torch.load(weights_only=True)` reads it, which may call what is in
`models/utils/readers.py` and nothing else.

A method author writes nothing for this. What would not come back the same (an iterator, a hook, an option that the
method changed, a set of texts) is refused by its name when it is to be saved.
"""

import enum
import functools
import io
import pathlib
import pickle
import random
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.utils.outside import outside_of
from models.utils.readers import (
    BIT_GENERATORS,
    CODE,
    LEFT_OUT,
    MAKERS,
    MODULE_HOOKS,
    NUMBERS,
    READERS,
    SCALARS,
    TABLES,
    Reading,
    bound,
    code,
    instance,
    is_plain,
    leaf,
    made,
    member,
    owned,
    read_by,
)
from models.utils.walk import Unkept, Walk, refusal, same_value
from utils.errors import UserError

OWNED = ("args", "dataset", "loss", "transform", "normalization_transform")
BUILTINS = {kind.__name__: kind for kind in (list, dict, tuple, int, float, bool, str, set, OrderedDict, Counter)}
CALLED = (type, types.FunctionType, types.BuiltinFunctionType)
NATIVE = {*SCALARS, dict, list, tuple, set, frozenset}
BY_TORCH = {set, frozenset, complex, bytearray, OrderedDict, Counter, torch.Size, torch.device, nn.Parameter, Tensor}
HOUSE = (
    "models.utils.", "backbone.", "utils.buffer", "torch.nn.modules.", "torch.optim.", "torchvision.", "timm.", "peft.",
)  # fmt: skip


class Origin:
    """A method as it was constructed: what a checkpoint of it may name.

    Args:
        model: the method.
        free: options that the runner itself changes on the way.
    """

    def __init__(self, model: nn.Module, free: tuple[str, ...] = ()):
        self.model, self.free, self.tried = model, free, False
        self.parts = dict(model.named_modules())
        self.places = {id(part): name for name, part in self.parts.items()}
        self.hooks = {name: _hooks(part) for name, part in self.parts.items()}
        named = [*model.named_parameters(), *model.named_buffers()]
        self.shapes = {name: list(tensor.shape) for name, tensor in named}
        self.owned = {name: value for name in OWNED if (value := vars(model).get(name)) is not None}
        self.owned |= {"torch's generator": torch.default_generator, "numpy's generator": np.random.mtrand._rand}
        self.names = {id(value): name for name, value in self.owned.items()}
        mine = vars(sys.modules[type(model).__module__])
        classes = {c for part in self.parts.values() for c in type(part).__mro__} - {object}
        self.files = {c.__module__ for c in classes} - {"builtins"}
        self.code = {f"file.{name}": value for name, value in mine.items() if isinstance(value, CODE)}
        self.labels = {id(value): label for label, value in self.code.items()}
        self.roots: dict[int, tuple] = {}
        walk = Walk(self, learn=True)
        walk.visit(model, "")
        self.settings = {path: value for path, value in walk.flat.items() if type(value) in SCALARS}
        self.surroundings = outside_of(self)

    def form(self, value: Any) -> Any:
        """How a value is written: (reader, its arguments), or NotImplemented for what torch writes itself.

        Raises:
            Unkept: it would not come back the same.
        """
        kind = type(value)
        if id(value) in self.names:
            return owned, (self.names[id(value)],)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if kind in (
            Counter,
            OrderedDict,
            torch.dtype,
            torch.device,
            torch.Size,
            bytearray,
            complex,
            torch.storage.TypedStorage,
        ):
            return NotImplemented
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, torch.optim.Optimizer):
            return self._instance(value, _of_optimizer(value))
        if kind is types.MethodType and getattr(type(value.__self__), value.__name__, None) is value.__func__:
            return bound, (value.__self__, value.__name__)
        if isinstance(value, CODE):
            return code, (self._label(value),)
        if kind is np.ndarray:
            return made, ("array", self._memory(value), value.flags.writeable)
        if isinstance(value, np.generic) and value.dtype.name in NUMBERS:
            return made, ("number", value.dtype.name, value.item())
        if kind is functools.partial and not vars(value):
            return made, ("partial", value.func, value.args, value.keywords)
        if kind is deque:
            return made, ("deque", list(value), value.maxlen)
        if kind is defaultdict:
            return made, ("defaultdict", value.default_factory, dict(value))
        if kind in (slice, range):
            return made, (kind.__name__, value.start, value.stop, value.step)
        if isinstance(value, pathlib.PurePath) and kind.__name__ in MAKERS:
            return made, (kind.__name__, str(value))
        if isinstance(value, enum.Enum) and self.class_of(kind.__module__, kind.__qualname__) and value.name:
            return member, (kind.__module__, kind.__qualname__, value.name)
        if (generator := _generator(value)) is not None:
            return generator
        if is_plain(kind) and hasattr(value, "__dict__"):
            return self._instance(value, vars(value))
        raise Unkept(f"a {kind.__name__}")

    def class_of(self, module: str, name: str) -> type | None:
        """A class that a stored state may name, None for any other."""
        if not (module in self.files or module == "argparse" and name == "Namespace" or module.startswith(HOUSE)):
            return None
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = vars(found).get(part) if isinstance(found, type | types.ModuleType) else None
        return found if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name) else None

    def code_of(self, label: str) -> Any:
        """The function, class or module that a stored name stands for."""
        where, _, name = label.rpartition(":")
        if where == "builtins":
            return BUILTINS[name]
        if where == "torch" and name in dir(Tensor):  # functions of tensors, not those of files
            return vars(torch)[name]
        if where == "torch.nn.functional" and getattr(vars(nn.functional)[name], "__module__", "") == where:
            return vars(nn.functional)[name]
        return self.code[label]

    def _label(self, value: Any) -> str:
        name = getattr(value, "__name__", "")
        if BUILTINS.get(name) is value:
            return f"builtins:{name}"
        for module in (torch, nn.functional):
            label = f"{module.__name__}:{name}"
            if vars(module).get(name) is value and (module is not torch or name in dir(Tensor)):
                return label
        if id(value) not in self.labels:
            raise Unkept(f"a {type(value).__name__} that was not there when the method was constructed")
        owner = getattr(value, "__self__", None)
        hidden = isinstance(value, types.BuiltinFunctionType) and not isinstance(owner, types.ModuleType | type | None)
        if hidden and owner is not random._inst and owner is not np.random.mtrand._rand:
            raise Unkept(f"a method of a {type(owner).__name__}")
        self.check_cells(value)
        return self.labels[id(value)]

    def check_cells(self, function: Any) -> None:
        """Refuse a function that holds more than the method itself and constants: a fresh one holds its own."""
        for cell in getattr(function, "__closure__", None) or ():
            held = cell.cell_contents
            if held is not self.model and id(held) not in self.names and not _is_constant(held):
                raise Unkept(f"a function that holds a {type(held).__name__}")

    def _tensor(self, value: Tensor) -> Any:
        kind, marks = type(value), vars(value)
        if kind not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            raise Unkept(f"a {kind.__name__} of layout {value.layout}")
        if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
            raise Unkept("a tensor with a hook")
        if hidden := [name for name in marks if hasattr(Tensor, name)]:
            raise Unkept("it hides what a tensor has", hidden[0])
        if not value.is_leaf and _can_go_back(value):
            raise Unkept("a tensor that still hangs on its graph: detach it")
        gradient = value.grad if value.is_leaf else None
        if kind is Tensor and not value.requires_grad and gradient is None and not marks:
            return NotImplemented
        learns = value.is_leaf and value.requires_grad
        return leaf, (value.detach(), kind is nn.Parameter, learns, {"grad": gradient, **marks})

    def _module(self, value: nn.Module) -> tuple:
        place, hooks = self.places.get(id(value)), _hooks(value)
        if hooks != self.hooks.get(place, {}):
            raise Unkept("a hook registered or removed during training")
        for table in hooks.values():
            for hook in table.values() if isinstance(table, dict) else ():
                self.check_cells(getattr(hook, "__func__", hook))
        attributes = {name: part for name, part in vars(value).items() if name not in LEFT_OUT}
        for table, kind in zip(TABLES, (Tensor, Tensor, nn.Module), strict=True):
            if type(attributes.get(table)) is not dict or not all(
                type(k) is str and isinstance(v, kind | None) for k, v in attributes[table].items()
            ):
                raise Unkept("a table of other things", table)
        attributes["_non_persistent_buffers_set"] = sorted(value._non_persistent_buffers_set)
        return self._instance(value, attributes, place)

    def _instance(self, value: Any, attributes: dict, place: str | None = None) -> tuple:
        cls = type(value)
        if place is None and self.class_of(cls.__module__, cls.__qualname__) is not cls:
            raise Unkept(f"a {cls.__name__}")
        for name in attributes:
            if type(name) is not str or name.startswith("__") or name in _methods(cls):
                raise Unkept("it hides a method", str(name))
        return instance, (cls.__module__, cls.__qualname__, place, attributes)

    def _memory(self, value: np.ndarray) -> Tensor:
        """The memory of an array, of which several arrays may be views, as a tensor."""
        root: Any = value
        while isinstance(root.base if isinstance(root, np.ndarray) else None, np.ndarray | Tensor):
            root = root.base
        try:
            if id(root) not in self.roots:
                self.roots[id(root)] = root, root if isinstance(root, Tensor) else torch.from_numpy(root)
            base = self.roots[id(root)][1]
            if value.dtype != root.dtype and not isinstance(root, Tensor):
                raise TypeError
            start = value.__array_interface__["data"][0] - base.untyped_storage().data_ptr()
            strides = [stride // value.itemsize for stride in value.strides]
            return base.detach().as_strided(value.shape, strides, start // value.itemsize)
        except (TypeError, ValueError, RuntimeError):
            raise Unkept(f"an array of {value.dtype}, or of reversed axes") from None


# ---- writing and reading


def origin_of(model: nn.Module, free: tuple[str, ...] = ()) -> Origin:
    """What a method was when it was constructed; the runner asks for it right then."""
    if "_origin" not in vars(model):
        vars(model)["_origin"] = Origin(model, free)
    return model._origin


def describe(model: nn.Module, most: int = sys.maxsize) -> dict[str, Any]:
    """All that a method remembers, by name: tensors, plain values and words for the rest, equal for equal states
    whatever the process.

    Args:
        most: entries from which on the state is refused.

    Raises:
        UserError: an attribute would not come back the same; the line names it.
    """
    walk = Walk(origin_of(model), most=most)
    walk.visit(model, "")
    walk.check_memory()
    return walk.flat


def check(model: nn.Module) -> None:
    """Refuse what would not come back the same; at the first time, by writing and reading it.

    Raises:
        UserError: names the attribute.
    """
    origin = origin_of(model)
    if changed := origin.surroundings.changed():
        raise UserError(
            f"{changed} was changed by {model.NAME} and is no part of a checkpoint: keep an attribute instead"
        )
    before = describe(model)
    if origin.tried:
        return
    file = io.BytesIO()
    try:
        write({"model": model}, file, model)
        file.seek(0)
        reading = Reading(origin, into=False)
        with read_by(reading):
            read = torch.load(file, weights_only=True)["model"]
        reading.finish()
        other = copy(origin)
        other.model, other.places = read, reading.places
        walk = Walk(other)
        walk.visit(read, "")
    except (pickle.PickleError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as e:
        raise UserError(f"{model.NAME} cannot be kept in a checkpoint: {type(e).__name__} {e}"[:500]) from None
    for name in (*before, *walk.flat):
        if not same_value(before.get(name), walk.flat.get(name)):
            raise refusal(origin, name, "it comes back as another one")
    origin.tried = True


def write(state: dict[str, Any], file, model: nn.Module) -> None:
    """`torch.save`, with the method and what it holds as described above."""
    origin, written = origin_of(model), {}
    origin.roots.clear()

    class Writer(pickle._Pickler):
        def reducer_override(self, value):
            kind = type(value)
            if kind in NATIVE or isinstance(value, CALLED) and _is_allowed(value):
                return NotImplemented
            if id(value) not in written:
                written[id(value)] = origin.form(value), value
            return written[id(value)][0]

        def save_reduce(self, function, given, *more, obj=None):
            """An object within its own attributes is written there from its name and the same dict of attributes."""
            if function not in READERS:
                return super().save_reduce(function, given, *more, obj=obj)
            super().save_reduce(function, (*given,))  # a tuple within itself could not be read
            if id(obj) not in self.memo:
                self.memoize(obj)

    module = types.SimpleNamespace(__name__="state", Pickler=Writer)
    torch.save(state, file, pickle_module=module)


def read_rest(file) -> Any:
    """What was written, without the method."""
    with read_by(None):
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


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

    reading = Reading(origin_of(model), into=True)
    with read_by(reading):
        found = torch.load(file, map_location=place, weights_only=True)["model"]
    if found is not model:
        raise ValueError("no state of a method")
    reading.finish()
    describe(model, most)


def keep_settings(model: nn.Module, saved: dict[str, Any]) -> None:
    """Where numbers and texts of a stored method are what they were at its construction, give them this run's value.

    Args:
        saved: name -> value when the stored method was constructed.
    """
    for name, mine in origin_of(model).settings.items():
        where, _, attribute = name.rpartition(".")
        part = dict(model.named_modules()).get(where)
        if part is None or name not in saved or attribute not in vars(part) or mine == saved[name]:
            continue
        if type(vars(part)[attribute]) is type(saved[name]) and vars(part)[attribute] == saved[name]:
            vars(part)[attribute] = mine


# ---- small questions


def _hooks(part: nn.Module) -> dict[str, Any]:
    return {t: dict(v) if isinstance(v, dict) else v for t in MODULE_HOOKS if (v := vars(part).get(t))}


def _of_optimizer(value: torch.optim.Optimizer) -> dict[str, Any]:
    """The attributes of an optimiser; its hooks are kept where they are the runner's."""
    out = dict(vars(value))
    if "step" in out and getattr(out["step"], "_wrapped_by_lr_sched", False):
        del out["step"]  # a schedule's warning, no more
    for table in [name for name, part in out.items() if "hook" in name and isinstance(part, dict)]:
        hooks = list(out[table].values())
        if not all(type(hook).__module__ == "models.utils.continual_model" for hook in hooks):
            raise Unkept("a hook", table)
        out[table] = OrderedDict((-1 - i, hook) for i, hook in enumerate(hooks))  # no number torch gives to another
    return out


def _generator(value: Any) -> tuple | None:
    if isinstance(value, torch.Generator):
        return made, ("torch generator", value.get_state(), value.device.type)
    if isinstance(value, np.random.BitGenerator) and type(value).__name__ in BIT_GENERATORS:
        seeds = getattr(value, "seed_seq", None)
        known = isinstance(seeds, np.random.SeedSequence)
        told = (seeds.entropy, seeds.spawn_key, seeds.n_children_spawned) if known else (0, (), 0)
        return made, ("bit generator", type(value).__name__, value.state, told)
    if type(value) is np.random.Generator:
        return made, ("numpy generator", value.bit_generator)
    if type(value) is np.random.RandomState:
        state = value.get_state(legacy=False)
        return made, ("numpy random", value._bit_generator, state["has_gauss"], state["gauss"])
    return (made, ("python random", value.getstate())) if type(value) is random.Random else None


def _is_allowed(value: Any) -> bool:
    """Whether torch or a reader makes values with it, so that it stands in a file as it is."""
    if isinstance(value, type):
        return (
            value in BY_TORCH or value.__module__ in ("torch", "torch.storage") and value.__name__.endswith("Storage")
        )
    return value in READERS or value.__module__ in ("torch._utils", "torch._tensor", "torch.serialization", "_codecs")


@functools.cache
def _methods(cls: type) -> frozenset[str]:
    kinds = types.FunctionType | staticmethod | classmethod
    return frozenset(name for c in cls.__mro__ for name, part in vars(c).items() if isinstance(part, kinds))


def _is_constant(value: Any) -> bool:
    if isinstance(value, types.FunctionType) and value.__closure__:
        return all(_is_constant(cell.cell_contents) for cell in value.__closure__)
    return isinstance(value, (*SCALARS, *CODE)) or (type(value) is tuple and all(map(_is_constant, value)))


def _can_go_back(value: Tensor) -> bool:
    """Whether a backward pass could still go through the graph of a tensor."""
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_"):
                try:
                    getattr(node, name)
                except RuntimeError:
                    return False
        todo += [following for following, _ in node.next_functions]
    return True
