"""What the page over all runs shows, as values that JSON can hold: a list of runs, and one run in detail.

The server and the published site say the same by these functions. Nothing here writes, and nothing outside the folder
is read, links included.
"""

import csv
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from palimpsest.utils.args import NEUTRAL, SEEDS
from palimpsest.utils.errors import UserError
from palimpsest.utils.study.records import RESULT, RUN, Record, read_run, run_folders

REPORT, LOSSES = "report.html", "losses.csv"
POINTS = 300  # of a loss curve on the page
SLOW, SHARE = 0.1, 10  # a look that took more than SLOW seconds is followed by a pause of SHARE times its length
# Options that tell no entry from another: seeds, and those without influence on the numbers.
NOT_TOLD = {"model", "dataset", "device", "data_device", "load_best_args", "model_config", *SEEDS, *NEUTRAL}
FILES = ("model_file", "dataset_file", "backbone_file", "code", "data")  # what else makes an entry, of the environment
# Options under which a score is no test score of the whole stream -> what a reader is told.
OTHER_SCORES = {"debug_mode": "debug run", "validation": "validation score", "start_from": "not all tasks"}
OTHER_SCORES |= {"stop_after": "not all tasks"}
CHOSEN = ("command line", "config file", "preset", "best_args")  # origins of an option that somebody chose


