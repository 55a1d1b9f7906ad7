"""Values as the formats of files can hold them."""

import csv
import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from palimpsest.utils.record import Evaluation

# What a store of runs gets of a run's folder.
FILES = ("config.yaml", "metrics.csv", "accuracy_matrix.csv", "per_class.csv", "confusion.csv", "report.html")


def plain(value: Any) -> Any:
    """A value as plain YAML can hold it: numbers, text, lists and dicts; anything else as its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def defined(value: Any) -> Any:
    """A value as JSON can hold it: None in place of what is not finite, lists in place of arrays."""
    if isinstance(value, dict):
        return {name: defined(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [defined(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def csv_text(rows: Iterable[Iterable]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def loss_points(means: dict[str, float], lr: float) -> dict[str, float]:
    """Losses as a store of runs names them."""
    return {f"loss/{term}": value for term, value in means.items()} | {"lr": lr}


def score_points(evaluation: Evaluation) -> dict[str, float]:
    """Scores as a store of runs names them: `class-il/acc_task01`..., and the means over the tasks seen."""
    points = {f"{scenario}/{name}_task{task + 1:02d}": v for name, scenario, task, v in evaluation.values("acc")}
    for metric, scenarios in {"acc": evaluation.scores, **evaluation.others}.items():
        points |= {f"{name}/{metric}_mean": evaluation.seen_mean(scores) for name, scores in scenarios.items()}
    return points
