"""`report.html`: what the pages of a run and of a set of seeds say; how they look is in the templates.

Clocks and peaks of memory are not in it: equal runs leave equal pages.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.utils import charts, criterion, metrics
from palimpsest.utils.args import NEUTRAL
from palimpsest.utils.atomic import file_errors, write_bytes, write_text
from palimpsest.utils.log import captions, plots
from palimpsest.utils.log.page import KINDS, Picture, count, drawn, render
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.record import Run, Summary

# Options that change what a score means: a published score is not beside the same thing when one is given.
PROTOCOL = (
    *("validation", "holdout", "joint", "label_perc", "noise_rate", "start_from", "stop_after", "debug_mode"),
    *("custom_class_order", "custom_task_order", "permute_classes", "normalize", "fitting_mode", "backbone"),
    *("init_cls", "increment"),
)


def summarise_run(run: Run) -> Summary:
    """Every metric of `utils.metrics` that the scores so far define, per scenario."""
    return {name: metrics.summarise(*_measured(run, name)) for name in run.matrices}


def excluded_terms(run: Run) -> dict[str, dict[str, int]]:
    """How many undefined terms `summarise_run` left out, per scenario and metric."""
    return {name: metrics.excluded(*_measured(run, name)) for name in run.matrices}


def _measured(run: Run, scenario: str) -> tuple[np.ndarray, Any, list[tuple[int, list[float]]], list[int]]:
    """Score matrix, untrained scores, and the history where evaluations during tasks were asked for: one per iteration,
    the last where several are at the same one. Of any-time evaluation these are its points, with their iterations;
    whole evaluations are no part of that curve.
    """
    evaluations = [e for e in run.points or run.history if e.task >= 0]
    points = {e.step: (e.task, e.scores[scenario]) for e in evaluations}
    during = run.config.get("eval_epochs") or any(evaluation.epoch is not None for evaluation in evaluations)
    history = list(points.values()) if during else []
    return run.matrices[scenario], run.baselines.get(scenario), history, [*points] if during and run.points else []


def write_report(run: Run, summary: Summary, refresh: int = 0) -> Path:
    """Write report.html into the run's folder and return its path; a run that is not finished is reported so far. With
    `--figures png` or `pdf` the pictures of a finished one are also files, plots/<name>.png.

    Args:
        refresh: seconds after which a browser reads the page again; 0 for never.

    Raises:
        UserError: a file cannot be written.
    """
    pictures = list(pictures_of(run))
    first = [picture for picture in pictures if picture.name in _first_screen(run)]
    rows = criterion.of_run(run)
    judged = {
        "head": criterion.COLUMNS,
        "rows": list(map(criterion.cells, rows)),
        "remarks": criterion.remarks(run, rows),
    }
    finished, trained = run.seconds is not None, _trained(run)
    numbers = run.analysis.numbers.items() if run.analysis else ()
    metrics_rows, undefined = _metrics(run, summary)
    text = render(
        "run.html",
        title=f"{run.model_name} on {run.dataset_name}, seed {run.seed}",
        headline=headline(run, count(run.n_tasks, "task") if finished and trained == run.n_tasks else
                           f"{trained} of {count(run.n_tasks, 'task')}", "finished" if finished else "not finished"),
        refresh=refresh,
        model=run.model_name,
        key=_key_numbers(run, summary),
        first=first,
        pictures=[picture for picture in pictures if picture not in first],
        scenarios=list(run.matrices),
        metrics=metrics_rows,
        undefined=undefined,
        criterion=judged if rows else None,
        published=beside_published(run, summary),
        findings=[(name, f"{value:.4g}") for name, value in numbers],
        costs=_costs(run.analysis.costs) if run.analysis else [],
        **setup(run),
    )  # fmt: skip
    path = write_page(run.folder, text)
    if finished and (kind := run.config.get("figures")) in KINDS:
        with file_errors(run.folder / "plots"):
            (run.folder / "plots").mkdir(exist_ok=True)
        for picture in pictures:
            write_bytes(run.folder / "plots" / f"{picture.name}.{kind}", drawn(picture.figure, kind))
    return path


def write_page(folder: Path, text: str) -> Path:
    path = folder / "report.html"
    with file_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def headline(run: Run, *more: str) -> str:
    return " · ".join([run.setting, f"{run.parameters:,} parameters", *more])


def key_metrics(run: Run, summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    """(label, scenario, metric, unit) of the numbers that matter first: accuracy and forgetting in the run's setting,
    and accuracy where the task is given.
    """
    for k, scenario in enumerate(run.matrices):
        for metric, unit in (("acc", " %"), ("forgetting", " points"))[: 1 if k else 2]:
            if metric in summary.get(scenario, {}):
                title = METRICS[metric].title.split(" (")[0]
                yield f"{plots.worded(title, run.score)}, {scenario}", scenario, metric, unit


def _key_numbers(run: Run, summary: Summary) -> list[tuple[str, str]]:
    return [(label, f"{summary[scenario][metric]:.2f}{unit}")
            for label, scenario, metric, unit in key_metrics(run, summary)]  # fmt: skip


def _metrics(run: Run, summary: Summary) -> tuple[list, list]:
    """Rows of the metrics that some scenario defines, and of those that none does with the reason why."""
    left_out, rows, undefined = excluded_terms(run), [], []
    for metric in METRICS:
        cells = []
        for scenario in run.matrices:
            missing = left_out[scenario].get(metric)
            note = f"{count(missing, 'undefined term')} left out" if missing else ""
            value = summary.get(scenario, {}).get(metric)
            cells.append((f"{value:.2f}", note) if value is not None else ("-", reason(run, scenario, metric)))
        if any(text != "-" for text, _ in cells):
            rows.append([about(metric, run), *cells])
        elif cells:
            undefined.append((about(metric, run), cells[0][1]))
    return rows, undefined


def about(metric: str, run: Run) -> tuple[str, str]:
    """A metric's name and definition, in the words of the run's score."""
    entry = METRICS[metric]
    return plots.worded(entry.title, run.score), plots.worded(entry.definition, run.score)


def reason(run: Run, scenario: str, metric: str) -> str:
    return metrics.reason(metric, *_measured(run, scenario))


def beside_published(run: Run, measured: Summary) -> dict[str, list] | None:
    """The stored row's published scores beside the measured ones, where they come from, what differs from the row."""
    row, rows = run.published, []
    if not row:
        return None
    for scenario, entry in (row.get("published") or {}).items():
        for metric in [name for name in METRICS if entry.get(name) is not None]:
            std = entry.get("std" if metric == "acc" else f"{metric}_std")
            value = measured.get(scenario, {}).get(metric)
            rows.append([scenario, METRICS[metric].title, *_comparison(run, entry[metric], std, value)])
    lines = [] if rows else ["No published score is stored for this row."]
    lines.append(f"Source: {row.get('source', 'not given')}")
    if rows and str(row.get("source", "")).startswith("ours"):
        lines.append("Measured with this program.")
    elif rows and row.get("verified"):
        lines.append("The published score was checked against a published text.")
    elif rows:
        lines.append("The published score is from memory, not checked against the text.")
    lines += [f"{field.capitalize()}: {row[field]}" for field in ("note", "known", "inferred") if row.get(field)]
    if changed := _changed(run, row.get("args") or {}):
        lines.append(f"Set on the command line, apart from the stored row: {'; '.join(changed)}.")
    return {"rows": rows, "lines": lines}


