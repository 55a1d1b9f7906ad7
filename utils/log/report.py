"""`report.html`: one self-contained page per run, and one per set of seeds.

Plots are embedded, nothing is fetched, every text is escaped: the page can be mailed, archived and printed. Clocks and
peaks of memory are not in it: equal runs leave equal pages.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import charts, criterion, metrics
from utils.args import NEUTRAL
from utils.atomic import file_errors, write_bytes, write_text
from utils.log import network_plots, plots
from utils.log.page import count, drawn, escape, image, page, section, table
from utils.metrics import METRICS, NEEDS
from utils.record import Run

Summary = dict[str, dict[str, float]]
SeedsTable = dict[str, dict[str, tuple[float, float, float, int]]]

# Options that change what a score means: a published score is not beside the same thing when one is given.
PROTOCOL = (
    *("validation", "holdout", "joint", "label_perc", "noise_rate", "start_from", "stop_after", "debug_mode"),
    *("custom_class_order", "custom_task_order", "permute_classes", "normalize", "fitting_mode", "backbone"),
)


def summarise_run(run: Run) -> Summary:
    """Every metric of `utils.metrics` that the scores so far define, per scenario."""
    return {name: metrics.summarise(*_measured(run, name)) for name in run.matrices}


def excluded_terms(run: Run) -> dict[str, dict[str, int]]:
    """How many undefined terms `summarise_run` left out, per scenario and metric."""
    return {name: metrics.excluded(*_measured(run, name)) for name in run.matrices}


def _measured(run: Run, scenario: str) -> tuple[np.ndarray, Any, list[tuple[int, list[float]]]]:
    """Score matrix, untrained scores, and the history where there were evaluations during tasks: one per iteration,
    the last where a task's end follows its last epoch.
    """
    points = {e.step: (e.task, e.scores[scenario]) for e in run.history if e.task >= 0}
    during = any(evaluation.epoch is not None for evaluation in run.history)
    return run.matrices[scenario], run.baselines.get(scenario), list(points.values()) if during else []


def summarise_seeds(summaries: Sequence[Summary]) -> SeedsTable:
    """Mean, standard deviation and 95 % interval of each metric over several runs.

    Args:
        summaries: one per run; a metric that a run does not define does not count for it.

    Returns:
        scenario -> metric -> (mean, sample standard deviation, half width of Student's t 95 % interval, number of
        runs). With one run the deviation is 0 and the half width nan.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for summary in summaries:
        for scenario, entries in summary.items():
            for metric, value in entries.items():
                values.setdefault(scenario, {}).setdefault(metric, []).append(float(value))
    return {name: {metric: spread(v) for metric, v in entries.items()} for name, entries in values.items()}


