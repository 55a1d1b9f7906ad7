"""Stored hyperparameters: `best_args/<method>.yaml` holds rows of options per dataset and buffer size.

A file is a mapping dataset -> list of rows; a row has

    buffer_size   absent for a method without a buffer
    args          {option: value}
    source        where the hyperparameters come from
    published     {scenario: {acc: %, std: % or null}}, with forgetting or forgetting_chaudhry and their _std where
                  those were published too; absent when nothing was published
    runs          how many runs the published mean and std are of, where that is known
    verified      whether the published score was checked against a published text

and may have `comparable: false`, `note`, `known` and `inferred`, in words.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.utils.config_file import plain_yaml
from palimpsest.utils.errors import UserError
from palimpsest.utils.registry import ROOT, nearest, normalise

FOLDER = ROOT / "best_args"
SCENARIOS = ("class-il", "task-il", "domain-il", "general-continual")
PUBLISHED = ("acc", "std", "forgetting", "forgetting_std", "forgetting_chaudhry", "forgetting_chaudhry_std")
Row = dict[str, Any]


def load_rows(method: str, folder: Path | str | None = None) -> dict[str, list[Row]]:
    """All rows of a method, per dataset as the file spells it; {} when the method has no file.

    Args:
        method: the method's name; `-` and `_` are the same.
        folder: where the files are; the repository's `best_args/` when None.

    Raises:
        UserError: the file is no YAML, or not of the shape above.
    """
    path = _files(folder).get(normalise(method))
    if path is None:
        return {}
    rows = plain_yaml(path) or {}
    if not isinstance(rows, dict):
        raise UserError(f"{path.name}, line 1: expected 'dataset:' with a list of rows under it")
    for dataset, entries in rows.items():
        if not isinstance(dataset, str):
            raise UserError(f"{path.name}: '{dataset}' is no dataset's name: quote it if it is one")
        if not isinstance(entries, list):
            raise UserError(f"{path.name}: '{dataset}' holds no list of rows: start each row with '- '")
        for number, row in enumerate(entries, start=1):
            if not (isinstance(row, dict) and isinstance(row.get("args"), dict)):
                raise UserError(f"{path.name}: row {number} of '{dataset}' has no 'args: {{option: value}}': add it")
    return rows


def find_row(method: str, dataset: str, buffer_size: int | None, folder: Path | str | None = None) -> Row:
    """The row for a method, a dataset and a buffer size; its `args` hold `buffer_size` when the row has one.

    A method without a buffer ignores `buffer_size`. Without `buffer_size`, the only row of the dataset is taken.

    Raises:
        UserError: nothing is stored for the method, the dataset or the buffer size, or several sizes are and none
            was given. The message names what is stored.
    """
    stored = load_rows(method, folder)
    if not stored:
        methods = ", ".join(sorted({name for name, _, _ in list_rows(folder)})) or "none"
        raise UserError(
            f"no hyperparameters are stored for method '{method}' (stored for: {methods}): give the options one by one"
        )
    rows = next((r for name, r in stored.items() if normalise(name) == normalise(dataset) and r), None)
    if rows is None:
        known = [name for name, r in stored.items() if r]
        raise UserError(
            f"no hyperparameters are stored for {method} on '{dataset}'{nearest(normalise(dataset), known)} "
            f"(stored for: {', '.join(known) or 'none'}): give the options one by one"
        )
    sizes = [row["buffer_size"] for row in rows if row.get("buffer_size") is not None]
    matches = [row for row in rows if row.get("buffer_size") in (None, buffer_size)]
    if buffer_size is None and not matches and len(rows) == 1:
        matches = rows
    if not matches:
        listed = ", ".join(map(str, sizes))
        if buffer_size is None:
            raise UserError(
                f"{method} on {dataset} is stored for several buffer sizes: add --buffer_size, one of {listed}"
            )
        raise UserError(
            f"no hyperparameters are stored for {method} on {dataset} with --buffer_size {buffer_size} "
            f"(stored for: {listed}): choose one of them, or give the options one by one"
        )
    # A row of this very size goes before one that holds for any size.
    row = max(matches, key=lambda r: r.get("buffer_size") is not None)
    size = {} if row.get("buffer_size") is None else {"buffer_size": row["buffer_size"]}
    return {**row, "args": {**size, **row["args"]}}


def list_rows(folder: Path | str | None = None) -> list[tuple[str, str, int | None]]:
    """(method, dataset, buffer size or None) of every stored row, methods sorted, rows as in their file."""
    return [
        (path.stem, dataset, row.get("buffer_size"))
        for path in _files(folder).values()
        for dataset, rows in load_rows(path.stem, folder).items()
        for row in rows
    ]


def check_rows(rows: dict[str, list[Row]], option_names: set[str]) -> list[str]:
    """What is wrong with the rows of one method, a line each; [] when all is well.

    Args:
        rows: as `load_rows` gives them.
        option_names: every option that a row may set, spelt with `_`.
    """
    problems, seen = [], set()
    for dataset, entries in rows.items():
        for row in entries:
            size = row.get("buffer_size")
            where = dataset if size is None else f"{dataset} (buffer_size {size})"
            if (normalise(dataset), size) in seen:
                problems.append(f"{where}: two rows, of which one would never be used: drop one")
            seen.add((normalise(dataset), size))
            problems += [f"{where}: {problem}" for problem in _check_row(row, option_names)]
    return problems


def _check_row(row: Row, option_names: set[str]) -> Iterator[str]:
    args, size = row["args"], row.get("buffer_size")
    if size is not None and (type(size) is not int or size < 1):
        yield "buffer_size is no positive whole number"
    for name in [*args, *([] if size is None else ["buffer_size"])]:
        if name not in option_names:
            yield f"'{name}' is no option{nearest(name, sorted(option_names))}"
    for name, value in args.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and _is_numeric(item):
                yield f"{name} is the text '{item}', not a number (YAML needs the point in 1.0e-5)"
    if not (isinstance(row.get("source"), str) and row["source"].strip()):
        yield "'source' is missing: say where the hyperparameters come from"
    if "runs" in row and (type(row["runs"]) is not int or row["runs"] < 1):
        yield "runs is no positive whole number"
    if "published" not in row:
        return
    if not isinstance(row["published"], dict) or not row["published"]:
        yield "published is no {scenario: {acc: ..., std: ...}}"
        return
    for scenario, scores in row["published"].items():
        if scenario not in SCENARIOS:
            yield f"published names '{scenario}': expected one of {', '.join(SCENARIOS)}"
        if not isinstance(scores, dict):
            yield f"published {scenario} is no {{acc: ..., std: ...}}"
            continue
        yield from (f"published {scenario} lacks {name}" for name in ("acc", "std") if name not in scores)
        for name, value in scores.items():
            number = type(value) in (int, float) and math.isfinite(value)
            if name not in PUBLISHED:
                yield f"published {scenario} has '{name}': expected {', '.join(PUBLISHED)}"
            elif not (number or (name == "std" and value is None)):
                allowed = "a number or null" if name == "std" else "a number"
                yield f"published {scenario} {name} is {value!r}: expected {allowed}"


def _files(folder: Path | str | None) -> dict[str, Path]:
    """The files by normalised method name, sorted."""
    return {normalise(path.stem): path for path in sorted(Path(folder or FOLDER).glob("*.yaml"))}


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
