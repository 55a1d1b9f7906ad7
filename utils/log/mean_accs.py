"""`mean_accs.csv`: one row per finished run, in a table that many processes extend and whose columns grow.

The table is small, so every new row rewrites it whole under a lock: a process killed at any moment leaves the old table
or the new one, and a row with new options never ends up under a header that does not know them.
"""

import csv
import io
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.utils.atomic import LockTaken, file_errors, locked, remove_leftovers, write_text
from palimpsest.utils.errors import UserError
from palimpsest.utils.identity import FACTS
from palimpsest.utils.metrics import METRICS, seen_means
from palimpsest.utils.record import Run

LOCK_TIMEOUT = 600.0  # seconds; a writer holds the lock for milliseconds
VERSIONS = ("python", "torch", "torchvision", "numpy", "scikit-learn", "scipy", "device", "threads", "commit", "code")
COSTS = ("seconds_training", "cpu_seconds_training", "seconds_evaluating", "cpu_seconds_evaluating")
COSTS += ("inference_seconds_per_1000", "flops_training", "flops_inference", "bytes_parameters", "bytes_buffer")
COSTS += ("bytes_teachers", "bytes_statistics", "peak_memory_bytes")
COLUMNS = {metric.column: name for name, metric in METRICS.items() if metric.column}


def append_row(path: Path, row: dict[str, object]) -> None:
    """Add a row to a table; on return the row is on disk.

    A row with the same `run_id` is replaced. Columns that the table does not have are added at its end and stay empty
    in older rows. None and nan become empty cells. A table that is not a rectangle any more (edited by hand, cut off)
    is set aside as `<name>.damaged-<random>` and a new one is begun. The lock is the file `<name>.lock` beside it.

    Raises:
        UserError: the folder is not writable, or the lock stays taken for ten minutes.
    """
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(Path(f"{path}.lock"), LOCK_TIMEOUT):
                _append_locked(path, {_cell(name): _cell(value) for name, value in row.items()})
        except LockTaken as e:
            raise UserError(
                f"{path} stays locked: end the process that holds {path.name}.lock (this run's row is missing){e.hint}"
            ) from None


def summary_row(run: Run, scenario: str, summary: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The row of one run in one scenario.

    Columns: `task1..taskT` (mean accuracy after task t over those of tasks 1..t that have test examples, percent, nan
    where it was not evaluated), those of `COLUMNS` (None where undefined), `run_id`, `seed`, those of `identity.FACTS`
    (files, data, the checkpoint it started from), `versions`, `leaks`, `marks`, those of `COSTS` that are known, then
    every option. An option whose name is one of the former is called `option_<name>`.
    """
    matrix = run.matrices[scenario]
    row: dict[str, Any] = {f"task{t + 1}": float(mean) for t, mean in enumerate(seen_means(matrix))}
    row |= {column: summary.get(scenario, {}).get(metric) for column, metric in COLUMNS.items()}
    row |= {"run_id": run.folder.name if run.folder else None, "seed": run.seed}
    row |= {name: run.environment[name] for name in FACTS if name in run.environment}
    if versions := [f"{name} {run.environment[name]}" for name in VERSIONS if name in run.environment]:
        row["versions"] = ", ".join(versions)
    row |= {"leaks": "; ".join(run.leaks), "marks": "; ".join(run.marks)}
    row |= {name: run.costs[name] for name in COSTS if name in run.costs}
    taken = set(row) - {"seed"}
    return row | {f"option_{name}" if name in taken else name: value for name, value in run.config.items()}


def write_summary(run: Run, summary: dict[str, dict[str, float]]) -> list[Path]:
    """Add the run to results/<scenario>/<dataset>/<model>/mean_accs.csv, one table per scenario; returns the tables.

    A class-IL run is scored as class-IL and as task-IL, so it has a row under results/class-il and one under
    results/task-il.
    """
    paths = []
    for scenario in run.matrices:
        path = run.results_path / scenario / run.dataset_name / Path(run.model_name).stem / "mean_accs.csv"
        append_row(path, summary_row(run, scenario, summary))
        paths.append(path)
    return paths


def _append_locked(path: Path, row: dict[str, str]) -> None:
    remove_leftovers(path.parent)  # all writers of this table hold the lock: these are of one that was killed
    try:
        rows = _read(path)
    except (ValueError, csv.Error):
        os.replace(path, path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}"))
        rows = []
    # A run that was killed between this row and its end writes it once more when it is resumed.
    rows = [old for old in rows if not row.get("run_id") or old.get("run_id") != row["run_id"]] + [row]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for old in rows for name in old)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _read(path: Path) -> list[dict[str, str]]:
    """The rows; ValueError where the file is no table."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        header, *rows = [row for row in csv.reader(f, strict=True) if row] or [[]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path} is not a table")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    # A bare carriage return ends a row for a csv reader, yet the writer does not quote it.
    return str(value).replace("\r\n", "\n").replace("\r", "\n")
