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
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BASE = {*vars(nn.Module()), "_memory"}


class Memory:
    """The state of a method beyond its parameters and buffers.

    Args:
        model: the method, just constructed; what it holds now a fresh one will hold too.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.modules = dict(model.named_modules())
        self.shapes = {name: list(tensor.shape) for name, tensor in _tensors(model)}
        self.hooks = {name: _hooks(module) for name, module in self.modules.items()}
        # These belong to the run and the stream: wherever a method refers to them they are constants.
        owned = ("args", "dataset", "loss", "transform", "normalization_transform")
        self.foreign = {id(value) for name in owned if (value := vars(model).get(name)) is not None}
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
            "gone": sorted(self.modules.keys() - set(writer.module_names.values())),
            "parameters": [name for name, _ in model.named_parameters(remove_duplicate=False)],
            "eval": [name for name, module in model.named_modules() if not module.training],
            "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
            "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            "attributes": writer.attributes(),
        }

    def restore_structure(self, state: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> None:
        """Give the method the modules, parameters and buffers that the state has, so that they can be loaded.

        Raises:
            UserError: the state is of a network that was constructed otherwise.
        """
        _refuse_other_shapes(state["shapes"], self.shapes)
        reader = _Reader(self)
        for name, node in state["modules"]:
            reader.attach(name, reader.module(node))
        for name in state["gone"]:
            _owner(self.model, name, "_modules").pop(name.rpartition(".")[2], None)
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        _make_room(self.model, tensors, set(state["parameters"]), self.model.device)
        for name in self.shapes.keys() - tensors.keys():
            for table in ("_parameters", "_buffers"):
                _owner(self.model, name, table).pop(name.rpartition(".")[2], None)

    def restore_values(self, state: dict[str, Any]) -> None:
        """Put plain attributes, optimisers, flags and gradients back, once parameters and buffers are loaded."""
        _Reader(self).attributes(state["attributes"])
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
        self.tensor_names = {id(tensor): name for name, tensor in _tensors(model)}
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
            if not self.learn and not (known := self._known_hooks(name)) >= _hooks(module):
                raise self.refusal(_join(name, min(_hooks(module) - known)[0]), "a hook registered during training")
            if nodes := self.plain(module, name):
                out[name] = nodes
        return out

    def plain(self, module: nn.Module, path: str) -> dict[str, Any]:
        """What a module keeps besides parameters, saved buffers and modules."""
        values = {k: v for k, v in vars(module).items() if k not in _BASE}
        values |= {k: module._buffers[k] for k in module._non_persistent_buffers_set}
        return {k: self.encode(v, _join(path, k)) for k, v in values.items()}

    def encode(self, value: Any, path: str) -> Any:
        """A value as plain data."""
        kind = type(value)
        if kind in SCALARS:
            return value
        if id(value) in self.memory.foreign:
            return {"is": "constant"}
        if id(value) in self.tensor_names:
            return {"is": "reference", "to": f"tensor {self.tensor_names[id(value)]}"}
        if id(value) in self.module_names:
            return {"is": "reference", "to": f"module {self.module_names[id(value)]}"}
        if id(value) in self.seen:
            return {"is": "reference", "to": self.seen[id(value)]}
        self.seen[id(value)] = path
        self.kept.append(value)
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
        if kind is np.ndarray and value.dtype.kind in "biufc":
            return {"is": "array", "data": torch.from_numpy(np.array(value, order="C"))}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
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

    def items(self, mapping: dict, path: str) -> list:
        return [[self.encode(k, f"{path} key"), self.encode(v, f"{path}[{k!r}]")] for k, v in mapping.items()]

    def tensor(self, value: Tensor, path: str) -> dict:
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise self.refusal(path, f"a tensor of layout {value.layout}")
        data = value.detach()
        if data.untyped_storage().nbytes() != data.numel() * data.element_size():
            data = data.clone(memory_format=torch.contiguous_format)  # a view would drag its whole storage along
        # A value that still hangs on a graph comes back without it.
        return {
            "is": "tensor",
            "data": data,
            "parameter": isinstance(value, nn.Parameter),
            "leaf": value.requires_grad and value.is_leaf,
            "host": value.device.type == "cpu",
        }

    def module(self, module: nn.Module, path: str) -> dict:
        """A module that a fresh method does not have: what it is modelled on, or its classes."""
        if self.learn:
            self.memory.known[path] = module
            return {"is": "module"}
        structure = _structure(module)
        for name, known in self.memory.modules.items():
            if name and _structure(known) == structure:
                self.templates[path] = name
                return {"is": "module", "like": name}
        held = self.memory.known.get(path)
        if held is not None and _structure(held) == structure:
            return {"is": "module", "like": None}
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
        return {
            "tensors": module.state_dict(),
            "parameters": [name for name, _ in module.named_parameters(remove_duplicate=False)],
            "eval": [name for name, part in module.named_modules() if not part.training],
            "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
            "attributes": {name: self.plain(part, _join(path, name)) for name, part in module.named_modules()},
        }

    def optimizer(self, value: torch.optim.Optimizer, path: str) -> dict:
        groups = [
            [self.encode(p, f"{path}.param_groups[{g}][{i}]") for i, p in enumerate(group["params"])]
            for g, group in enumerate(value.param_groups)
        ]
        state = value.state_dict()
        options = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
        return {
            "is": "optimizer",
            "class": type(value).__name__,
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
        elif not _same_constant(self.known(path), value):
            raise self.refusal(path, f"a {type(value).__name__} that was not there when the method was constructed")
        return {"is": "constant"}

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

    def attributes(self, stored: dict[str, dict[str, Any]]) -> None:
        for name, module in list(self.model.named_modules()):
            self.plain(stored.get(name, {}), module, name)

    def plain(self, nodes: dict[str, Any], module: nn.Module, path: str) -> None:
        """A module's plain attributes."""
        for name, node in nodes.items():
            fresh = vars(module).get(name, module._buffers.get(name))
            value = self.decode(node, _join(path, name), fresh)
            if name in module._buffers:
                module._buffers[name] = value
            elif value is not fresh or name not in vars(module):
                _refuse_name(module, name)
                vars(module)[name] = value
        for extra in vars(module).keys() - nodes.keys() - _BASE:
            del vars(module)[extra]  # the method had dropped it

    def decode(self, node: Any, path: str, fresh: Any) -> Any:
        """The value of a node; `fresh` is what the fresh method has in its place."""
        if type(node) in SCALARS:
            return node
        kind = node["is"]
        if kind == "reference":
            return self.reference(node["to"])
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
        return self.model.get_submodule(name) if kind == "module" else self.made[to]

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
        items = []
        for k, v in node["items"]:
            key = self.decode(k, f"{path} key", None)
            items.append((key, self.decode(v, f"{path}[{key!r}]", old.get(key))))
        if isinstance(fresh, dict) and type(fresh).__name__ == node["is"]:
            fresh.clear()
            fresh.update(items)
            return fresh
        if node["is"] == "defaultdict":
            raise UserError(f"attribute '{path}' (a defaultdict) must be made in __init__ to be restored")
        return MAPPINGS[node["is"]](items)

    def tensor(self, node: dict, path: str, fresh: Any) -> Tensor:
        data = node["data"].clone()
        data = data if node["host"] else data.to(self.model.device)
        return nn.Parameter(data, node["leaf"]) if node["parameter"] else data.requires_grad_(node["leaf"])

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
        module = fresh if node.get("like", "") is None else self.module(node)
        state = node["state"]
        _make_room(module, state["tensors"], set(state["parameters"]), self.model.device)
        module.load_state_dict(state["tensors"])
        for name, part in module.named_modules():
            part.training = name not in state["eval"]
            self.plain(state["attributes"].get(name, {}), part, _join(path, name))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
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
        params = [[self.decode(p, f"{path}.params[{g}]", None) for p in ps] for g, ps in enumerate(node["params"])]
        options = [self._items(o, f"{path}.param_groups[{g}]") for g, o in enumerate(node["options"])]
        groups = [{**o, "params": ps} for o, ps in zip(options, params, strict=True)]
        if type(fresh).__name__ != node["class"]:
            if getattr(fresh, "made_by_runner", False):
                raise UserError(
                    f"the checkpoint was saved with {node['class']}, this run uses {type(fresh).__name__}: "
                    "give the same --optimizer"
                )
            cls = getattr(torch.optim, node["class"], None)
            if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
                raise UserError(
                    f"attribute '{path}': optimiser {node['class']} must be made in __init__ to be restored"
                )
            fresh = cls(groups)
        else:
            fresh.state.clear()
            fresh.param_groups.clear()
            for group in groups:
                fresh.add_param_group(group)
        state = {k: self._items(v, f"{path}.state[{k}]") for k, v in node["state"]}
        numbered, count = [], 0
        for o, ps in zip(options, params, strict=True):
            numbered.append({**o, "params": list(range(count, count + len(ps)))})
            count += len(ps)
        fresh.load_state_dict({"state": state, "param_groups": numbered})
        return fresh

    def _items(self, items: list, path: str) -> dict:
        return {self.decode(k, path, None): self.decode(v, f"{path}[{k!r}]", None) for k, v in items}

    def torch_generator(self, node: dict, path: str, fresh: Any) -> torch.Generator:
        value = fresh if isinstance(fresh, torch.Generator) else torch.Generator()
        value.set_state(node["state"])
        return value

    def numpy_generator(self, node: dict, path: str, fresh: Any) -> np.random.Generator:
        if node["class"] not in BIT_GENERATORS:
            raise ValueError(f"no bit generator {node['class']}")
        value = (
            fresh if type(fresh) is np.random.Generator else np.random.Generator(getattr(np.random, node["class"])())
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


def _structure(module: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(part)) for name, part in module.named_modules()]


def _hooks(module: nn.Module) -> set[tuple[str, int]]:
    return {(table, key) for table in HOOKS for key in vars(module)[table]}


def _make_room(root: nn.Module, saved: dict[str, Any], parameters: set[str], device: torch.device) -> None:
    """Give a module parameters and buffers of the shapes that were saved."""
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
    return issubclass(cls, torch.optim.lr_scheduler.LRScheduler) and cls.__module__ == "torch.optim.lr_scheduler"


def _same_constant(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(new, types.MethodType) and isinstance(old, types.MethodType):  # made anew at each access
        return old.__func__ is new.__func__ and type(old.__self__) is type(new.__self__)
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
