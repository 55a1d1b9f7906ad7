"""By what a method file written for Mammoth is known; the file is read, not imported."""

import ast
import functools
from pathlib import Path

from palimpsest.utils.registry import ROOT

ROOMS = ("utils", "models", "datasets", "backbone")


def written_for_mammoth(path: Path) -> bool:
    """Whether a method file uses what only Mammoth has: by its imports, by a `get_parser` outside the class or without
    a parser to fill, by a constructor without the stream, or by an `observe` that returns a Python number. A file that
    cannot be read is none.
    """
    tree = _parsed(path)
    return tree is not None and any(_is_sign(node, node in tree.body) for node in ast.walk(tree))


def _is_sign(node: ast.AST, top: bool) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return node.module.split(".")[0] in ROOMS and any(
            alias.name == "*" or not _has(node.module, alias.name) for alias in node.names
        )
    if not isinstance(node, ast.FunctionDef):
        return False
    given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
    if node.name == "get_parser":
        return top or not given
    if node.name == "__init__":
        return given[1:5] == ["backbone", "loss", "args", "transform"] and not given[5:] and not node.args.kwarg
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return node.name == "observe" and any(isinstance(call, ast.Attribute) and call.attr == "item" for call in calls)


def file_of(module: str) -> Path | None:
    """The file of a module of the house, None where there is none."""
    place = ROOT.joinpath(*module.split("."))
    choices = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in choices if path.is_file()), None)


def _has(module: str, name: str) -> bool:
    """Whether a module of the house has a name, or is a package with such a module."""
    path = file_of(module)
    return path is not None and (file_of(f"{module}.{name}") is not None or name in _names_of(path))


@functools.cache
def _names_of(path: Path) -> frozenset[str]:
    """What stands at the top of a file."""
    out: set[str] = set()
    for node in _parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            out |= {alias.asname or alias.name for alias in node.names}
        else:
            out |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return frozenset(out)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return None