def write_report(run: Run, summary: Summary) -> Path:
    """Write report.html into the run's folder and return its path; a run that is not finished is reported so far. The
    plots of a finished one are also written as plots/<name>.png.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [section("Metrics", _metrics_table(run, summary))]
    if rows := criterion.of_run(run):
        judged = table(criterion.COLUMNS, map(criterion.cells, rows), "dense", numeric=range(2, len(criterion.COLUMNS)))
        remarks = "".join(f"<p>{escape(line)}</p>" for line in criterion.remarks(run, rows))
        parts.append(section("Forgetting criterion", judged + remarks))
    if run.published:
        parts.append(section("Measured beside published", _published(run, summary)))
    if run.notes:
        parts.append(section("Notes", table(["about", "note"], run.notes.items())))
    if run.analysis and run.analysis.numbers:
        rows = [[name, f"{value:.4g}"] for name, value in run.analysis.numbers.items()]
        parts.append(section(f"Findings of {run.model_name}", table(["what", "value"], rows, "dense", numeric=(1,))))
    figures = list(_figures(run))
    parts.append(section("Plots", _embedded(figures) if figures else "<p>Nothing evaluated yet.</p>"))
    if run.analysis:
        parts.append(section("Costs", _costs(run)))
    parts += _configuration(run)
    path = run.folder / "report.html"
    if run.seconds is not None:
        _write_plots(run.folder / "plots", figures)
    write_text(path, page(f"{run.model_name} on {run.dataset_name}, seed {run.seed}", _headline(run), parts))
    return path


def write_seeds_report(folder: Path, runs: Sequence[Run], spreads: SeedsTable) -> Path:
    """Write report.html about the same experiment under several seeds into `folder`, which is made; returns its path.

    Args:
        folder: where the page goes.
        runs: the finished runs, all with the same options but the seed.
        spreads: what `summarise_seeds` returned for them.

    Raises:
        UserError: the file cannot be written.
    """
    first = runs[0]
    seeds = ", ".join(str(run.seed) for run in runs)
    summaries = [summarise_run(run) for run in runs]
    parts = [section(f"Metrics: {name}", _seeds_table(name, runs, summaries, spreads[name])) for name in spreads]
    if first.published:
        means = {name: {metric: entry[0] for metric, entry in entries.items()} for name, entries in spreads.items()}
        parts.append(section("Mean beside published", _published(first, means)))
    if first.notes:
        parts.append(section("Notes", table(["about", "note"], first.notes.items())))
    curves = {name: np.stack([plots.mean_curve(run.matrices[name]) for run in runs]) for name in first.matrices}
    if curves:
        figure = plots.seed_curves(curves, score=first.score)
        parts.append(section("Plots", f'<div class="plots">{image(figure, "average accuracy over seeds")}</div>'))
    folders = [(run.seed, run.folder.name if run.folder else "not stored") for run in runs]
    parts.append(section("Runs", table(["seed", "folder"], folders, "dense")))
    parts += _configuration(first, leave_out=("seed", "seeds"))
    path = folder / "report.html"
    with file_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    title = f"{first.model_name} on {first.dataset_name}, {count(len(runs), 'seed')}"
    write_text(path, page(title, f"setting {first.setting} · seeds {seeds} · {count(first.n_tasks, 'task')}", parts))
    return path


def spread(values: list[float]) -> tuple[float, float, float, int]:
    """Mean, sample standard deviation, half width of the 95 % interval, number; see `summarise_seeds`."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return mean, 0.0, math.nan, 1
    from scipy.stats import t

    std = float(np.std(values, ddof=1))
    return mean, std, float(t.ppf(0.975, n - 1)) * std / math.sqrt(n), n


def _headline(run: Run) -> str:
    trained = _trained(run)
    tasks = count(run.n_tasks, "task") if trained == run.n_tasks else f"{trained} of {count(run.n_tasks, 'task')}"
    state = "not finished" if run.seconds is None else "finished"
    return " · ".join([f"setting {run.setting}", f"{run.parameters:,} parameters", tasks, state])


def options_of(run: Run) -> dict:
    """The options that the numbers depend on: those by which two starts of one run may differ are left out."""
    return {name: value for name, value in run.config.items() if name not in NEUTRAL}


def _metrics_table(run: Run, summary: Summary) -> str:
    """One column of numbers per scenario; in place of a number that is missing, why it is."""
    scenarios, left_out = list(run.matrices) or list(summary), excluded_terms(run)

    def cell(scenario: str, metric: str) -> str | tuple[str, str]:
        if metric not in summary.get(scenario, {}):
            return "not defined", _why_undefined(run, scenario, metric)
        missing = left_out.get(scenario, {}).get(metric)
        note = f"{count(missing, 'undefined term')} left out" if missing else ""
        return f"{summary[scenario][metric]:.2f}", note

    rows = [[_about(metric, run), *(cell(scenario, metric) for scenario in scenarios)] for metric in METRICS]
    return table(["metric", *scenarios], rows, numeric=range(1, len(scenarios) + 1))


def _about(metric: str, run: Run) -> tuple[str, str]:
    """A metric's name and definition, in the words of the run's score."""
    entry = METRICS[metric]
    return plots.worded(entry.title, run.score), plots.worded(entry.definition, run.score)


def _why_undefined(run: Run, scenario: str, metric: str) -> str:
    matrix = run.matrices.get(scenario)
    trained = np.flatnonzero(~np.isnan(matrix).all(axis=1)) if matrix is not None else np.empty(0, dtype=int)
    if not trained.size:
        return "nothing evaluated yet"
    if trained.size != trained[-1] + 1:
        return "needs a score after every task"
    scores = metrics.Scores(metrics.trained_part(matrix), *_measured(run, scenario)[1:])
    missing = [NEEDS[need] for need in METRICS[metric].needs]
    return next((reason for is_there, reason in missing if not is_there(scores)), "some scores are missing")


