"""`report.html`: one self-contained page per run, and one per set of seeds.

Plots are embedded, nothing is fetched, every text is escaped: the page can be mailed, archived and printed. Clocks and
peaks of memory are not in it: equal runs leave equal pages.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.utils import charts, criterion, metrics
from palimpsest.utils.args import NEUTRAL
from palimpsest.utils.atomic import file_errors, write_bytes, write_text
from palimpsest.utils.log import plots
from palimpsest.utils.log.page import count, drawn, escape, images, page, section, table
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.record import Run, Summary

SeedsTable = dict[str, dict[str, tuple[float, float, float, int]]]

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


def _measured(run: Run, scenario: str) -> tuple[np.ndarray, Any, list[tuple[int, list[float]]]]:
    """Score matrix, untrained scores, and the history where evaluations during tasks were asked for: one per iteration,
    the last where several are at the same one.
    """
    points = {e.step: (e.task, e.scores[scenario]) for e in run.history if e.task >= 0}
    during = run.config.get("eval_epochs") or any(evaluation.epoch is not None for evaluation in run.history)
    return run.matrices[scenario], run.baselines.get(scenario), list(points.values()) if during else []


def summarise_seeds(summaries: Sequence[Summary]) -> SeedsTable:
    """Mean, standard deviation and 95 % interval of each metric over several runs.

    Args:
        summaries: one per run; a metric that a run does not define does not count for it.

    Returns:
        scenario -> metric -> (mean, sample standard deviation, half width of Student's t 95 % interval, number of
        runs), nan where there are too few runs for one, see `utils.metrics.spread`.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for summary in summaries:
        for scenario, entries in summary.items():
            for metric, value in entries.items():
                values.setdefault(scenario, {}).setdefault(metric, []).append(float(value))
    return {name: {metric: metrics.spread(v) for metric, v in entries.items()} for name, entries in values.items()}


