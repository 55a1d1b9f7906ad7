"""Everything a method remembers, made part of its `state_dict` whether or not its author thought of it.

PyTorch saves parameters and buffers. Method files also keep plain tensors, lists, dicts, counters, random generators,
deep-copied networks, heads that appear with a task, and optimisers. `Memory` looks at a method when it has been
constructed and again whenever its state is asked for; what has become of it in between is stored as tensors and plain
values, and brought back into a freshly constructed method. What cannot be stored that way (an iterator, an open file,
an object of an unknown class) is refused by name: a checkpoint that leaves something out would resume another run.

A stored value is a number, a text or a dict {"is": kind, ...}; a second mention of one object is a reference, so that
a list of the network's parameters is still one after a resume. Nothing stored can name code to run: objects are updated
in place, and new modules are copies of modules that the method has, or shells of `torch.nn` classes and of classes in
the files the method is made of.
"""

import argparse
import collections
import enum
import functools
import inspect
import logging
import pathlib
import random
import sys
import types
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError

SCALARS = (type(None), bool, int, float, str, bytes)
CONSTANTS = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, functools.partial,
    np.ufunc, torch.layout, torch.memory_format, enum.Enum, range, slice, pathlib.PurePath,
    argparse.Namespace, logging.Logger, type(Ellipsis),
)  # fmt: skip
SEQUENCES = {c.__name__: c for c in (list, tuple, set, frozenset, torch.Size)}
MAPPINGS = {c.__name__: c for c in (dict, collections.OrderedDict, collections.Counter)}
TABLES = ("_modules", "_parameters", "_buffers")
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks",
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks",
)  # fmt: skip
_BASE = {*vars(nn.Module()), "_memory"}
_OPTIMIZER = {*vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))])), "made_by_runner", "step"}


