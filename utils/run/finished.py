"""What a finished run leaves, so that it can be shown again: its record, and fingerprints of all it learned."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from palimpsest.models.utils.state import describe
from palimpsest.utils.atomic import write_text
from palimpsest.utils.config_file import plain_yaml, read_config
from palimpsest.utils.errors import UserError
from palimpsest.utils.panels import Panel
from palimpsest.utils.record import Analysis, Evaluation, Experiment, Run
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.checkpoint_checks import check_leaks, check_scores

RESULT = "result.yaml"  # written last: a run that has it is finished
RECORD = "record.json"  # scores and losses as they are in memory
# What a record may name to draw a panel: our own pictures, and nothing else that can be imported.
DRAWN_AGAIN = re.compile(r"palimpsest(\.\w+)+\.(plots|charts):[a-z]\w*")
KEYS = {"environment": dict, "matrices": dict, "baselines": dict, "history": list, "losses": list, "epochs": list}


def write_result(exp: Experiment) -> None:
    """`record.json`, then `result.yaml`, the last file a run writes: fingerprints of all it learned and its scores."""
    run = exp.run
    record = {
        "environment": run.environment,
        "matrices": {name: matrix.tolist() for name, matrix in run.matrices.items()},
        "baselines": {name: list(map(float, scores)) for name, scores in run.baselines.items()},
        "history": [vars(e) for e in run.history],
        "points": [vars(e) for e in run.points],
        "losses": run.losses,
        "epochs": run.epochs,
        "leaks": run.leaks,
        "report": _for_report(run),
    }
    write_text(run.folder / RECORD, json.dumps(record) + "\n")
    facts = {
        "iterations": run.history[-1].step if run.history else 0,
        "weights": checkpoint.fingerprint(dict(exp.model.named_parameters())),
        "state": checkpoint.fingerprint(sorted(describe(exp.model).items())),
        "scores": _fingerprint(run.history),
    }
    write_text(run.folder / RESULT, yaml.safe_dump(facts, sort_keys=False))


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_result` wrote of a finished run.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read ({type(e).__name__}): move the folder away to run it again") from None
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in KEYS.items()):
        raise UserError(f"{path} is not what a run writes: move the folder away to run it again")
    return record


def restore_record(run: Run) -> None:
    """Fill a run with the record of its folder.

    Raises:
        UserError: the record is not what the run wrote.
    """
    record, folder = read_record(run.folder), run.folder
    try:
        history, points = ([Evaluation(**e) for e in record.get(name, [])] for name in ("history", "points"))
        matrices = {name: np.array(rows, dtype=np.float64) for name, rows in record["matrices"].items()}
        tensors = {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
        entries = record["history"] + record.get("points", [])
        check_scores(record | {"history": entries, "matrices": tensors, "pictures": [], "pending": []}, run.n_tasks)
        if (plain_yaml(folder / RESULT) or {}).get("scores") != _fingerprint(history):
            raise ValueError("other scores than those of the run")
        run.leaks[:] = check_leaks(record.get("leaks", []))
        run.baselines = {name: [float(x) for x in scores] for name, scores in record["baselines"].items()}
        run.losses = [(int(step), dict(means), float(lr)) for step, means, lr in record["losses"]]
    except checkpoint.MALFORMED as e:
        raise UserError(
            f"{folder / RECORD} is not what this run wrote ({type(e).__name__}): move the folder away to run it again"
        ) from None
    run.history, run.points, run.matrices, run.epochs = history, points, matrices, record["epochs"]
    run.position = history[-1].step if history else 0


def load_run(folder: Path) -> Run:
    """A finished run as its folder has it: what `write_report` needs to write the same page again, but for the
    predictions on a vision stream's images.

    Raises:
        UserError: no folder of a finished run, or its files are not what a run writes.
    """
    if not (folder / RESULT).is_file():
        raise UserError(f"{folder} is no folder of a finished run: there is no {RESULT}")
    facts, record = read_config(folder / "config.yaml"), read_record(folder)
    more = record.get("report", {})
    try:
        run = Run(
            model_name=facts["model"],
            dataset_name=facts["dataset"],
            setting=facts["setting"],
            n_tasks=len(next(iter(record["matrices"].values()), ())),
            seed=facts["seed"],
            config=facts["options"],
            origins=facts["origins"],
            results_path=folder.parent,
            folder=folder,
            parameters=facts["parameters"],
            score=more.get("score", "accuracy"),
            shares=tuple(more.get("shares", ())),
            tasks=dict(more.get("tasks", {})),
            notes=facts["notes"],
            environment=record["environment"],
            published=more.get("published"),
            chosen_on=str(facts.get("chosen_on", "unknown")),
            trial=facts.get("trial") is True,
            marks=[str(mark) for mark in more.get("marks", ())],
            seconds=0.0,
        )
        if found := _unpacked(more.get("analysis")):
            found["panels"] = [Panel(**panel) for panel in found["panels"] if DRAWN_AGAIN.fullmatch(panel["draw"])]
            run.analysis = Analysis(**found)
    except (*checkpoint.MALFORMED, StopIteration) as e:
        raise UserError(f"{folder} does not hold what a run writes ({type(e).__name__})") from None
    restore_record(run)
    return run


def _for_report(run: Run) -> dict[str, Any]:
    """What the page says besides scores and configuration; of pictures the numbers, but not those of a vision stream's
    images.
    """
    facts = {"score": run.score, "shares": run.shares, "tasks": run.tasks, "published": run.published}
    facts["marks"] = run.marks
    if found := run.analysis:
        panels = [vars(panel) for panel in found.panels]
        facts["analysis"] = {"costs": found.costs, "confusion": found.confusion, "numbers": found.numbers}
        facts["analysis"]["panels"] = panels
    return _packed(facts)


def _packed(value: Any) -> Any:
    """A value as JSON can hold it, an array as its type and its numbers."""
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "type": str(value.dtype)}
    if isinstance(value, dict):
        return {str(name): _packed(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array", "type"}:
            return np.array(value["array"], dtype=value["type"])
        return {name: _unpacked(item) for name, item in value.items()}
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


def _fingerprint(history: list[Evaluation]) -> str:
    return checkpoint.fingerprint([vars(e) for e in history])
