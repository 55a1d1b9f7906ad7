"""`report.html`: one self-contained page per run, and one per set of seeds.

Plots are embedded, nothing is fetched, every text is escaped: the page can be mailed, archived and printed.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import metrics, plots
from utils.args import NEUTRAL
from utils.atomic import explained, write_text
from utils.run import Run

Summary = dict[str, dict[str, float]]
SeedsTable = dict[str, dict[str, tuple[float, float, float, int]]]

METRICS = {
    "acc": ("Average accuracy (ACC)", "mean over all tasks after the last one was trained (%)"),
    "aaa": (
        "Average incremental accuracy (AAA)",
        "mean over training of the mean accuracy on the tasks seen so far (%)",
    ),
    "la": ("Learning accuracy (LA)", "mean accuracy on each task right after it was trained (%)"),
    "bwt": (
        "Backward transfer (BWT)",
        "last accuracy on a task minus that right after it was trained; mean over all tasks but the last (points)",
    ),
    "forgetting": (
        "Forgetting",
        "best minus last accuracy on a task, mean over all tasks but the last; the best includes the last evaluation, "
        "so it is never below 0 (points)",
    ),
    "forgetting_chaudhry": (
        "Forgetting (Chaudhry)",
        "the same with the best taken before the last task was trained, so it may be below 0; "
        "Chaudhry et al. 2018, the FM of prototype-augmented hypernetworks (points)",
    ),
    "fwt": (
        "Forward transfer (FWT)",
        "accuracy on a task just before it is trained, minus the untrained network's (points)",
    ),
    "min_acc": (
        "Minimum accuracy (min-ACC)",
        "lowest accuracy of a task after it was learned, evaluations during tasks included (%)",
    ),
    "wc_acc": (
        "Worst-case accuracy (WC-ACC)",
        "accuracy on the last task weighed with min-ACC; De Lange et al. 2023 (%)",
    ),
}
# Options that change what a score means: a published score is not beside the same thing when one is given.
PROTOCOL = (
    *("validation", "holdout", "joint", "label_perc", "noise_rate", "start_from", "stop_after", "debug_mode"),
    *("custom_class_order", "custom_task_order", "permute_classes", "normalize", "fitting_mode", "backbone"),
)
STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; color: #222;
  background: #fff; max-width: 1000px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.15em; margin: 2em 0 .5em; border-bottom: 1px solid #ddd; }
p { margin: .4em 0; } .dim, small { color: #666; } small { display: block; font-size: .85em; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .28em .9em .28em 0; border-bottom: 1px solid #eee;
  overflow-wrap: anywhere; }
th { font-weight: 600; overflow-wrap: normal; border-bottom: 1px solid #bbb; } 
td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
table.dense { font-size: .87em; } td small { max-width: 34em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em; align-items: start; }
img { max-width: 100%; height: auto; } .plots .wide { grid-column: 1 / -1; max-width: min(100%, 820px); }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
  img, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } }
"""


def summarise_run(run: Run) -> Summary:
    """Every metric of `utils.metrics` that the scores so far define, per scenario."""
    during = any(evaluation.epoch is not None for evaluation in run.history)
    return {
        name: metrics.summarise(
            matrix,
            run.baselines.get(name),
            [(e.task, e.scores[name]) for e in run.history if e.task >= 0] if during else (),
        )
        for name, matrix in run.matrices.items()
    }


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
    return {name: {metric: _spread(v) for metric, v in entries.items()} for name, entries in values.items()}