def _comparison(run: Run, published: float, std: float | None, value: float | None) -> list[str]:
    """Cells: published, measured, difference, whether the difference is within one published standard deviation."""
    shown = f"{published:.2f}" + (f" ± {std:.2f}" if std is not None else "")
    if value is None:
        return [shown, "not measured", "-", "unknown"]
    if not run.published.get("comparable", True):
        return [shown, f"{value:.2f}", "-", "not comparable"]
    if _trained(run) < run.n_tasks:
        return [shown, f"{value:.2f}", "-", "not comparable: not all tasks were trained"]
    difference = round(value - published, 2)
    inside = "unknown" if std is None else "yes" if abs(difference) <= std else "no"
    return [shown, f"{value:.2f}", f"{difference:+.2f}", inside]


def _changed(run: Run, stored: dict[str, Any]) -> list[str]:
    """Options that the command line sets otherwise than the stored row, and those that change what is measured."""
    out = []
    for name, value in _options(run).items():
        if run.origins.get(name) != "command line":
            continue
        if name in stored and str(stored[name]) != str(value):
            out.append(f"{name} is {value}, stored is {stored[name]}")
        elif name in PROTOCOL and name not in stored and value:
            out.append(f"{name} is {value}")
    return out


def _first_screen(run: Run) -> tuple[str, str]:
    return f"matrix_{next(iter(run.matrices), '')}", "average_accuracy"