class Catalogue:
    """The runs below a folder; a file is read again only when it has changed.

    Args:
        folder: where the runs are.
        live: whether the page is told that runs may change.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: Path, live: bool = True):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        self.folder, self.root, self.live = folder, folder.resolve(), live
        self._known: dict[str, tuple[tuple, Record | None]] = {}
        self._records: dict[str, Record] = {}
        self._listing, self._version, self._lock, self._next = "", 0, Lock(), 0.0

    def refresh(self) -> None:
        """Look for runs that are new, changed or gone, but not at once again where a look takes long."""
        with self._lock:
            begin = time.monotonic()
            if begin < self._next:
                return
            known, changed = {}, False
            for path, files in run_folders(self.folder):
                try:
                    state = os.stat(os.path.join(path, RUN))
                except OSError:
                    continue  # removed since
                mark = (state.st_mtime_ns, state.st_size, state.st_ino, RESULT in files, REPORT in files)
                before = self._known.get(path)
                if before is None or before[0] != mark:
                    before, changed = (mark, self._read(path, files)), True
                known[path] = before
            if changed or known.keys() != self._known.keys() or not self._version:
                self._known = known
                found = {self.name(record.folder): record for _, record in known.values() if record}
                self._records = dict(sorted(found.items()))
                self._listing, self._version = json.dumps(self._list()), self._version + 1
            took = time.monotonic() - begin
            self._next = begin + SHARE * took if took > SLOW else 0.0

    def _read(self, path: str, files: set[str]) -> Record | None:
        record = read_run(path, files) if self.inside(Path(path) / RUN) else None
        return record if record and is_whole(record) else None

    def inside(self, path: Path) -> bool:
        """Whether a path is a file that lies in the folder, wherever its links lead."""
        try:
            path = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return False
        return path.is_file() and path.is_relative_to(self.root)

    def name(self, folder: Path) -> str:
        """A run's folder as the page names it: its path from the folder on, bytes that are no text escaped."""
        relative = folder.relative_to(self.folder).as_posix()
        return os.fsencode(relative).decode("utf-8", "backslashreplace")

    def listing(self) -> tuple[str, int]:
        """All runs as JSON, and a number that changes when they do."""
        with self._lock:
            return self._listing, self._version

    def names(self) -> list[str]:
        """The names of all runs."""
        return list(self._records)

    def detail(self, name: str) -> dict[str, Any] | None:
        """One run in full; None where there is none of this name."""
        record = self._records.get(name)
        if record is None:
            return None
        facts, origins = record.facts, record.facts.get("origins") or {}
        options = [[key, _text(value), str(origins.get(key, ""))] for key, value in sorted(record.options.items())]
        options = [row for row in options if row[0] not in NEUTRAL]
        return {
            "name": name,
            "chosen": [row for row in options if row[2] in CHOSEN],
            "others": [row for row in options if row[2] not in CHOSEN],
            "environment": {key: str(value) for key, value in record.environment.items()},
            "notes": {key: str(value) for key, value in (facts.get("notes") or {}).items()},
            "matrices": _rounded(record.matrices),
            "metrics": _rounded(record.metrics),
            "tasks": list(facts.get("tasks") or {}),
            "costs": {key: value for key, value in record.costs.items() if is_number(value) or isinstance(value, str)},
            "iterations": facts.get("iterations"),
            "losses": self._losses(record.folder / LOSSES),
        }

    def report(self, name: str) -> Path | None:
        """The report of a run, or of the runs over several seeds that one of the runs belongs to; None without one."""
        record = self._records.get(name)
        folder = record.folder if record else self._groups().get(name)
        path = folder / REPORT if folder else None
        return path if path and self.inside(path) else None

    def reports(self) -> Iterable[tuple[str, Path]]:
        """(name, report) of every run and of every set of seeds that has one."""
        for name in [*self._records, *self._groups()]:
            if path := self.report(name):
                yield name, path

    def _groups(self) -> dict[str, Path]:
        """Folders of sets of seeds, by name."""
        folders = [r.folder.parent / str(r.facts["group"]) for r in self._records.values() if r.facts.get("group")]
        return {self.name(folder): folder for folder in folders if folder.name.startswith("seeds_")}

    def _list(self) -> dict[str, Any]:
        from palimpsest.utils.metrics import METRICS

        entries, of_run = name_entries(self._records)
        rows = [self._row(name, record, of_run[name]) for name, record in self._records.items()]
        metrics = {name: [m.title, m.definition, m.better] for name, m in METRICS.items()}
        return {
            "live": self.live, "folder": self.root.name, "entries": entries, "metrics": metrics, "runs": rows,
        }  # fmt: skip

    def _row(self, name: str, record: Record, entry: int) -> dict[str, Any]:
        facts, options = record.facts, record.options
        curves = {scenario: seen_means(matrix) for scenario, matrix in record.matrices.items()}
        done = max((t + 1 for c in curves.values() for t, value in enumerate(c) if value is not None), default=0)
        marks = [str(mark) for mark in facts.get("marks") or []]
        other = [told for option, told in OTHER_SCORES.items() if options.get(option)]
        group = record.folder.parent / str(facts.get("group"))
        return {
            "name": name,
            "model": record.model,
            "dataset": record.dataset,
            "setting": record.setting,
            "seed": record.seed,
            "state": record.state,
            "reason": record.reason,
            "entry": entry,
            "score": facts.get("score"),
            "tasks": facts.get("n_tasks"),
            "done": done,
            "metrics": _rounded(record.metrics),
            "curves": _rounded(curves),
            "costs": {key: value for key, value in record.costs.items() if is_number(value)},
            "changed": round(self._known[str(record.folder)][0][0] / 1e9),
            "other": sorted(set(other)),
            "marks": marks,
            "leaks": [str(leak) for leak in facts.get("leaks") or []],
            "chosen_on": facts.get("chosen_on"),
            "report": self.inside(record.folder / REPORT),
            "seeds_report": self.name(group) if facts.get("group") and self.inside(group / REPORT) else None,
        }

    def _losses(self, path: Path) -> dict[str, list[list[float]]]:
        """Term -> steps and values of losses.csv, in at most `POINTS` means; nothing without the file."""
        found: dict[str, list[tuple[int, float]]] = {}
        if not self.inside(path):
            return {}
        try:
            with open(path, newline="", encoding="utf-8") as f:
                for step, term, value in list(csv.reader(f))[1:]:
                    if math.isfinite(number := float(value)):
                        found.setdefault(term, []).append((int(step), number))
        except (OSError, ValueError, csv.Error):
            pass  # its last row is just being written: what came before is shown
        return {term: thin(points) for term, points in found.items()}