def write_report(run: Run, summary: Summary) -> Path:
    """Write report.html into the run's folder and return its path; a run that is not finished is reported so far.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [_section("Metrics", _metrics_table(run, summary))]
    if run.published:
        parts.append(_section("Measured beside published", _published(run, summary)))
    if run.notes:
        parts.append(_section("Notes", _table(["about", "note"], run.notes.items())))
    parts.append(_section("Plots", _run_plots(run)))
    parts += _configuration(run)
    path = run.folder / "report.html"
    write_text(path, _page(f"{run.model_name} on {run.dataset_name}, seed {run.seed}", _headline(run), parts))
    return path


def write_seeds_report(folder: Path, runs: Sequence[Run], table: SeedsTable) -> Path:
    """Write report.html about the same experiment under several seeds into `folder`, which is made; returns its path.

    Args:
        folder: where the page goes.
        runs: the finished runs, all with the same options but the seed.
        table: what `summarise_seeds` returned for them.

    Raises:
        UserError: the file cannot be written.
    """
    first = runs[0]
    seeds = ", ".join(str(run.seed) for run in runs)
    summaries = [summarise_run(run) for run in runs]
    parts = [_section(f"Metrics: {name}", _seeds_table(name, runs, summaries, table[name])) for name in table]
    if first.published:
        means = {name: {metric: entry[0] for metric, entry in entries.items()} for name, entries in table.items()}
        parts.append(_section("Mean beside published", _published(first, means)))
    if first.notes:
        parts.append(_section("Notes", _table(["about", "note"], first.notes.items())))
    curves = {name: np.stack([plots.mean_curve(run.matrices[name]) for run in runs]) for name in first.matrices}
    if curves:
        figure = plots.seed_curves(curves)
        parts.append(_section("Plots", f'<div class="plots">{_image(figure, "average accuracy over seeds")}</div>'))
    folders = [(run.seed, run.folder.name if run.folder else "not stored") for run in runs]
    parts.append(_section("Runs", _table(["seed", "folder"], folders, "dense")))
    parts += _configuration(first, leave_out=("seed", "seeds"))
    path = folder / "report.html"
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
    title = f"{first.model_name} on {first.dataset_name}, {_count(len(runs), 'seed')}"
    write_text(path, _page(title, f"setting {first.setting} · seeds {seeds} · {_count(first.n_tasks, 'task')}", parts))
    return path


def _spread(values: list[float]) -> tuple[float, float, float, int]:
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return mean, 0.0, math.nan, 1
    from scipy.stats import t

    std = float(np.std(values, ddof=1))
    return mean, std, float(t.ppf(0.975, n - 1)) * std / math.sqrt(n), n


def _headline(run: Run) -> str:
    trained = _trained(run)
    tasks = _count(run.n_tasks, "task") if trained == run.n_tasks else f"{trained} of {_count(run.n_tasks, 'task')}"
    state = "not finished" if run.seconds is None else "finished"
    return " · ".join([f"setting {run.setting}", f"{run.parameters:,} parameters", tasks, state])


def options_of(run: Run) -> dict:
    """The options that the numbers depend on: those by which two starts of one run may differ are left out."""
    return {name: value for name, value in run.config.items() if name not in NEUTRAL}


def _metrics_table(run: Run, summary: Summary) -> str:
    """One column of numbers per scenario; in place of a number that is missing, why it is."""
    scenarios = list(run.matrices) or list(summary)
    rows = []
    for metric, (name, definition) in METRICS.items():
        cells = [
            f"{summary[s][metric]:.2f}"
            if metric in summary.get(s, {})
            else ("not defined", _why_undefined(run, s, metric))
            for s in scenarios
        ]
        rows.append([(name, definition), *cells])
    return _table(["metric", *scenarios], rows, numeric=range(1, len(scenarios) + 1))


def _why_undefined(run: Run, scenario: str, metric: str) -> str:
    matrix = run.matrices.get(scenario)
    trained = np.flatnonzero(~np.isnan(matrix).all(axis=1)) if matrix is not None else np.empty(0, dtype=int)
    if not trained.size:
        return "nothing evaluated yet"
    if trained.size != trained[-1] + 1:
        return "needs a score after every task"
    if trained.size < 2:
        return "needs two trained tasks"
    if metric == "fwt":
        return "needs --enable_other_metrics"
    if metric in ("min_acc", "wc_acc"):
        return "needs --eval_epochs"
    return "some scores are missing"


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
                    METRICS[metric][0],
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
    text = "".join(f"<p>{_escape(line)}</p>" for line in lines)
    return (_table(head, rows, numeric=(2, 3, 4)) if rows else "") + text


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


def _run_plots(run: Run) -> str:
    if not run.matrices:
        return "<p>Nothing evaluated yet.</p>"
    curves = any((~np.isnan(plots.mean_curve(matrix))).sum() > 1 for matrix in run.matrices.values())
    images = []
    if curves:
        images.append(_image(plots.average_curve(run.matrices), "average accuracy over training"))
    if any(plots.forgetting_per_task(matrix).size for matrix in run.matrices.values()):
        images.append(_image(plots.forgetting_bars(run.matrices), "forgetting of each task"))
    for name, matrix in run.matrices.items() if curves else ():
        figure = plots.accuracy_curves(matrix, f"Accuracy of each task: {name}")
        images.append(_image(figure, f"accuracy of each task, {name}"))
    for name, matrix in run.matrices.items():
        figure = plots.accuracy_matrix(matrix, f"Accuracy matrix: {name}")
        images.append(_image(figure, f"accuracy matrix, {name}", wide=run.n_tasks > 10))
    if run.losses:
        ends = [evaluation.step for evaluation in run.history if evaluation.epoch is None]
        images.append(_image(plots.loss_curves(run.losses, ends), "training loss", wide=True))
    return f'<div class="plots">{"".join(images)}</div>'


def _configuration(run: Run, leave_out: Iterable[str] = ()) -> list[str]:
    """Sections: every option with where its value came from, those somebody chose first; then the environment."""
    names = [name for name in options_of(run) if name not in leave_out]
    names.sort(key=lambda name: (run.origins.get(name, "default") == "default", name))
    rows = [(name, run.config[name], run.origins.get(name, "")) for name in names]
    parts = [_section("Configuration", _table(["option", "value", "origin"], rows, "dense"))]
    if run.environment:
        parts.append(_section("Environment", _table(["what", "value"], run.environment.items(), "dense")))
    return parts


def _seeds_table(scenario: str, runs: Sequence[Run], summaries: list[Summary], entries: dict) -> str:
    rows = []
    for metric, (name, definition) in METRICS.items():
        if metric not in entries:
            missing = ("not defined", _why_undefined(runs[0], scenario, metric))
            rows.append([(name, definition), missing, *["-"] * (len(runs) + 1)])
            continue
        mean, std, half, n = entries[metric]
        interval = "needs two seeds" if math.isnan(half) else f"{mean - half:.2f} to {mean + half:.2f}"
        count = f"of {n} seeds" if n < len(runs) else ""
        values = [summary.get(scenario, {}).get(metric) for summary in summaries]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        rows.append([(name, definition), (f"{mean:.2f} ± {std:.2f}", count), interval, *cells])
    head = ["metric", "mean ± std", "95 % interval", *(f"seed {run.seed}" for run in runs)]
    note = "<p class=dim>std: sample standard deviation over seeds. Interval of the mean: Student's t.</p>"
    return _table(head, rows, numeric=range(1, len(head))) + note


def _trained(run: Run) -> int:
    """How many tasks the scores cover: joint training covers all of them with one row."""
    rows = [np.flatnonzero(~np.isnan(matrix).all(axis=1)) for matrix in run.matrices.values()]
    return max((int(row[-1]) + 1 for row in rows if row.size), default=0)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _page(title: str, headline: str, parts: list[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_escape(title)}</h1>\n<p class=dim>{_escape(headline)}</p>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_escape(title)}</h2>\n{body}\n</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "", numeric: Iterable[int] = ()) -> str:
    """An HTML table; a cell is a value or a pair (value, small print below); `numeric` columns are aligned right."""
    numeric = set(numeric)

    def line(cells: Sequence[Any], tag: str) -> str:
        out = []
        for k, cell in enumerate(cells):
            text, small = cell if isinstance(cell, tuple) else (cell, "")
            small = f"<small>{_escape(small)}</small>" if small else ""
            out.append(f"<{tag}{' class=n' if k in numeric else ''}>{_escape(text)}{small}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    body = "\n".join(line(list(row), "td") for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead>{line(head, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _image(figure: Any, alt: str, wide: bool = False) -> str:
    import matplotlib

    data = io.BytesIO()
    # Neither the date nor random names inside: equal runs leave equal reports.
    with matplotlib.rc_context({"svg.hashsalt": "palimpsest"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    source = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img{" class=wide" if wide else ""} src="data:image/svg+xml;base64,{source}" alt="{_escape(alt)}">'


def _escape(value: Any) -> str:
    return html.escape(str(value))