def _published(run: Run, measured: Summary) -> str:
    """The stored row's published scores beside the measured ones, where they come from, what differs from the row."""
    row = run.published
    rows = []
    for scenario, entry in (row.get("published") or {}).items():
        for metric in [name for name in METRICS if entry.get(name) is not None]:
            std = entry.get("std") if metric == "acc" else entry.get(f"{metric}_std")
            value = measured.get(scenario, {}).get(metric)
            rows.append(
                [
                    scenario,
                    METRICS[metric].title,
                    *_comparison(run, entry[metric], std, value, row.get("comparable", True)),
                ]
            )
    head = ["scenario", "metric", "published", "measured", "difference", "inside the spread"]
    lines = [f"Source: {row.get('source', 'not given')}"]
    if not rows:
        lines.insert(0, "No published score is stored for this row.")
    elif row.get("verified"):
        lines.append("The published score was checked against a published text.")
    else:
        lines.append("The published score is from memory, not checked against the text.")
    for field in ("note", "known", "inferred"):
        if row.get(field):
            lines.append(f"{field.capitalize()}: {row[field]}")
    changed = _changed(run, row.get("args") or {})
    if changed:
        lines.append(f"Set on the command line, apart from the stored row: {'; '.join(changed)}.")
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return (table(head, rows, numeric=(2, 3, 4)) if rows else "") + text


def _comparison(run: Run, published: float, std: float | None, value: float | None, comparable: bool) -> list[str]:
    """Cells: published, measured, difference, whether the difference is within one published standard deviation."""
    shown = f"{published:.2f}" + (f" ± {std:.2f}" if std is not None else "")
    if value is None:
        return [shown, "not measured", "-", "unknown"]
    difference = round(value - published, 2)
    if not comparable:
        return [shown, f"{value:.2f}", "-", "not comparable"]
    if _trained(run) < run.n_tasks:
        return [shown, f"{value:.2f}", "-", "not comparable: not all tasks were trained"]
    inside = "unknown" if std is None else "yes" if abs(difference) <= std else "no"
    return [shown, f"{value:.2f}", f"{difference:+.2f}", inside]


def _changed(run: Run, stored: dict[str, Any]) -> list[str]:
    """Options that the command line sets otherwise than the stored row, and those that change what is measured."""
    out = []
    for name, value in options_of(run).items():
        if run.origins.get(name) != "command line":
            continue
        if name in stored and str(stored[name]) != str(value):
            out.append(f"{name} is {value}, stored is {stored[name]}")
        elif name in PROTOCOL and name not in stored and value:
            out.append(f"{name} is {value}")
    return out


def _figures(run: Run) -> Iterator[tuple[str, str, Any, bool]]:
    """Every plot that the run has the numbers for: name of its file, what it shows, the figure, whether it is wide."""
    if not run.matrices:
        return
    curves = any((~np.isnan(plots.mean_curve(matrix))).sum() > 1 for matrix in run.matrices.values())
    if curves:
        yield (
            "average_accuracy",
            "average accuracy over training",
            plots.average_curve(run.matrices, score=run.score),
            False,
        )
    yield from _term_bars(run, "forgetting", "forgetting")
    for name, matrix in run.matrices.items() if curves else ():
        figure = plots.accuracy_curves(matrix, f"Accuracy of each task: {name}", run.score)
        yield f"accuracy_{name}", f"accuracy of each task, {name}", figure, False
    for name, matrix in run.matrices.items():
        figure = plots.accuracy_matrix(matrix, f"Accuracy matrix: {name}", run.score)
        yield f"matrix_{name}", f"accuracy matrix, {name}", figure, run.n_tasks > 10
    found = run.analysis
    if found and found.confusion is not None:
        yield "confusion", "confusion matrix", charts.confusion_matrix(found.confusion), False
    if found and found.embedding:
        yield "embedding", "features of test examples", network_plots.embedding(*found.embedding), False
    yield from _term_bars(run, "bwt", "backward_transfer")
    yield from _term_bars(run, "fwt", "forward_transfer")
    if found:
        yield from ((panel.name, panel.shows, panel.figure(), panel.wide) for panel in found.panels)
        yield from found.figures
    if run.epochs and run.tasks:
        from datasets.utils.vision.plots import stage_curves

        yield (
            "stages",
            "loss and held-out score of each stage",
            stage_curves(run.epochs, run.tasks, run.config.get("joint")),
            True,
        )
    if run.losses:
        ends = [evaluation.step for evaluation in run.history if evaluation.epoch is None]
        yield "loss", "training loss", plots.loss_curves(_terms(run, shares=False), ends), True
        shares = _terms(run, shares=True)
        if any(terms for _, terms, _ in shares):
            figure = plots.loss_curves(shares, ends, "Shares in training", "share", linear=True)
            yield "shares", "shares that the method logs", figure, True


