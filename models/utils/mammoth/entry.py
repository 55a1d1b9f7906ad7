"""Where a method file written for Mammoth enters: how it is known, and what its imports find.

Such a file is given an `__import__` of its own, by which the names of Mammoth's modules lead to this package; no other
file sees it.
"""

import argparse
import builtins
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms

from palimpsest.backbone.mnistmlp import MNISTMLP
from palimpsest.backbone.utils.base import Backbone
from palimpsest.models.utils.mammoth import functions as f
from palimpsest.models.utils.mammoth import memory as m
from palimpsest.models.utils.mammoth.columns import ResNet, mlp_column, resnet_column
from palimpsest.models.utils.mammoth.model import MammothModel, explained, missing
from palimpsest.models.utils.mammoth.signs import ROOMS, file_of
from palimpsest.models.utils.mammoth.stream import Stream
from palimpsest.utils import registry
from palimpsest.utils.args import ArgumentParser, add_rehearsal_args, base_parser
from palimpsest.utils.errors import UserError

# module -> name -> what a file finds there; names that are not here are the house's own, where it has them.
NAMES: dict[str, dict[str, Any]] = {
    "utils": {
        "binary_to_boolean_type": f.binary_to_boolean_type, "none_or_float": f.none_or_float,
        "custom_str_underscore": f.custom_str_underscore, "field_with_aliases": f.field_with_aliases,
    },
    "utils.args": {
        "ArgumentParser": ArgumentParser, "Namespace": argparse.Namespace, "add_rehearsal_args": add_rehearsal_args,
        "add_management_args": f.nothing, "add_configuration_args": f.nothing,
        "add_experiment_args": f.add_experiment_args,
    },
    "utils.conf": {
        "get_device": f.get_device, "base_path": f.base_path, "base_path_dataset": f.base_path,
        "base_path_memory": f.base_path, "warn_once": f.warn_once,
        "create_seeded_dataloader": f.create_seeded_dataloader, "set_random_seed": f.nothing,
    },
    "utils.batch_norm": {"bn_track_stats": f.bn_track_stats},
    "utils.no_bn": {"bn_track_stats": f.bn_track_stats},
    "utils.status": {"progress_bar": f.nothing, "ProgressBar": f.ProgressBar},
    "utils.schedulers": {"get_scheduler": f.get_scheduler},
    "utils.training": {"evaluate": f.evaluate, "mask_classes": f.mask_classes},
    "utils.evaluate": {"evaluate": f.evaluate, "mask_classes": f.mask_classes},
    "utils.distributed": {"make_dp": f.identity, "make_ddp": f.identity},
    "utils.buffer": {
        "Buffer": m.Buffer, "icarl_replay": m.icarl_replay, "fill_buffer": m.fill_buffer, "reservoir": m.reservoir,
    },
    "utils.ring_buffer": {"RingBuffer": m.RingBuffer},
    "utils.gss_buffer": {"Buffer": m.GradientBuffer},
    "utils.augmentations": {
        "np": np, "torch": torch, "F": F, "transforms": transforms, "apply_transform": f.apply_transform,
        "cutmix_data": f.cutmix_data, "rand_bbox": f.rand_bbox, "normalize": f.normalize,
        "random_flip": f.random_flip, "random_grayscale": f.random_grayscale, "random_crop": f.random_crop,
        "soft_aug": f.soft_aug, "strong_aug": f.strong_aug,
    },
    "utils.kornia_utils": {"to_kornia_transform": f.identity},
    "utils.simclrloss": {"SupConLoss": f.SupConLoss},
    "utils.spkdloss": {"SPKDLoss": f.SPKDLoss},
    "models": {"register_model": f.decorator},
    "models.utils.continual_model": {"ContinualModel": MammothModel},
    "models.gem": {
        "store_grad": f.store_grad, "overwrite_grad": f.overwrite_grad, "project2cone2": f.project2cone2,
    },
    "models.agem": {
        "project": f.project, "store_grad": f.store_grad, "overwrite_grad": f.overwrite_grad,
    },
    "models.icarl": {"fill_buffer": m.fill_herded},
    "datasets": {"get_dataset": f.get_dataset, "register_dataset": f.decorator},
    "datasets.utils.continual_dataset": {"ContinualDataset": Stream, "MammothDatasetWrapper": Stream},
    "datasets.utils.gcl_dataset": {"GCLDataset": Stream},
    "datasets.utils.validation": {"ValidationDataset": f.ValidationDataset},
    "backbone": {"get_backbone": f.get_backbone, "MammothBackbone": Backbone, "register_backbone": f.decorator},
    "backbone.MNISTMLP": {"MNISTMLP": MNISTMLP, "BaseMNISTMLP": MNISTMLP},
    "backbone.MNISTMLP_PNN": {"MNISTMLP_PNN": mlp_column},
    "backbone.ResNet18_PNN": {"resnet18_pnn": resnet_column},
    "backbone.ResNet18": {"ResNet": ResNet},
    "backbone.ResNetBlock": {"ResNet": ResNet},
}  # fmt: skip
# Packages that are used where they are installed, and stood in for where they are not.
STANDINS: dict[str, dict[str, Any]] = {"quadprog": {"solve_qp": f.solve_qp}}