class Memory:
    """The state of a method beyond its parameters and buffers.

    Args:
        model: the method, just constructed; what it holds now a fresh one will hold too.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.modules = dict(model.named_modules())
        self.shapes = {name: list(tensor.shape) for name, tensor in _tensors(model)}
        self.orders = _orders(model)
        self.structures = {name: _structure(module) for name, module in self.modules.items()}
        self.hooks = {name: _hooks(part) for name, part in (*self.modules.items(), *_tensors(model))}
        # These belong to the run and the stream: wherever a method refers to them, a fresh one has its own.
        owned = ("args", "dataset", "loss", "transform", "normalization_transform")
        self.owned = {name: value for name in owned if (value := vars(model).get(name)) is not None}
        self.owned["torch's generator"] = torch.default_generator
        self.foreign = {id(value): name for name, value in self.owned.items()}
        self.known: dict[str, Any] = {}
        _Writer(self, learn=True).attributes()

    def capture(self) -> dict[str, Any]:
        """The state as plain values and tensors.

        Raises:
            UserError: an attribute cannot be stored; the line names it.
        """
        writer = _Writer(self)
        model = self.model
        return {
            "shapes": self.shapes,
            "modules": writer.new_modules(),
            "aliases": writer.aliases(),
            "order": {name: order for name, order in _orders(model).items() if order != self.orders.get(name)},
            "ties": [[name, first] for name, t in _tensors(model) if (first := writer.tensor_names[id(t)]) != name],
            "empty": _empty(model),
            "gone": sorted(self.modules.keys() - set(writer.module_names.values())),
            "parameters": [name for name, _ in model.named_parameters(remove_duplicate=False)],
            "eval": [name for name, module in model.named_modules() if not module.training],
            "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
            "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            "attributes": writer.attributes(),
            "marks": writer.marks(),
        }

    def restore_structure(self, state: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> None:
        """Give the method the modules, parameters and buffers that the state has, so that they can be loaded.

        Raises:
            UserError: the state is of a network that was constructed otherwise.
        """
        _refuse_other_shapes(state["shapes"], self.shapes)
        reader = _Reader(self)
        for name, module in [(name, reader.module(node)) for name, node in state["modules"]]:
            reader.attach(name, module)
        for name in state["gone"]:
            _owner(self.model, name, "_modules").pop(name.rpartition(".")[2], None)
        for name, first in state["aliases"]:
            reader.attach(name, _submodule(self.model, first))
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        _make_room(self.model, tensors, set(state["parameters"]), state["empty"], self.model.device)
        held, ties = dict(_tensors(self.model)), dict(state["ties"])
        first: set[int] = set()
        for name, value in held.items():
            if name in ties:
                _put(self.model, name, held[ties[name]])
            elif id(value) in first:  # one tensor in a fresh method, two in the saved one
                copy = value.detach().clone()
                _put(self.model, name, nn.Parameter(copy) if isinstance(value, nn.Parameter) else copy)
            first.add(id(value))
        for name, order in state["order"].items():
            for table, names in zip(TABLES, order, strict=True):
                held = vars(_submodule(self.model, name))[table]
                items = {k: held.pop(k) for k in names if k in held}
                held.update(items)

    def restore_values(self, state: dict[str, Any]) -> None:
        """Put plain attributes, optimisers, flags and gradients back, once parameters and buffers are loaded."""
        reader = _Reader(self)
        reader.attributes(state["attributes"])
        reader.marks(state["marks"])
        frozen, evaluating = set(state["frozen"]), set(state["eval"])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        for name, module in self.model.named_modules():
            module.training = name not in evaluating


class _Writer:
    """One look at a method. With `learn`, notes what exists at construction instead of refusing what is unknown."""

    def __init__(self, memory: Memory, learn: bool = False):
        self.memory, self.learn, model = memory, learn, memory.model
        self.module_names = {id(module): name for name, module in model.named_modules()}
        self.tensor_names = {id(tensor): name for name, tensor in reversed(list(_tensors(model)))}
        self.storages: dict[tuple, list[tuple[str, Tensor]]] = {}
        for name, tensor in _tensors(model):
            self.note_storage(tensor, f"tensor {name}")
        self.arrays: list[np.ndarray] = []
        self.optimizers: list[tuple[torch.optim.Optimizer, str, dict]] = []
        # Modules that did not exist at construction, and the module each is modelled on.
        self.templates: dict[str, str] = {}
        self.seen: dict[int, str] = {}
        self.kept: list[Any] = []  # an id is unique only while its object lives

    def new_modules(self) -> list:
        """Modules that were added or replaced since construction, outermost ones with all they contain."""
        out = []
        for name, module in self.memory.model.named_modules():
            if self.memory.modules.get(name) is module or any(_within(name, done) for done, _ in out):
                continue
            out.append((name, self.module(module, name)))
        return [list(pair) for pair in out]

    def attributes(self) -> dict[str, dict[str, Any]]:
        """Plain attributes of every module, by module and name."""
        out: dict[str, dict[str, Any]] = {}
        for name, module in self.memory.model.named_modules():
            self.check_hooks(module, name)
            if nodes := self.plain(module, name):
                out[name] = nodes
        for name, tensor in _tensors(self.memory.model):
            self.check_hooks(tensor, name)
        # Last, when everything that they may train has a name.
        for optimizer, path, node in self.optimizers:
            node |= self.optimizer_state(optimizer, path)
        return out

    def aliases(self) -> list[list[str]]:
        """Further names of modules, outermost ones, with the first name of each."""
        out: list[list[str]] = []
        for name, module in self.memory.model.named_modules(remove_duplicate=False):
            first = self.module_names[id(module)]
            if first != name and not any(_within(name, done) for done, _ in out):
                out.append([name, first])
        return out

    def marks(self) -> dict[str, dict[str, Any]]:
        """Python attributes of parameters and buffers."""
        out = {}
        for name, tensor in _tensors(self.memory.model):
            if marks := _marks(tensor):
                out[name] = {k: self.encode(v, f"{name}.{k}") for k, v in marks.items()}
        return out

    def check_hooks(self, part: nn.Module | Tensor, path: str) -> None:
        """Refuse hooks that a fresh method would not have, or not have any more."""
        if self.learn:
            self.memory.hooks[path] = _hooks(part)
        elif other := _hooks(part) ^ self._known_hooks(path):
            raise self.refusal(_join(path, min(other)[0]), "a hook registered or removed during training")

    def note_storage(self, tensor: Tensor, ref: str) -> None:
        if tensor.layout is torch.strided and tensor.numel():
            self.storages.setdefault(_storage(tensor), []).append((ref, tensor))

    def plain(self, module: nn.Module, path: str) -> dict[str, Any]:
        """What a module keeps besides parameters, saved buffers and modules."""
        values = {k: v for k, v in vars(module).items() if k not in _BASE}
        nodes = {k: self.encode(v, _join(path, k)) for k, v in values.items()}
        for k in sorted(module._non_persistent_buffers_set & module._buffers.keys()):
            nodes[k] = {"is": "buffer", "value": self.encode(module._buffers[k], _join(path, k))}
        return nodes

    def encode(self, value: Any, path: str) -> Any:
        """A value as plain data."""
        kind = type(value)
        if kind in SCALARS:
            return value
        if id(value) in self.memory.foreign:
            return {"is": "owned", "name": self.memory.foreign[id(value)]}
        if isinstance(value, CONSTANTS) and (self.learn or self.same_constant(value, path)):
            self.note(value, path)
            return self.constant(value, path)
        if not _is_value(value):  # of two equal tuples of numbers nobody asks whether they are one
            if to := self.reference(value):
                return {"is": "reference", "to": to}
            self.note(value, path)
        if isinstance(value, Tensor):
            return self.tensor(value, path)
        if isinstance(value, nn.Module):
            return self.module(value, path) | {"state": self.module_state(value, path)}
        if isinstance(value, torch.optim.Optimizer):
            return self.optimizer(value, path)
        if kind.__name__ in SEQUENCES and SEQUENCES[kind.__name__] is kind:
            items = sorted(value, key=repr) if kind in (set, frozenset) else value
            return {"is": kind.__name__, "items": [self.encode(v, f"{path}[{i}]") for i, v in enumerate(items)]}
        if kind is collections.deque:
            items = [self.encode(v, f"{path}[{i}]") for i, v in enumerate(value)]
            return {"is": "deque", "items": items, "maxlen": value.maxlen}
        if kind is collections.defaultdict or kind in MAPPINGS.values():
            node = {"is": kind.__name__, "items": self.items(value, path)}
            if kind is collections.defaultdict:
                node["factory"] = self.encode(value.default_factory, f"{path}.default_factory")
            return node
        if kind is np.ndarray and value.dtype.kind in "biufc" and value.dtype.isnative and value.dtype.itemsize <= 8:
            if any(np.shares_memory(value, other) for other in self.arrays):
                raise self.refusal(path, "an array that shares its memory with another")
            self.arrays.append(value)
            return {"is": "array", "data": torch.from_numpy(np.array(value, order="C"))}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return {"is": "numpy scalar", "dtype": value.dtype.name, "value": value.item()}
        if kind is torch.device:
            return {"is": "device", "type": value.type}
        if kind is torch.dtype:
            return {"is": "dtype", "name": str(value).removeprefix("torch.")}
        generator = self.generator(value, path)
        if generator is not None:
            return generator
        if isinstance(value, CONSTANTS):
            return self.constant(value, path)
        return self.object(value, path)

    def note(self, value: Any, path: str) -> None:
        """Further mentions of an object refer to this one."""
        self.seen.setdefault(id(value), path)
        self.kept.append(value)

    def reference(self, value: Any) -> str | None:
        """What an object that has been met is called."""
        if id(value) in self.tensor_names:
            return f"tensor {self.tensor_names[id(value)]}"
        if id(value) in self.module_names:
            return f"module {self.module_names[id(value)]}"
        return self.seen.get(id(value))

    def items(self, mapping: dict, path: str) -> list:
        return [
            [self.encode(k, f"{path} key {i}"), self.encode(v, f"{path}[{_label(k, i)}]")]
            for i, (k, v) in enumerate(mapping.items())
        ]

    def tensor(self, value: Tensor, path: str) -> dict:
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise self.refusal(path, f"a tensor of layout {value.layout}")
        if not self.learn and (_hooks(value) or _marks(value)):
            raise self.refusal(path, "a tensor with a hook or with attributes of its own")
        known = self.storages.get(_storage(value), []) if value.numel() else []
        self.note_storage(value, path)
        for ref, base in known:
            if base.dtype == value.dtype and _is_whole(base):
                return self.view(value, ref)
        if any(_overlap(base, value) for _, base in known):
            raise self.refusal(path, "a view that shares its memory with another attribute")
        data = value.detach()
        if data.untyped_storage().nbytes() != data.numel() * data.element_size():
            data = data.clone(memory_format=torch.contiguous_format)  # a view would drag its whole storage along
        # A value that still hangs on a graph comes back without it.
        return {
            "is": "tensor",
            "data": data,
            "parameter": isinstance(value, nn.Parameter),
            "leaf": value.requires_grad and value.is_leaf,
            "grad": _gradient(value),
            "host": value.device.type == "cpu",
        }

    def view(self, value: Tensor, ref: str) -> dict:
        return {
            "is": "view",
            "of": ref,
            "shape": [list(value.shape), list(value.stride()), value.storage_offset()],
            "parameter": isinstance(value, nn.Parameter),
            "leaf": value.requires_grad and value.is_leaf,
            "grad": _gradient(value),
        }

    def module(self, module: nn.Module, path: str) -> dict:
        """A module that a fresh method does not have: what it is modelled on, or its classes."""
        if self.learn:
            self.memory.known[path] = module
            self.memory.structures[path] = _structure(module)
            return {"is": "module"}
        structure = _structure(module)
        held = self.memory.known.get(path)
        if held is module and self.memory.structures[path] == structure:
            return {"is": "module", "like": None, "copy": False}
        for name, known in self.memory.modules.items():
            if name and self.memory.structures[name] == structure == _structure(known):
                self.templates[path] = name
                return {"is": "module", "like": name}
        if isinstance(held, nn.Module) and self.memory.structures[path] == structure:
            return {"is": "module", "like": None, "copy": True}
        return {"is": "module", "shell": self.shell(module, path)}

    def shell(self, module: nn.Module, path: str) -> dict:
        cls = type(module)
        if _resolve_class(self.memory.model, cls.__module__, cls.__qualname__) is not cls:
            raise self.refusal(path, f"a {cls.__name__} made during training")
        return {
            "class": [cls.__module__, cls.__qualname__],
            "children": [[k, self.shell(v, f"{path}.{k}")] for k, v in module.named_children()],
            "empty": [k for k, v in module._parameters.items() if v is None],
            "empty buffers": [k for k, v in module._buffers.items() if v is None],
        }

    def module_state(self, module: nn.Module, path: str) -> dict[str, Any]:
        """All of a module that is in a list or dict, and hence in nobody's state_dict."""
        aliases: list[list[str]] = []
        ties: list[list[str]] = []
        for name, part in module.named_modules(remove_duplicate=False):
            if not name or any(_within(name, done) for done, _ in aliases):
                continue
            if ref := self.reference(part):
                aliases.append([name, ref])
            else:
                self.note(part, f"{path}::{name}")
        for name, tensor in _tensors(module):
            if any(_within(name, done) for done, _ in aliases):
                continue
            if ref := self.reference(tensor):
                ties.append([name, ref])
            else:
                self.note(tensor, f"{path}::{name}")
                self.note_storage(tensor, f"{path}::{name}")
            if not self.learn and _marks(tensor):
                raise self.refusal(_join(path, name), "a tensor with attributes of its own")
        own = [(name, part) for name, part in module.named_modules() if not any(_within(name, a) for a, _ in aliases)]
        for name, part in (*own, *_tensors(module)):
            self.check_hooks(part, _join(path, name) if name else path)
        return {
            "aliases": aliases,
            "ties": ties,
            "empty": _empty(module),
            "gradients": {name: g for name, p in module.named_parameters() if (g := _gradient(p)) is not None},
            "tensors": module.state_dict(),
            "parameters": [name for name, _ in module.named_parameters(remove_duplicate=False)],
            "eval": [name for name, part in module.named_modules() if not part.training],
            "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
            "attributes": {name: self.plain(part, _join(path, name) if name else path) for name, part in own},
        }

    def optimizer(self, value: torch.optim.Optimizer, path: str) -> dict:
        hooks, known = len(_hooks(value)), self.known(path)
        if self.learn:
            self.memory.known[path], self.memory.hooks[path] = value, _hooks(value)
        else:
            runner = getattr(value, "made_by_runner", False)
            if not _is_torchs(type(value)) and type(known) is not type(value):
                raise self.refusal(path, f"a {type(value).__name__} made during training")
            if hooks != (len(self._known_hooks(path)) if known is value else runner and bool(self._clips())):
                raise self.refusal(path, "an optimiser with a hook registered or removed during training")
        node = {"is": "optimizer", "class": type(value).__name__, "fresh": known is value}
        self.optimizers.append((value, path, node))
        return node

    def _clips(self) -> float:
        return getattr(getattr(self.memory.model, "args", None), "clip_grad", 0) or 0

    def optimizer_state(self, value: torch.optim.Optimizer, path: str) -> dict:
        groups = [
            [self.encode(p, f"{path}.param_groups[{g}][{i}]") for i, p in enumerate(group["params"])]
            for g, group in enumerate(value.param_groups)
        ]
        state = value.state_dict()
        options = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
        own = {} if _is_torchs(type(value)) else {k: v for k, v in vars(value).items() if k not in _OPTIMIZER}
        return {
            "runner": bool(getattr(value, "made_by_runner", False)),
            "defaults": self.items(value.defaults, f"{path}.defaults"),
            "own": [[k, self.encode(v, f"{path}.{k}")] for k, v in own.items()],
            "shares": [k for k, v in own.items() if getattr(v, "param_groups", None) is value.param_groups],
            "params": groups,
            "options": [self.items(o, f"{path}.param_groups[{g}]") for g, o in enumerate(options)],
            "state": [[k, self.items(v, f"{path}.state[{k}]")] for k, v in state["state"].items()],
        }

    def generator(self, value: Any, path: str) -> dict | None:
        """Random generators by their state."""
        if isinstance(value, torch.Generator):
            return {"is": "torch generator", "state": value.get_state()}
        if type(value) is np.random.Generator and type(value.bit_generator).__name__ in BIT_GENERATORS:
            state = self.encode(value.bit_generator.state, f"{path}.state")
            return {"is": "numpy generator", "class": type(value.bit_generator).__name__, "state": state}
        if type(value) is np.random.RandomState:
            return {"is": "numpy random", "state": self.encode(value.get_state(legacy=False), f"{path}.state")}
        if type(value) is random.Random:
            return {"is": "python random", "state": self.encode(value.getstate(), f"{path}.state")}
        return None

    def constant(self, value: Any, path: str) -> dict:
        if self.learn:
            self.memory.known[path] = value
        elif not self.same_constant(value, path):
            raise self.refusal(path, f"a {type(value).__name__} that was not there when the method was constructed")
        return {"is": "constant"}

    def same_constant(self, value: Any, path: str) -> bool:
        # A copy of a module has bound methods of its own.
        copied = any(_within(path, new) for new in self.templates)
        return _same_constant(self.known(path), value, copied)

    def object(self, value: Any, path: str) -> dict:
        """An object of a plain Python class, by its attributes."""
        if not _is_plain(type(value)):
            if self.learn:
                return {"is": "constant"}
            raise self.refusal(path, f"a {type(value).__name__}")
        if self.learn:
            self.memory.known[path] = value
        elif type(self.known(path)) is not type(value) and not _is_schedule(type(value)):
            raise self.refusal(path, f"a {type(value).__name__} made during training")
        attributes = [[k, self.encode(v, f"{path}.{k}")] for k, v in vars(value).items()]
        return {"is": "object", "class": type(value).__name__, "attributes": attributes}

    def known(self, path: str) -> Any:
        """What was at a place at construction; for a copy of a module, at the same place of the original."""
        for new, original in self.templates.items():
            if _within(path, new):
                return self.memory.known.get(original + path[len(new) :])
        return self.memory.known.get(path)

    def refusal(self, path: str, what: str) -> UserError:
        return UserError(
            f"attribute '{path.lstrip('.')}' of {_name(self.memory.model)} ({what}) cannot be kept in a checkpoint: "
            "keep tensors, numbers, lists, dicts and copies of networks, or make it in __init__"
        )

    def _known_hooks(self, name: str) -> set:
        for new, original in self.templates.items():
            if _within(name, new):
                name = original + name[len(new) :]
                break
        return self.memory.hooks.get(name, set())


