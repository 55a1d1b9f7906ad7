"""Palimpsest: train a network on a sequence of tasks and measure what it forgets.

The modules are `palimpsest.models`, `palimpsest.datasets`, `palimpsest.backbone` and `palimpsest.utils`, so that they
live beside a script's own `utils` and other people's `datasets`. Installed, they lie in this folder; in a checkout,
beside it, and there a script may use the short names (`utils.buffer`), too: they lead to the same modules.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

__version__ = "1.0.0"

_FOLDER = Path(__file__).resolve().parent
ROOT = _FOLDER if (_FOLDER / "models").is_dir() else _FOLDER.parent  # where models, datasets, ... lie
ROOMS = ("models", "datasets", "backbone", "utils")
__path__ = list(dict.fromkeys([str(_FOLDER), str(ROOT)]))


class _ShortNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of a checkout by their short names where no other folder of that name comes first."""

    def find_spec(self, name, path=None, target=None):
        room = name.partition(".")[0]
        if room not in ROOMS:
            return None
        if path is None:
            found = PathFinder.find_spec(name)
            path = found and found.submodule_search_locations
        inside = ROOT / room
        if not any(Path(p).resolve().is_relative_to(inside) for p in path or ()):
            return None
        return importlib.util.spec_from_loader(name, self) if importlib.util.find_spec(f"palimpsest.{name}") else None

    def create_module(self, spec):
        module = importlib.import_module(f"palimpsest.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def get_code(self, name):
        """For `python -m datasets.utils.own.hub_export`."""
        return importlib.util.find_spec(f"palimpsest.{name}").loader.get_code(f"palimpsest.{name}")

    def exec_module(self, module):
        module.__spec__ = module.__spec__.loader_state  # the import system put the short name's there


if ROOT != _FOLDER:
    sys.meta_path.insert(0, _ShortNames())


def __getattr__(name: str):
    """`run`, `load` and what goes with them, found when they are asked for: `import palimpsest` imports no torch."""
    if name == "load":
        return importlib.import_module("palimpsest.learned").Learned
    if name in ("run", "load_best_args", "Result"):
        return getattr(importlib.import_module("palimpsest.api"), name)
    raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")