def pictures_of(run: Run) -> Iterator[Picture]:
    """Every picture that the run has the numbers for."""
    curves = {name: metrics.seen_means(matrix)[None] for name, matrix in run.matrices.items()}
    several = any((~np.isnan(curve)).sum() > 1 for curve in curves.values())
    for name, matrix in run.matrices.items():
        figure = plots.accuracy_matrix(matrix, f"Accuracy matrix: {name}", run.score, run.task_names)
        yield Picture(f"matrix_{name}", figure, captions.matrix(matrix, run.score), run.n_tasks > charts.WIDE)
    if several:
        yield Picture("average_accuracy", plots.average_curves(curves, run.score), captions.average(curves, run.score))
    for name, matrix in run.matrices.items() if several else ():
        figure = plots.accuracy_curves(matrix, f"Accuracy of each task: {name}", run.score, run.task_names)
        yield Picture(f"accuracy_{name}", figure, plots.worded(captions.TASKS, run.score))
    for name in run.matrices if run.points else ():
        points = [(point.step, point.scores[name]) for point in run.points]
        switches = [point.step for point in run.points if point.epoch is None]
        figure = plots.point_curves(points, switches, f"Accuracy between the ends of tasks: {name}", run.score)
        yield Picture(f"points_{name}", figure, plots.worded(captions.POINTS, run.score), True)
    terms = {scenario: metrics.terms(*_measured(run, scenario)) for scenario in run.matrices}
    for metric, (title, _) in plots.BARS.items():
        shown = {scenario: found[metric] for scenario, found in terms.items() if metric in found}
        shown = {scenario: values for scenario, values in shown.items() if not np.isnan(values).all()}
        if shown:
            figure = plots.term_bars(metric, shown, run.score)
            yield Picture(title.lower().replace(" ", "_"), figure, plots.worded(captions.BARS[metric], run.score))
    if found := run.analysis:
        if found.confusion is not None:
            wide = len(found.confusion) > charts.WIDE
            yield Picture("confusion", charts.confusion_matrix(found.confusion), captions.CONFUSION, wide)
        for panel in found.panels:
            yield Picture(panel.name, panel.figure(), f"{panel.shows[:1].upper()}{panel.shows[1:]}.", panel.wide)
        for name, shows, figure, wide in found.figures:
            yield Picture(name, figure, f"{shows[:1].upper()}{shows[1:]}.", wide)
    if run.epochs and run.tasks:
        from palimpsest.datasets.utils.vision.plots import stage_curves

        figure = stage_curves(run.epochs, run.tasks, run.config.get("joint"))
        yield Picture("stages", figure, captions.STAGES, True)
    ends = [evaluation.step for evaluation in run.history if evaluation.epoch is None]
    names = dict.fromkeys(name for _, terms, _ in run.losses for name in terms)
    if run.losses:
        losses = [name for name in names if name not in run.shares]
        yield Picture("loss", plots.loss_curves(run.losses, losses, ends), captions.LOSS, True)
    if shares := [name for name in names if name in run.shares]:
        figure = plots.loss_curves(run.losses, shares, ends, shares=True)
        yield Picture("shares", figure, "Shares that the method logs, over training.", True)


COSTS = {
    "parameters": "parameters, all that the method keeps as such",
    "bytes_parameters": "network, and what else is trained",
    "bytes_buffer": "replay buffers",
    "bytes_teachers": "teachers and other frozen copies",
    "bytes_statistics": "all else that the method keeps",
    "flops_training": "floating-point operations of training",
    "flops_inference": "floating-point operations for 1,000 test images",
}


def _costs(costs: dict[str, int]) -> list[tuple[str, str]]:
    """Rows of what a run knows of its costs; clocks are in timing.yaml."""
    shown = {name: _size if name.startswith("bytes") else "{:,}".format for name in COSTS if name in costs}
    return [(COSTS[name], form(costs[name])) for name, form in shown.items()]


def _size(n: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(max(n.bit_length() - 1, 0) // 10, 4)
    return f"{n / 1024**power:,.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _options(run: Run) -> dict[str, Any]:
    """The options that the numbers depend on: those by which two starts of one run may differ are left out."""
    return {name: value for name, value in run.config.items() if name not in NEUTRAL}


def setup(run: Run, leave_out: Sequence[str] = ()) -> dict[str, list]:
    """Notes, the options that somebody chose with where they come from, those at their defaults, the environment."""
    options = {name: str(value) for name, value in sorted(_options(run).items()) if name not in leave_out}
    rows = [(name, value, run.origins.get(name, "")) for name, value in options.items()]
    return {
        "notes": [
            *(("leak", leak) for leak in run.leaks),
            *(("mark", mark) for mark in run.marks),
            *run.notes.items(),
        ],
        "chosen": [row for row in rows if row[2] not in ("", "default")],
        "defaults": [row[:2] for row in rows if row[2] in ("", "default")],
        "environment": list(run.environment.items()),
    }


def _trained(run: Run) -> int:
    """How many tasks the scores cover: joint training covers all of them with one row."""
    rows = [np.flatnonzero(~np.isnan(matrix).all(axis=1)) for matrix in run.matrices.values()]
    return max((int(row[-1]) + 1 for row in rows if row.size), default=0)
