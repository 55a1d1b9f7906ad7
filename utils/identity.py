"""What a run is besides its options: the content of the files its method, stream and network come from."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from palimpsest import ROOMS, ROOT

SHARED = ("models/utils", "datasets/utils", "backbone/utils", "utils")  # one version of the program shares them
LISTEN = ("utils/log", "utils/study", "utils/check")  # no number of a run depends on who writes it down or reads it
FILES = ("model_file", "dataset_file", "backbone_file")
# What tells two runs of equal options apart; all of it stands in config.yaml, in checkpoints and in mean_accs.csv.
FACTS = (*FILES, "data", "checkpoint")
THEN = ", then "
_known: dict[type, str] = {}


def note(cls: type, path: Path, module: ModuleType) -> None:
    """Remember where a class came from and what the files said when it was imported: they may change later."""
    if cls not in _known:
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        _known[cls] = f"{shown.as_posix()} {_content(path, module)}"


def of_class(cls: type) -> str:
    """'models/er.py 1f0c52d7a3b9': the file of a class that the registry gave, with its whole path where it lies
    outside the program's folder, and 12 digits of a checksum over it and the files of its author that it imports.
    """
    known = _known.get(cls) if isinstance(cls, type) else None
    return known or f"{getattr(cls, '__module__', 'an object')} unknown"


def place(fact: str) -> str:
    """The path of what `of_class` says."""
    return fact.rpartition(" ")[0]


@cache
def shared_code() -> str:
    """12 digits of a checksum over the modules that all runs share and that decide on their numbers, as they were when
    first asked for.
    """
    digest = hashlib.sha256()
    listening = [ROOT / room for room in LISTEN]
    for path in sorted(p for room in SHARED for p in (ROOT / room).rglob("*.py")):
        if any(path.is_relative_to(room) for room in listening):
            continue
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def merge_facts(before: str, now: str) -> str:
    """What a run is that one program began and another one goes on with."""
    return before if before.rpartition(THEN)[2] == now else f"{before}{THEN}{now}"


def _content(path: Path, module: ModuleType) -> str:
    files = {path}
    todo = [(path, module.__package__ or "")]
    while todo:
        file, package = todo.pop()
        for found, name in _imports(file, package):
            if found not in files and _is_authors(found):
                files.add(found)
                todo.append((found, name if found.name == "__init__.py" else name.rpartition(".")[0]))
    digest = hashlib.sha256()
    for file in [path, *sorted(files - {path})]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _imports(file: Path, package: str) -> Iterator[tuple[Path, str]]:
    """(file, name) of every module that a file names in an import, wherever in it that stands; none is imported here,
    since some imports wait until they are needed.
    """
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            whole = ".".join([*parents, *filter(None, [node.module])])
            names = [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
        for name in names:
            ours = [f"palimpsest.{name}"] if name.partition(".")[0] in ROOMS else []
            for known in (*ours, name):
                if found := _file_of(known):
                    yield found, known
                    break


def _file_of(name: str) -> Path | None:
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded:
        return Path(loaded).resolve()
    folders = None
    for n in range(1, name.count(".") + 2):
        spec = PathFinder.find_spec(".".join(name.split(".")[:n]), folders)
        folders = spec and spec.submodule_search_locations
        if spec is None or n <= name.count(".") and folders is None:
            return None
    return Path(spec.origin).resolve() if spec.has_location else None


def _is_authors(path: Path) -> bool:
    """Whether a file belongs to one method, stream or network: no library, no room that all share."""
    if path.suffix != ".py" or {"site-packages", "dist-packages"} & {*path.parts}:
        return False
    if any(path.is_relative_to(ROOT / room) for room in (*SHARED, "palimpsest")):
        return False
    return not path.is_relative_to(Path(hashlib.__file__).resolve().parent)  # Python's own