def _term_bars(run: Run, metric: str, name: str) -> Iterator[tuple[str, str, Any, bool]]:
    terms = {s: plots.terms_per_task(metric, matrix, run.baselines.get(s)) for s, matrix in run.matrices.items()}
    if any(terms.values()):
        words = f"{name.replace('_', ' ')} of each task"
        yield name, words, plots.term_bars(metric, terms, run.score), False


def _terms(run: Run, shares: bool) -> list[tuple[int, dict[str, float], float]]:
    """The log of the steps: its shares alone, or all else."""
    return [
        (step, {n: v for n, v in terms.items() if (n in run.shares) == shares}, lr) for step, terms, lr in run.losses
    ]


def _embedded(figures: Iterable[tuple[str, str, Any, bool]]) -> str:
    images = [image(figure, alt, wide) for _, alt, figure, wide in figures]
    return f'<div class="plots">{"".join(images)}</div>'


def _write_plots(folder: Path, figures: Iterable[tuple[str, str, Any, bool]]) -> None:
    with file_errors(folder):
        folder.mkdir(exist_ok=True)
    for name, _, figure, _ in figures:
        write_bytes(folder / f"{name}.png", drawn(figure, "png"))


def _costs(run: Run) -> str:
    costs = run.analysis.costs
    rows = [
        ["parameters, all that the method keeps as such", f"{costs['parameters']:,}"],
        ["network", _size(costs["network_bytes"])],
        ["replay buffers", _size(costs["buffer_bytes"])],
        ["all that the method keeps besides the network, buffers included", _size(costs["method_bytes"])],
    ]
    note = "<p class=dim>Seconds and the peak of memory differ from run to run: they are in timing.yaml.</p>"
    return table(["what, at the end", "size"], rows, numeric=(1,)) + note


def _size(n: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(max(n.bit_length() - 1, 0) // 10, 4)
    return f"{n / 1024**power:,.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _configuration(run: Run, leave_out: Iterable[str] = ()) -> list[str]:
    """Sections: every option with where its value came from, those somebody chose first; then the environment."""
    names = [name for name in options_of(run) if name not in leave_out]
    names.sort(key=lambda name: (run.origins.get(name, "default") == "default", name))
    rows = [(name, run.config[name], run.origins.get(name, "")) for name in names]
    parts = [section("Configuration", table(["option", "value", "origin"], rows, "dense"))]
    if run.environment:
        parts.append(section("Environment", table(["what", "value"], run.environment.items(), "dense")))
    return parts


def _seeds_table(scenario: str, runs: Sequence[Run], summaries: list[Summary], entries: dict) -> str:
    rows = []
    for metric in METRICS:
        name, definition = _about(metric, runs[0])
        if metric not in entries:
            missing = ("not defined", _why_undefined(runs[0], scenario, metric))
            rows.append([(name, definition), missing, *["-"] * (len(runs) + 1)])
            continue
        mean, std, half, n = entries[metric]
        interval = "needs two seeds" if math.isnan(half) else f"{mean - half:.2f} to {mean + half:.2f}"
        defined = f"of {n} seeds" if n < len(runs) else ""
        values = [summary.get(scenario, {}).get(metric) for summary in summaries]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        rows.append([(name, definition), (f"{mean:.2f} ± {std:.2f}", defined), interval, *cells])
    head = ["metric", "mean ± std", "95 % interval", *(f"seed {run.seed}" for run in runs)]
    note = "<p class=dim>std: sample standard deviation over seeds. Interval of the mean: Student's t.</p>"
    return table(head, rows, numeric=range(1, len(head))) + note


def _trained(run: Run) -> int:
    """How many tasks the scores cover: joint training covers all of them with one row."""
    rows = [np.flatnonzero(~np.isnan(matrix).all(axis=1)) for matrix in run.matrices.values()]
    return max((int(row[-1]) + 1 for row in rows if row.size), default=0)
