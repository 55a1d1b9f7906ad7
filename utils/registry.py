"""Names to files to classes: `--model er` is the class in models/er.py whose NAME is 'er'.

Nothing is registered by hand and nothing is imported before it is asked for, so that one broken file never hides
the others.
"""

import ast
import builtins
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palimpsest import ROOMS, ROOT
from palimpsest.utils import identity
from palimpsest.utils.errors import UserError, one_line

FOLDERS = {"model": "models", "dataset": "datasets", "backbone": "backbone"}
ALIASES = {"multi-scale": "derpp-single"}  # names under which a method's authors published it


def normalise(name: str) -> str:
    """The spelling under which two names are the same: `-` and `_` are one character, case does not count."""
    return name.strip().lower().replace("_", "-")


def _files(kind: str) -> dict[str, Path]:
    """The files of a kind by normalised name."""
    return {normalise(p.stem): p for p in sorted((ROOT / FOLDERS[kind]).glob("*.py")) if not p.stem.startswith("_")}


def names(kind: str) -> list[str]:
    """Sorted names of all files of a kind ('model', 'dataset', 'backbone'), spelt with `-` for datasets and backbones.

    Models keep their `_`, as in the literature's code (ewc_on).
    """
    return sorted(path.stem if kind == "model" else name for name, path in _files(kind).items())


def first_line(kind: str, name: str) -> str:
    """First line of the file's docstring, read without importing it."""
    doc = ast.get_docstring(ast.parse(find(kind, name).read_text(encoding="utf-8"))) or ""
    return doc.split("\n", 1)[0]


def load(kind: str, name: str) -> type:
    """The class behind a name, or behind a path that ends in `.py` (a method kept outside this folder).

    Raises:
        UserError: no such file (the nearest name is given), the file cannot be imported, or it holds no class with
            that NAME.
    """
    path = find(kind, name)
    stem = path.stem
    with import_errors(path):
        if kind == "model" and _of("signs").written_for_mammoth(path):
            module = _of("entry").import_file(path)
        elif path.parent == ROOT / FOLDERS[kind] and not _uses_short_names(path):
            module = importlib.import_module(f"palimpsest.{FOLDERS[kind]}.{stem}")
        else:
            module = _import_file(kind, path)
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    named = [c for c in own if normalise(getattr(c, "NAME", None) or "") == normalise(stem)]
    if not named:
        found = ", ".join(repr(c.NAME) for c in own if getattr(c, "NAME", None)) or "none"
        raise UserError(f"{path.name} defines no class with NAME = '{stem}' (NAMEs found: {found}): name the class so")
    identity.note(named[-1], path, module)
    return named[-1]


def nearest(name: str, choices: list[str]) -> str:
    """A clause naming the choice most like `name`, or '' when nothing is near."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def find(kind: str, name: str) -> Path:
    """The file behind a name or a path; nothing is imported.

    Raises:
        UserError: no such file (the nearest name is given).
    """
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError(f"{kind} file {name} does not exist")
        return path
    wanted, files = normalise(name), _files(kind)
    if path := files.get(ALIASES.get(wanted, wanted) if kind == "model" else wanted):
        return path
    choices = names(kind)
    raise UserError(
        f"unknown {kind} '{name}'{nearest(normalise(name), choices)} (--list shows all {len(choices)} {kind}s)"
    )


def _of(room: str):
    """A part of what runs files of Mammoth; by name, since this floor imports nothing of the floors above."""
    return importlib.import_module(f"palimpsest.models.utils.mammoth.{room}")


def _uses_short_names(path: Path) -> bool:
    """Whether a file says `from utils.buffer import Buffer`, as files of a checkout may."""
    nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return any(name.partition(".")[0] in ROOMS for name in names)


def import_short(name: str, globals=None, locals=None, fromlist=(), level: int = 0):
    """`__import__` of a file that came from elsewhere: `utils.buffer` is this program's, whatever the script that runs
    has of that name; what this program does not have is everybody's.
    """
    if level or name.partition(".")[0] not in ROOMS:
        return builtins.__import__(name, globals, locals, fromlist, level)
    try:
        builtins.__import__(f"palimpsest.{name}", None, None, fromlist)
    except ModuleNotFoundError as e:
        if e.name is None or not f"palimpsest.{name}".startswith(e.name):
            raise
    else:
        own = sys.modules[f"palimpsest.{name}"]
        if all(part == "*" or hasattr(own, part) for part in fromlist or ()):
            return own if fromlist else sys.modules[f"palimpsest.{name.partition('.')[0]}"]
    return builtins.__import__(name, globals, locals, fromlist)


def _import_file(kind: str, path: Path):
    here = path.parent == ROOT / FOLDERS[kind]
    key = f"palimpsest.{FOLDERS[kind]}.{path.stem}" if here else f"palimpsest_dropin_{kind}_{path.stem}"
    if key in sys.modules and Path(sys.modules[key].__file__) == path:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_short}
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]  # half a module must not be found at the next look
        raise
    return module


@contextmanager
def import_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is imported into a UserError that names the file, the line and what is missing.

    Where the error arises in another file that this one imports, the line names both.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        if isinstance(e, SyntaxError):
            place, what = f"{e.filename or path}, line {e.lineno or 1}", e.msg
        else:
            place, what = _place(e, path), _what(e)
        raise _correct(place, what, path, e) from None


@contextmanager
def errors_of(cls: type) -> Iterator[None]:
    """Turn what goes wrong in the file of a class that lies outside this folder into a UserError that names the line;
    what goes wrong without it is a defect of ours.
    """
    path = Path(identity.place(identity.of_class(cls)))
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename) == path]
        if not path.is_absolute() or not lines:
            raise
        raise _correct(f"{path}, line {lines[-1]}", _what(e), path, e) from None


def _place(error: BaseException, path: Path) -> str:
    """'file, line' of the last line of somebody's own that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
    frames = [f for f in frames if not {"importlib", "site-packages"} & set(Path(f.filename).parts)]
    own = next((f for f in reversed(frames) if Path(f.filename) == path), None)
    last = frames[-1] if frames and frames[-1].filename != __file__ else own
    return ", line ".join(map(str, (last.filename, last.lineno) if last else (path, 1)))


def _what(error: BaseException) -> str:
    return one_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {one_line(error)}"


def _correct(place: str, what: str, path: Path, error: BaseException) -> UserError:
    if not place.startswith(str(path)):
        place += f" (imported by {path.name})"
    advice = "install or correct what it imports" if isinstance(error, ImportError) else "correct the file"
    return UserError(f"{place}: {what}: {advice}")