def write_report(run: Run, summary: Summary) -> Path:
    """Write report.html into the run's folder and return its path; a run that is not finished is reported so far. The
    plots of a finished one are also written as plots/<name>.png.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [section("Metrics", _metrics_table(run, summary))]
    if rows := criterion.of_run(run):
        judged = table(criterion.COLUMNS, map(criterion.cells, rows), texts=2, dense=True)
        parts.append(section("Forgetting criterion", judged + _lines(criterion.remarks(run, rows))))
    parts += _published(run, summary) + _notes(run)
    if run.analysis and run.analysis.numbers:
        rows = [(name, f"{value:.4g}") for name, value in run.analysis.numbers.items()]
        parts.append(section(f"Findings of {run.model_name}", table(["what", "value"], rows, texts=1, dense=True)))
    figures = list(_figures(run))
    shown = images(entry[1:] for entry in figures) if figures else "<p>Nothing evaluated yet.</p>"
    parts.append(section("Plots", shown))
    if run.analysis:
        parts.append(section("Costs", _costs(run.analysis.costs)))
    parts += _configuration(run)
    if run.seconds is not None:
        with file_errors(run.folder / "plots"):
            (run.folder / "plots").mkdir(exist_ok=True)
        for name, figure, *_ in figures:
            write_bytes(run.folder / "plots" / f"{name}.png", drawn(figure, "png"))
    trained, tasks = _trained(run), count(run.n_tasks, "task")
    headline = [f"setting {run.setting}", f"{run.parameters:,} parameters"]
    headline.append(tasks if trained == run.n_tasks else f"{trained} of {tasks}")
    headline.append("not finished" if run.seconds is None else "finished")
    title = f"{run.model_name} on {run.dataset_name}, seed {run.seed}"
    return _write(run.folder, page(title, " · ".join(headline), parts))


def write_seeds_report(folder: Path, runs: Sequence[Run], spreads: SeedsTable) -> Path:
    """Write report.html about the same experiment under several seeds into `folder`, which is made; returns its path.

    Args:
        runs: the finished runs, all with the same options but the seed.
        spreads: what `summarise_seeds` returned for them.

    Raises:
        UserError: the file cannot be written.
    """
    first, summaries = runs[0], [summarise_run(run) for run in runs]
    parts = [section(f"Metrics: {name}", _seeds_table(name, runs, summaries, spreads[name])) for name in spreads]
    means = {name: {metric: entry[0] for metric, entry in entries.items()} for name, entries in spreads.items()}
    parts += _published(first, means, "Mean beside published") + _notes(first)
    curves = {name: np.stack([metrics.seen_means(run.matrices[name]) for run in runs]) for name in first.matrices}
    figure = plots.average_curves(curves, first.score)
    parts.append(section("Plots", images([(figure, "average accuracy over seeds", False)])))
    folders = [(run.seed, run.folder.name) for run in runs]
    parts.append(section("Runs", table(["seed", "folder"], folders, dense=True)))
    parts += _configuration(first, leave_out=("seed", "seeds"))
    title = f"{first.model_name} on {first.dataset_name}, {count(len(runs), 'seed')}"
    seeds = ", ".join(str(run.seed) for run in runs)
    headline = f"setting {first.setting} · seeds {seeds} · {count(first.n_tasks, 'task')}"
    return _write(folder, page(title, headline, parts))


def _write(folder: Path, text: str) -> Path:
    path = folder / "report.html"
    with file_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _metrics_table(run: Run, summary: Summary) -> str:
    """One column of numbers per scenario; in place of a number that is missing, why it is."""
    left_out = excluded_terms(run)

    def cell(scenario: str, metric: str) -> tuple[str, str]:
        if metric not in summary.get(scenario, {}):
            return _undefined(run, scenario, metric)
        missing = left_out[scenario].get(metric)
        return f"{summary[scenario][metric]:.2f}", f"{count(missing, 'undefined term')} left out" if missing else ""

    rows = [[_about(metric, run), *(cell(scenario, metric) for scenario in run.matrices)] for metric in METRICS]
    return table(["metric", *run.matrices], rows, texts=1)


def _about(metric: str, run: Run) -> tuple[str, str]:
    """A metric's name and definition, in the words of the run's score."""
    entry = METRICS[metric]
    return plots.worded(entry.title, run.score), plots.worded(entry.definition, run.score)


def _undefined(run: Run, scenario: str, metric: str) -> tuple[str, str]:
    return "not defined", metrics.reason(metric, *_measured(run, scenario))


def _published(run: Run, measured: Summary, title: str = "Measured beside published") -> list[str]:
    """The stored row's published scores beside the measured ones, where they come from, what differs from the row."""
    row, rows = run.published, []
    if not row:
        return []
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
    head = ["scenario", "metric", "published", "measured", "difference", "inside the spread"]
    return [section(title, (table(head, rows, texts=2) if rows else "") + _lines(lines))]


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


def _figures(run: Run) -> Iterator[tuple[str, Any, str, bool]]:
    """Every plot that the run has the numbers for: name of its file, figure, what it shows, whether it is wide."""
    curves = {name: metrics.seen_means(matrix)[None] for name, matrix in run.matrices.items()}
    several = any((~np.isnan(curve)).sum() > 1 for curve in curves.values())
    if several:
        yield "average_accuracy", plots.average_curves(curves, run.score), "average accuracy over training", False
    for name, matrix in run.matrices.items() if several else ():
        figure = plots.accuracy_curves(matrix, f"Accuracy of each task: {name}", run.score, run.task_names)
        yield f"accuracy_{name}", figure, f"accuracy of each task, {name}", False
    for name, matrix in run.matrices.items():
        figure = plots.accuracy_matrix(matrix, f"Accuracy matrix: {name}", run.score, run.task_names)
        yield f"matrix_{name}", figure, f"accuracy matrix, {name}", run.n_tasks > 10
    terms = {scenario: metrics.terms(*_measured(run, scenario)) for scenario in run.matrices}
    for metric, (title, _) in plots.BARS.items():
        shown = {scenario: found[metric] for scenario, found in terms.items() if metric in found}
        shown = {scenario: values for scenario, values in shown.items() if not np.isnan(values).all()}
        if shown:
            name = title.lower()
            figure = plots.term_bars(metric, shown, run.score)
            yield name.replace(" ", "_"), figure, f"{name} of each task", False
    if found := run.analysis:
        if found.confusion is not None:
            yield "confusion", charts.confusion_matrix(found.confusion), "confusion matrix", False
        if found.embedding:
            yield "embedding", plots.embedding(*found.embedding), "features of test examples", False
        yield from ((panel.name, panel.figure(), panel.shows, panel.wide) for panel in found.panels)
        yield from ((name, figure, shows, wide) for name, shows, figure, wide in found.figures)
    if run.epochs and run.tasks:
        from palimpsest.datasets.utils.vision.plots import stage_curves

        figure = stage_curves(run.epochs, run.tasks, run.config.get("joint"))
        yield "stages", figure, "loss and held-out score of each stage", True
    ends = [evaluation.step for evaluation in run.history if evaluation.epoch is None]
    names = dict.fromkeys(name for _, terms, _ in run.losses for name in terms)
    if run.losses:
        losses = [name for name in names if name not in run.shares]
        yield "loss", plots.loss_curves(run.losses, losses, ends), "training loss", True
    if shares := [name for name in names if name in run.shares]:
        yield "shares", plots.loss_curves(run.losses, shares, ends, shares=True), "shares that the method logs", True