def import_file(path: Path) -> types.ModuleType:
    """The file as a module, its imports answered from here and its class ready to be constructed.

    Raises:
        UserError: it imports what is not here; names it.
    """
    here = path.parent == registry.ROOT / "models"
    key = f"models.{path.stem}" if here else f"palimpsest_dropin_{path.stem}"
    found = sys.modules.get(key)
    if found is not None and getattr(found, "__file__", None) == str(path):
        return found
    spec = importlib.util.spec_from_file_location(key, path)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": Importer(path)}
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as e:
        del sys.modules[key]
        raise UserError(f"{path.name} cannot run: {missing(e)}") from None
    except BaseException:
        del sys.modules[key]
        raise
    for name, cls in list(vars(module).items()):
        if isinstance(cls, type) and cls.__module__ == key and getattr(cls, "NAME", None):
            vars(module)[name] = _ready(cls, vars(module).get("get_parser"))
    return module


class Importer:
    """`__import__` of one file: Mammoth's names first, then the files beside it, then everybody's."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, name: str, globals=None, locals=None, fromlist=(), level: int = 0) -> Any:
        room = name.split(".")[0]
        if level or (room not in ROOMS and name not in STANDINS):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = _module(name, self.path)
        if not fromlist:
            return module if "." not in name else _module(room, self.path)
        for wanted in fromlist:
            if wanted != "*" and not hasattr(module, wanted):
                raise ImportError(f"it imports {wanted} of {name}, which is not here", name=name)
        return module


@functools.cache
def _module(name: str, path: Path) -> types.ModuleType:
    """A module as the file at `path` sees it."""
    if name in STANDINS:
        try:
            return importlib.import_module(name)
        except ImportError:
            return _made(name, STANDINS[name], None)
    beside = path.parent / f"{name.split('.')[-1]}.py"
    room, _, rest = name.partition(".")
    outside = path.parent != registry.ROOT / "models"
    if name not in NAMES and room == "models" and rest and "." not in rest and outside and beside.is_file():
        return import_file(beside)
    house = file_of(name) is not None and (room != "models" or name.startswith("models.utils."))
    if name not in NAMES and not house:
        raise ImportError(f"it imports {name}, which is not here", name=name)
    own = importlib.import_module(name) if house else None
    return _made(name, NAMES.get(name, {}), own, path)


def _made(name: str, names: dict[str, Any], own: types.ModuleType | None, path: Path | None = None):
    module = types.ModuleType(name)
    vars(module).update(names)

    def further(wanted: str) -> Any:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        if path is not None and f"{name}.{wanted}" in NAMES:
            return _module(f"{name}.{wanted}", path)
        if own is None:
            raise AttributeError(f"{name} has no {wanted} here")
        return getattr(own, wanted)

    module.__getattr__ = further
    return module


def _ready(cls: type, declare: Callable | None) -> type:
    """The file's class with a parser that the runner can add, and as a `MammothModel` where it is a bare module."""
    if not issubclass(cls, MammothModel) and issubclass(cls, nn.Module) and hasattr(cls, "observe"):
        cls = _on_base(cls)
    own = next((c for c in cls.__mro__ if "get_parser" in vars(c)), MammothModel)
    if own.__module__ == cls.__module__ or declare is None:
        declare = cls.get_parser

    def get_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        with explained(cls, UserError):
            filled = declare(parser) if inspect.signature(declare).parameters else declare()
        filled = parser if filled is None else filled
        if hasattr(filled, "takes_batch_size") and not any(a.dest == "batch_size" for a in filled._actions):
            cls.DEFAULTS = {**cls.DEFAULTS, "batch_size": 1}  # the file takes the option away: it sees single examples
        taken = base_parser()._option_string_actions.keys()
        # A default that the file sets for an option of the runner goes before the stream's.
        defaults = {name: value for name, value in filled._defaults.items() if f"--{name}" in taken}
        cls.DEFAULTS = {**cls.DEFAULTS, **defaults}
        filled._defaults = {name: value for name, value in filled._defaults.items() if name not in defaults}
        # Options of the runner's own, such as --clip_grad, do what the file means by them.
        filled._actions = [action for action in filled._actions if not taken & {*action.option_strings}]
        for action in filled._actions:
            action.help = action.help or f"{action.dest}: the file has no help text"
        return filled

    cls.get_parser = staticmethod(get_parser)
    return cls


def _on_base(bare: type) -> type:
    """A class that stands on `nn.Module` alone, as one until 2023 could, put on `MammothModel`."""
    body = {name: value for name, value in vars(bare).items() if name not in ("__dict__", "__weakref__")}
    cls = type(MammothModel)(bare.__name__, (MammothModel,), body)
    for function in filter(inspect.isfunction, body.values()):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__":  # which `super()` without arguments reads
                cell.cell_contents = cls
    return cls