def is_whole(record: Record) -> bool:
    """Whether a run.json, which anybody may have written, has what the page counts with in the form it needs."""
    facts = record.facts
    matrices, metrics = facts["matrices"].values(), facts["metrics"].values()
    scores = [rows for rows in matrices if isinstance(rows, list) and all(isinstance(row, list) for row in rows)]
    values = [value for rows in scores for row in rows for value in row]
    values += [value for found in metrics if isinstance(found, dict) for value in found.values()]
    return (
        len(scores) == len(matrices)
        and all(isinstance(found, dict) for found in metrics)
        and all(value is None or is_number(value) for value in values)
        and is_number(facts.get("n_tasks"))
        and all(isinstance(facts.get(name) or [], list) for name in ("marks", "leaks"))
        and all(isinstance(facts.get(name) or {}, dict) for name in ("origins", "notes", "tasks"))
        and isinstance(facts.get("chosen_on") or "", str)
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number that JSON has a form for."""
    return isinstance(value, int | float) and math.isfinite(value)


def thin(points: list[tuple[int, float]]) -> list[list[float]]:
    """Steps and values of a curve, means over neighbours where it has more than `POINTS` points."""
    width = -(-len(points) // POINTS)
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [
        [part[-1][0] for part in parts],
        [float(f"{sum(value for _, value in part) / len(part):.5g}") for part in parts],
    ]


def seen_means(matrix: list[list[float | None]]) -> list[float | None]:
    """Mean score over the tasks seen, after each task; None where nothing was evaluated.

    `utils.metrics.seen_means` on lists: an array for each of a thousand runs takes longer than reading them.
    """
    out = []
    for t, row in enumerate(matrix):
        scores = [score for score in row[: t + 1] if score is not None]
        out.append(sum(scores) / len(scores) if scores else None)
    return out


def name_entries(records: dict[str, Record]) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Runs that differ in their seeds alone are one entry of a comparison.

    Returns:
        The entries, each with model, dataset, setting and `label`: the method, and the options, files or data in which
        the entries of its stream and method differ, those at their defaults only where two labels would be the same.
        Then the place of each run's entry by the run's name.
    """
    entries, of_run, groups = [], {}, {}
    for name, record in records.items():
        groups.setdefault((record.dataset, record.setting, record.model), {})[name] = _told(record)
    for (dataset, setting, model), told in groups.items():
        keys = _differing(told.values())
        plain = [facts for name, facts in told.items() if _is_plain(records[name])]
        few = _differing(plain)  # a debug run makes no other label longer
        members: dict[tuple[str, ...], list[str]] = {}
        for name, facts in told.items():
            members.setdefault(tuple(facts.get(key, "") for key in keys), []).append(name)
        short = []
        for names in members.values():
            mine = next(filter(_is_plain, map(records.get, names)), None)
            short.append(_label(model, few if mine else keys, told[names[0]], mine or records[names[0]]))
        for label, names in zip(short, members.values(), strict=True):
            label = label if short.count(label) == 1 else _label(model, keys, told[names[0]])
            of_run |= dict.fromkeys(names, len(entries))
            entries.append({"model": model, "dataset": dataset, "setting": setting, "label": label})
    return entries, of_run


def _differing(told: Iterable[dict[str, str]]) -> list[str]:
    """The keys of which several runs do not say the same."""
    told = list(told)
    return [key for key in dict.fromkeys(k for facts in told for k in facts) if len({f.get(key, "") for f in told}) > 1]


def _is_plain(record: Record) -> bool:
    """Whether a run's scores are those that others are compared with."""
    return record.state != "failed" and not any(map(record.options.get, OTHER_SCORES))


def _label(model: str, keys: list[str], facts: dict[str, str], record: Record | None = None) -> str:
    """Method and facts as one text; of a record, only those that somebody chose."""
    origins = record.facts.get("origins") or {} if record else {}
    told = [key for key in keys if key in FILES or origins.get(key, CHOSEN[0]) in CHOSEN]
    return ", ".join([model, *filter(None, (_word(key, facts.get(key, "")) for key in told))])


def _told(record: Record) -> dict[str, str]:
    """All that makes a run's entry, as text."""
    told = {key: _text(value) for key, value in record.options.items() if key not in NOT_TOLD}
    return told | {key: str(record.environment.get(key, "")) for key in FILES}


def _word(key: str, value: str) -> str:
    """An option's value as a part of a label."""
    if value in ("", "False"):
        return ""
    if key in FILES:
        return f"{key.replace('_file', ' file')} {value.rpartition(' ')[2][:6]}"
    return key if value == "True" else f"{key} {value}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    """Scores as short as a page needs them."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