def _costs(costs: dict[str, int]) -> str:
    rows = [
        ("parameters, all that the method keeps as such", f"{costs['parameters']:,}"),
        ("network", _size(costs["network_bytes"])),
        ("replay buffers", _size(costs["buffer_bytes"])),
        ("all that the method keeps besides the network, buffers included", _size(costs["method_bytes"])),
    ]
    note = "<p class=dim>Seconds and the peak of memory differ from run to run: they are in timing.yaml.</p>"
    return table(["what, at the end", "size"], rows, texts=1) + note


def _size(n: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(max(n.bit_length() - 1, 0) // 10, 4)
    return f"{n / 1024**power:,.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _notes(run: Run) -> list[str]:
    return [section("Notes", table(["about", "note"], run.notes.items()))] if run.notes else []


def _options(run: Run) -> dict[str, Any]:
    """The options that the numbers depend on: those by which two starts of one run may differ are left out."""
    return {name: value for name, value in run.config.items() if name not in NEUTRAL}


def _configuration(run: Run, leave_out: Sequence[str] = ()) -> list[str]:
    """Sections: every option with where its value came from, those somebody chose first; then the environment."""
    rows = [(name, v, run.origins.get(name, "")) for name, v in _options(run).items() if name not in leave_out]
    rows.sort(key=lambda row: (row[2] in ("", "default"), row[0]))
    parts = [section("Configuration", table(["option", "value", "origin"], rows, dense=True))]
    if run.environment:
        parts.append(section("Environment", table(["what", "value"], run.environment.items(), dense=True)))
    return parts


def _seeds_table(scenario: str, runs: Sequence[Run], summaries: list[Summary], entries: dict) -> str:
    rows = []
    for metric in METRICS:
        if metric not in entries:
            rows.append([_about(metric, runs[0]), _undefined(runs[0], scenario, metric), *["-"] * (len(runs) + 1)])
            continue
        mean, std, half, n = entries[metric]
        low, high = metrics.interval(metric, mean, half, runs[0].score)
        interval = f"needs {metrics.FEWEST} seeds" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        values = [summary.get(scenario, {}).get(metric) for summary in summaries]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        defined = f"of {n} seeds" if n < len(runs) else ""
        rows.append([_about(metric, runs[0]), (metrics.plus_minus(mean, std), defined), interval, *cells])
    head = ["metric", "mean ± std", "95 % interval", *(f"seed {run.seed}" for run in runs)]
    note = "<p class=dim>std: sample deviation. Interval of the mean: Student's t, cut to what the metric can be.</p>"
    return table(head, rows, texts=1) + note


def _trained(run: Run) -> int:
    """How many tasks the scores cover: joint training covers all of them with one row."""
    rows = [np.flatnonzero(~np.isnan(matrix).all(axis=1)) for matrix in run.matrices.values()]
    return max((int(row[-1]) + 1 for row in rows if row.size), default=0)