class _Reader:
    """Brings stored values back into a fresh method."""

    def __init__(self, memory: Memory):
        self.memory, self.model = memory, memory.model
        self.made: dict[str, Any] = {}
        self.tensors = dict(_tensors(self.model))
        self.taken: dict[int, Any] = {}  # what a fresh method has, and already serves
        self.optimizers: list[tuple[torch.optim.Optimizer, dict, str]] = []
        self.sharing: list[tuple[torch.optim.Optimizer, torch.optim.Optimizer]] = []

    def attributes(self, stored: dict[str, dict[str, Any]]) -> None:
        modules = dict(self.model.named_modules())
        for name in [*stored, *(name for name in modules if name not in stored)]:
            self.plain(stored.get(name, {}), modules[name], name)
        for optimizer, node, path in self.optimizers:
            self.optimizer_state(optimizer, node, path)
        for outer, inner in self.sharing:
            outer.param_groups = inner.param_groups

    def marks(self, stored: dict[str, dict[str, Any]]) -> None:
        for name, nodes in stored.items():
            tensor = self.tensors[name]
            for key, node in nodes.items():
                if key.startswith("_") or hasattr(type(tensor), key):
                    raise ValueError(f"'{key}' is no attribute that a checkpoint may set")
                setattr(tensor, key, self.decode(node, f"{name}.{key}", vars(tensor).get(key)))

    def plain(self, nodes: dict[str, Any], module: nn.Module, path: str) -> None:
        """A module's plain attributes."""
        for name, node in nodes.items():
            if name.startswith("__") or name in _BASE:
                _refuse_name(module, name)
            fresh = vars(module).get(name, module._buffers.get(name))
            if isinstance(node, dict) and node["is"] == "buffer":
                _refuse_name(module, name)
                value = self.decode(node["value"], _join(path, name), fresh)
                if not isinstance(value, Tensor | None):
                    raise ValueError(f"buffer '{name}' is no tensor")
                vars(module).pop(name, None)
                module._buffers[name] = value
                module._non_persistent_buffers_set.add(name)
                continue
            value = self.decode(node, _join(path, name), fresh)
            if value is not fresh or name not in vars(module):
                _refuse_name(module, name)
                vars(module)[name] = value
        for extra in vars(module).keys() - nodes.keys() - _BASE:
            del vars(module)[extra]  # the method had dropped it
        for extra in module._non_persistent_buffers_set - nodes.keys():
            module._buffers.pop(extra, None)
            module._non_persistent_buffers_set.discard(extra)

    def decode(self, node: Any, path: str, fresh: Any) -> Any:
        """The value of a node; `fresh` is what the fresh method has in its place."""
        if type(node) in SCALARS:
            return node
        if not isinstance(node, dict):
            raise ValueError(f"a {type(node).__name__} in the place of '{path}'")
        kind = node["is"]
        if kind == "reference":
            return self.reference(node["to"])
        if kind == "owned":
            return self.memory.owned[node["name"]]
        if kind != "constant" and type(fresh) not in SCALARS:
            if id(fresh) in self.taken:
                fresh = None  # two names of one object in a fresh method, of two in the saved one
            else:
                self.taken[id(fresh)] = fresh
        if kind in SEQUENCES:
            value = self.sequence(node, path, fresh)
        elif kind == "deque":
            value = collections.deque(self.parts(node, path, fresh), node["maxlen"])
        elif kind in MAPPINGS or kind == "defaultdict":
            value = self.mapping(node, path, fresh)
        else:
            value = getattr(self, _DECODERS[kind])(node, path, fresh)
        self.made[path] = value
        return value

    def reference(self, to: str) -> Any:
        kind, _, name = to.partition(" ")
        if kind == "tensor":
            return self.tensors[name]
        return _submodule(self.model, name) if kind == "module" else self.made[to]

    def parts(self, node: dict, path: str, fresh: Any) -> list:
        old = list(fresh) if isinstance(fresh, list | tuple | collections.deque) else []
        return [
            self.decode(part, f"{path}[{i}]", old[i] if i < len(old) else None) for i, part in enumerate(node["items"])
        ]

    def sequence(self, node: dict, path: str, fresh: Any) -> Any:
        parts = self.parts(node, path, fresh)
        if type(fresh) is list and node["is"] == "list":
            fresh[:] = parts
            return fresh
        return SEQUENCES[node["is"]](parts)

    def mapping(self, node: dict, path: str, fresh: Any) -> Any:
        old = fresh if isinstance(fresh, dict) else {}
        items, keys = [], list(old)
        for i, (k, v) in enumerate(node["items"]):
            key = self.decode(k, f"{path} key {i}", keys[i] if i < len(keys) else None)
            items.append((key, self.decode(v, f"{path}[{_label(key, i)}]", old.get(key))))
        if node["is"] == "defaultdict":
            self.decode(node["factory"], f"{path}.default_factory", getattr(fresh, "default_factory", None))
        if isinstance(fresh, dict) and type(fresh).__name__ == node["is"]:
            fresh.clear()
            return _filled(fresh, items)
        if node["is"] == "defaultdict":
            raise UserError(f"attribute '{path}' (a defaultdict) must be made in __init__ to be restored")
        return _filled(MAPPINGS[node["is"]](), items)

    def tensor(self, node: dict, path: str, fresh: Any) -> Tensor:
        data = node["data"].clone()
        data = data if node["host"] else data.to(self.model.device)
        return self._leaf(data, node)

    def view(self, node: dict, path: str, fresh: Any) -> Tensor:
        return self._leaf(self.reference(node["of"]).detach().as_strided(*node["shape"]), node)

    def _leaf(self, data: Tensor, node: dict) -> Tensor:
        value = nn.Parameter(data, node["leaf"]) if node["parameter"] else data.requires_grad_(node["leaf"])
        if node["grad"] is not None:
            value.grad = node["grad"].to(value.device, copy=True)
        return value

    def array(self, node: dict, path: str, fresh: Any) -> np.ndarray:
        return node["data"].numpy().copy()

    def numpy_scalar(self, node: dict, path: str, fresh: Any) -> np.generic:
        return np.dtype(node["dtype"]).type(node["value"])

    def device(self, node: dict, path: str, fresh: Any) -> torch.device:
        if isinstance(fresh, torch.device):
            return fresh
        return torch.device("cpu") if node["type"] == "cpu" else self.model.device

    def dtype(self, node: dict, path: str, fresh: Any) -> torch.dtype:
        value = getattr(torch, node["name"])
        if not isinstance(value, torch.dtype):
            raise ValueError(f"no dtype {node['name']}")
        return value

    def constant(self, node: dict, path: str, fresh: Any) -> Any:
        return fresh

    def held_module(self, node: dict, path: str, fresh: Any) -> nn.Module:
        """A module inside a list or dict."""
        if node.get("like", "") is not None:
            module = self.module(node)
        elif isinstance(fresh, nn.Module):
            module = deepcopy(fresh) if node["copy"] else fresh
        else:
            raise UserError(f"attribute '{path}' is no module in a fresh method")
        state = node["state"]
        aliases = dict(state["aliases"])
        for name, part in module.named_modules(remove_duplicate=False):
            if name:
                self.made.setdefault(f"{path}::{name}", part)
        for name, to in aliases.items():
            part = self.reference(to)
            parent, _, leaf = name.rpartition(".")
            owner = _submodule(module, parent)
            _refuse_name(owner, leaf)
            owner._modules[leaf] = part
        _make_room(module, state["tensors"], set(state["parameters"]), state["empty"], self.model.device)
        module.load_state_dict(state["tensors"])
        ties, tensors = dict(state["ties"]), dict(_tensors(module))
        for name, tensor in tensors.items():
            if name in ties:
                _put(module, name, self.reference(ties[name]))
            else:
                self.made[f"{path}::{name}"] = tensor
        for name, part in module.named_modules():
            part.training = name not in state["eval"]
            if name in state["attributes"]:
                self.plain(state["attributes"][name], part, _join(path, name) if name else path)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        return module

    def module(self, node: dict) -> nn.Module:
        if "like" in node:
            return deepcopy(self.memory.modules[node["like"]])
        return self.shell(node["shell"])

    def shell(self, node: dict) -> nn.Module:
        cls = _resolve_class(self.model, *node["class"])
        if cls is None:
            raise UserError(
                f"the checkpoint holds a module of class {node['class'][1]}, which this method does not use"
            )
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        for name, child in node["children"]:
            module.add_module(name, self.shell(child))
        module._parameters |= dict.fromkeys(node["empty"])
        module._buffers |= dict.fromkeys(node["empty buffers"])
        return module

    def attach(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        owner = self.model.get_submodule(parent)
        _refuse_name(owner, leaf)
        vars(owner).pop(leaf, None)
        owner._modules[leaf] = module

    def optimizer(self, node: dict, path: str, fresh: Any) -> torch.optim.Optimizer:
        name, same = node["class"], type(fresh).__name__ == node["class"]
        cls = getattr(torch.optim, name, None)
        if not (isinstance(fresh, torch.optim.Optimizer) and same and (node["fresh"] or not _is_torchs(cls))):
            dummy = [nn.Parameter(torch.zeros(1, 1))]
            if node["runner"]:
                fresh = self.model.get_optimizer(dummy)
                if type(fresh).__name__ != name:
                    raise UserError(
                        f"the checkpoint was saved with {name}, this run uses {type(fresh).__name__}: "
                        "give the same --optimizer"
                    )
            elif _is_torchs(cls):
                fresh = cls(dummy)
            else:
                raise UserError(f"attribute '{path}': optimiser {name} must be made in __init__ to be restored")
        self.optimizers.append((fresh, node, path))
        return fresh

    def optimizer_state(self, fresh: torch.optim.Optimizer, node: dict, path: str) -> None:
        """What an optimiser trains and remembers, once everything that it may train is there."""
        params = [
            [self.decode(p, f"{path}.param_groups[{g}][{i}]", None) for i, p in enumerate(ps)]
            for g, ps in enumerate(node["params"])
        ]
        defaults = self._items(node["defaults"], f"{path}.defaults")
        own = {k: self.decode(part, f"{path}.{k}", vars(fresh).get(k)) for k, part in node["own"]}
        options = [self._items(o, f"{path}.param_groups[{g}]") for g, o in enumerate(node["options"])]
        fresh.state.clear()
        fresh.param_groups.clear()
        for o, ps in zip(options, params, strict=True):
            fresh.add_param_group({**o, "params": ps})
        state = {k: self._items(v, f"{path}.state[{k}]") for k, v in node["state"]}
        numbered, count = [], 0
        for o, ps in zip(options, params, strict=True):
            numbered.append({**o, "params": list(range(count, count + len(ps)))})
            count += len(ps)
        fresh.load_state_dict({"state": state, "param_groups": numbered})
        fresh.defaults = defaults
        if "_params" in vars(fresh):  # LBFGS
            fresh._params = fresh.param_groups[0]["params"]
        for name, value in own.items():
            _refuse_name(fresh, name)
            vars(fresh)[name] = value
        for name in node["shares"]:
            self.sharing.append((fresh, vars(fresh)[name]))

    def _items(self, items: list, path: str) -> dict:
        return {self.decode(k, path, None): self.decode(v, f"{path}[{_label(k, 0)}]", None) for k, v in items}

    def torch_generator(self, node: dict, path: str, fresh: Any) -> torch.Generator:
        value = fresh if isinstance(fresh, torch.Generator) else torch.Generator()
        value.set_state(node["state"])
        return value

    def numpy_generator(self, node: dict, path: str, fresh: Any) -> np.random.Generator:
        if node["class"] not in BIT_GENERATORS:
            raise ValueError(f"no bit generator {node['class']}")
        value = (
            fresh
            if type(fresh) is np.random.Generator and type(fresh.bit_generator).__name__ == node["class"]
            else np.random.Generator(getattr(np.random, node["class"])())
        )
        value.bit_generator.state = self.decode(node["state"], f"{path}.state", None)
        return value

    def numpy_random(self, node: dict, path: str, fresh: Any) -> np.random.RandomState:
        value = fresh if type(fresh) is np.random.RandomState else np.random.RandomState()
        value.set_state(self.decode(node["state"], f"{path}.state", None))
        return value

    def python_random(self, node: dict, path: str, fresh: Any) -> random.Random:
        value = fresh if type(fresh) is random.Random else random.Random()
        value.setstate(self.decode(node["state"], f"{path}.state", None))
        return value

    def object(self, node: dict, path: str, fresh: Any) -> Any:
        if type(fresh).__name__ != node["class"] or not _is_plain(type(fresh)):
            cls = getattr(torch.optim.lr_scheduler, node["class"], None)
            if cls is None or not _is_schedule(cls):
                raise UserError(f"attribute '{path}' (a {node['class']}) is not there in a fresh method")
            fresh = object.__new__(cls)
        self.made[path] = fresh
        for name, part in node["attributes"]:
            _refuse_name(fresh, name)
            vars(fresh)[name] = self.decode(part, f"{path}.{name}", vars(fresh).get(name))
        for extra in vars(fresh).keys() - {name for name, _ in node["attributes"]}:
            del vars(fresh)[extra]
        return fresh


_DECODERS = {
    "tensor": "tensor",
    "view": "view",
    "array": "array",
    "numpy scalar": "numpy_scalar",
    "device": "device",
    "dtype": "dtype",
    "constant": "constant",
    "module": "held_module",
    "optimizer": "optimizer",
    "torch generator": "torch_generator",
    "numpy generator": "numpy_generator",
    "numpy random": "numpy_random",
    "python random": "python_random",
    "object": "object",
}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers with their names, those that are None left out."""
    for prefix, module in model.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and name not in module._non_persistent_buffers_set:
                yield _join(prefix, name), value


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith((module + ".", module + "["))


def _name(model: nn.Module) -> str:
    return getattr(model, "NAME", type(model).__name__)


def _owner(model: nn.Module, name: str, table: str) -> dict:
    """The table of parameters or buffers that a name belongs to; an empty one where the module is gone."""
    try:
        return getattr(model.get_submodule(name.rpartition(".")[0]), table)
    except AttributeError:
        return {}


def _orders(model: nn.Module) -> dict[str, list[list[str]]]:
    return {name: [list(vars(module)[table]) for table in TABLES] for name, module in model.named_modules()}


def _structure(module: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(part)) for name, part in module.named_modules()]


def _hooks(part: nn.Module | Tensor | torch.optim.Optimizer) -> set[tuple[str, int]]:
    return {(table, key) for table in HOOKS for key in getattr(part, table, None) or ()}


def _marks(tensor: Tensor) -> dict[str, Any]:
    return {k: v for k, v in vars(tensor).items() if not k.startswith("_")}


def _gradient(tensor: Tensor) -> Tensor | None:
    return tensor.grad.detach() if tensor.is_leaf and tensor.grad is not None else None


def _storage(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is contiguous and all of its memory."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors over one piece of memory have an entry in common."""
    if a.dtype != b.dtype:
        return True
    entries = torch.arange(a.untyped_storage().nbytes() // a.element_size())
    a, b = (entries.as_strided(t.shape, t.stride(), t.storage_offset()).flatten() for t in (a, b))
    return bool(torch.isin(a, b).any())


def _filled(mapping: dict, items: list) -> dict:
    for key, value in items:  # update() of a Counter would count the pairs
        mapping[key] = value
    return mapping


def _is_value(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_value, value))
    return type(value) in SCALARS or isinstance(value, np.generic | torch.device | torch.dtype)


def _label(key: Any, i: int) -> str:
    """A dict's entry in a path; an object's own text may have an address in it."""
    return repr(key) if type(key) in SCALARS else f"entry {i}"


def _submodule(root: nn.Module, name: str) -> nn.Module:
    try:
        return root.get_submodule(name)
    except AttributeError:
        raise KeyError(f"no module {name}") from None


def _put(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    for table in ("_parameters", "_buffers"):
        if (leaf := name.rpartition(".")[2]) in _owner(root, name, table):
            _owner(root, name, table)[leaf] = tensor


def _empty(root: nn.Module) -> list[list[str]]:
    """Parameters and saved buffers that are None: (module, table, name)."""
    return [
        [prefix, table, name]
        for prefix, module in root.named_modules()
        for table in ("_parameters", "_buffers")
        for name, value in vars(module)[table].items()
        if value is None and name not in module._non_persistent_buffers_set
    ]


def _make_room(
    root: nn.Module, saved: dict[str, Any], parameters: set[str], empty: list[list[str]], device: torch.device
) -> None:
    """Give a module parameters and buffers of the shapes that were saved, and no others."""
    for name in dict(_tensors(root)).keys() - saved.keys():
        for table in ("_parameters", "_buffers"):
            _owner(root, name, table).pop(name.rpartition(".")[2], None)
    for prefix, table, name in empty:
        owner = _submodule(root, prefix)
        _refuse_name(owner, name)
        if table not in ("_parameters", "_buffers"):
            raise ValueError(f"no table {table}")
        vars(owner).pop(name, None)
        vars(owner)[table][name] = None
    for name, value in saved.items():
        if not isinstance(value, Tensor):
            continue
        leaf = name.rpartition(".")[2]
        table = _owner(root, name, "_parameters" if name in parameters else "_buffers")
        held = table.get(leaf)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            owner = root.get_submodule(name.rpartition(".")[0])
            _refuse_name(owner, leaf)
            vars(owner).pop(leaf, None)
            fresh = torch.empty_like(value, device=device)
            table[leaf] = nn.Parameter(fresh, fresh.is_floating_point()) if name in parameters else fresh


def _resolve_class(model: nn.Module, module: str, name: str) -> type | None:
    """A module class of torch.nn, or of one of the files that the method's own parts come from."""
    files = {c.__module__ for part in model.modules() for c in type(part).__mro__ if issubclass(c, nn.Module)}
    if module not in files and not module.startswith("torch.nn.modules."):
        return None
    found = getattr(sys.modules.get(module), name, None)
    return found if inspect.isclass(found) and issubclass(found, nn.Module) else None


def _is_plain(cls: type) -> bool:
    """Whether a class is written in Python and keeps its state in `__dict__` alone."""
    heap_type = 1 << 9
    return all(c is object or (c.__flags__ & heap_type and not c.__dict__.get("__slots__")) for c in cls.__mro__)


def _is_schedule(cls: type) -> bool:
    schedule = inspect.isclass(cls) and issubclass(cls, torch.optim.lr_scheduler.LRScheduler)
    return schedule and cls.__module__ == "torch.optim.lr_scheduler"


def _is_torchs(cls: type | None) -> bool:
    """Whether a class is one of torch's optimisers."""
    known = inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    return known and getattr(torch.optim, cls.__name__, None) is cls


def _same_constant(old: Any, new: Any, copied: bool = False) -> bool:
    if old is new:
        return True
    if isinstance(new, types.MethodType) and isinstance(old, types.MethodType):  # made anew at each access
        same = type(old.__self__) is type(new.__self__) if copied else old.__self__ is new.__self__
        return old.__func__ is new.__func__ and same
    return (
        type(old) is type(new) and isinstance(new, range | slice | pathlib.PurePath | argparse.Namespace) and old == new
    )


def _refuse_name(owner: Any, name: str) -> None:
    """A stored name may not shadow a method, one of Python's own names, or a table of torch's."""
    if name.startswith("__") or name in _BASE or callable(getattr(type(owner), name, None)):
        raise ValueError(f"'{name}' is no attribute that a checkpoint may set")


def _refuse_other_shapes(saved: dict[str, list[int]], mine: dict[str, list[int]]) -> None:
    for name in [*mine, *saved]:
        if saved.get(name) != mine.get(name):
            raise UserError(
                f"the checkpoint is of another network: its {name} is {saved.get(name, 'absent')}, "
                f"here it is {mine.get(name, 'absent')}"
            )
