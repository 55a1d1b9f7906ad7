"""The shape of the house: arrows point one way, families stay in their wings, rooms stay small."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up, palimpsest/ itself below all; a file may import what is on its own floor or below.
FLOORS = [
    ["utils"],
    ["backbone", "datasets"],
    ["models"],
    ["utils.log"],
    ["utils.run"],
    ["utils.study"],
    ["utils.check"],
    ["api", "commands", "completion", "export", "learned", "redraw", "trainer", "vision"],
    ["main", "__main__"],
]
WINGS = ["models.utils.posterior", "models.utils.gates", "datasets.utils.vision", "datasets.utils.own"]
# Scripts of users name the trainer by this path: it hands on what utils/run/ has.
DOORS = {"utils.trainer"}
PRODUCT = ("main.py", "palimpsest", "models", "datasets", "backbone", "utils")
LONGEST, MOST_FILES = 450, 20


def files() -> list[Path]:
    """The files of the product, those of the tests and of the benchmarks left out."""
    found = [ROOT / "main.py"]
    for folder in PRODUCT[1:]:
        found += (ROOT / folder).rglob("*.py")
    return found


def name_of(path: Path) -> str:
    """A file as a module."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name.removeprefix("palimpsest.")


def imports(path: Path, known: set[str], inside: bool = True) -> set[str]:
    """The modules of the house that a file imports, at its top or, unless that is left out, inside a function."""
    out, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            out |= {name for name in names if name.removeprefix("palimpsest.") in known} or {node.module}
    return {name.removeprefix("palimpsest.") for name in out if name.startswith("palimpsest.")}


def floor_of(module: str) -> int:
    """The floor with the longest prefix that fits."""
    if module == "palimpsest":
        return -1
    fits = [(len(p), i) for i, floor in enumerate(FLOORS) for p in floor if f"{module}.".startswith(f"{p}.")]
    return max(fits)[1]


MODULES = {name_of(path): path for path in files()}
ARROWS = {name: imports(path, set(MODULES)) - {name} for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - DOORS))
def test_a_file_imports_nothing_from_a_floor_above(module):
    upward = [other for other in ARROWS[module] if floor_of(other) > floor_of(module)]
    assert not upward


def test_backbones_and_streams_do_not_know_each_other():
    sides = {"backbone": "datasets", "datasets": "backbone"}
    crossing = [(m, other) for m in MODULES for other in ARROWS[m] if sides.get(m.split(".")[0]) == other.split(".")[0]]
    assert not crossing


def test_no_circles():
    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        nexts = {n for n in ARROWS.get(start, ()) if n in MODULES} - seen
        return goal in nexts or any(reaches(n, goal, seen | nexts) for n in nexts)

    assert [module for module in MODULES if reaches(module, module, set())] == []


def test_a_method_imports_no_other_method_and_no_picture_code():
    methods = {name for name in MODULES if name.startswith("models.") and name.count(".") == 1}
    for method in methods:
        assert not ARROWS[method] & methods, method
        reached, todo = set(), {method}
        while todo:
            reached |= todo
            todo = {other for name in todo for other in imports(MODULES[name], set(MODULES), inside=False)}
            todo = (todo & MODULES.keys()) - reached
        assert not any("plots" in name for name in {*reached, *ARROWS[method]}), method
        drawing = [name for name in reached if re.search(r"^(from|import) matplotlib", MODULES[name].read_text(), re.M)]
        assert not drawing and "matplotlib" not in MODULES[method].read_text(), method


def test_wings_do_not_know_each_other():
    for wing in WINGS:
        rooms = [name for name in MODULES if name.startswith(f"{wing}.")]
        assert rooms, wing
        others = tuple(f"{w}." for w in WINGS if w != wing)
        assert not [(room, arrow) for room in rooms for arrow in ARROWS[room] if f"{arrow}.".startswith(others)]


def test_rooms_stay_small():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    every = [ROOT / name for name in tracked if (ROOT / name).is_file()] or [*MODULES.values()]
    long = {str(p.relative_to(ROOT)): n for p in every if (n := len(p.read_text().splitlines())) > LONGEST}
    assert not long
    counts: dict[Path, int] = {}
    for path in every:
        counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
    full = {str(f.relative_to(ROOT)): n for f, n in counts.items() if n > MOST_FILES}
    assert full.keys() <= {"models", "datasets", "tests/models"}


def test_the_loop_is_one_screen():
    tree = ast.parse((ROOT / "utils/run/training.py").read_text())
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    assert lengths["train"] + lengths["train_task"] <= 70 and max(lengths["train"], lengths["train_task"]) <= 45
