"""The same experiment under several seeds: mean, spread and interval of every metric, as files and as a page."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import numpy as np

from palimpsest.utils import charts, metrics
from palimpsest.utils.atomic import file_errors, write_text
from palimpsest.utils.log import captions, plots
from palimpsest.utils.log.formats import csv_text
from palimpsest.utils.log.page import Picture, count, render
from palimpsest.utils.log.report import (
    about,
    beside_published,
    headline,
    key_metrics,
    reason,
    setup,
    summarise_run,
    write_page,
)
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.record import Run, Summary

SUMMARY = "summary.json"
COLUMNS = ("mean", "std", "n", "low", "high")
SeedsTable = dict[str, dict[str, tuple[float, float, float, int]]]


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


def found_leaks(runs: Sequence[Run]) -> list[str]:
    """What the leak detector found in any of several runs."""
    return [*dict.fromkeys(leak for run in runs for leak in run.leaks)]


def write_seeds_summary(
    folder: Path, runs: Sequence[Run], spreads: SeedsTable, failed: Mapping[int, str] = MappingProxyType({})
) -> None:
    """Write summary.csv and summary.json into `folder`, which is made: mean, standard deviation, number of runs and
    interval of every metric in every scenario, nothing where one is not defined; and runs.csv, a row for each seed.

    Args:
        failed: seed -> why its run failed; it counts for nothing else.

    Raises:
        UserError: a file cannot be written.
    """
    first = runs[0]
    facts: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for scenario, entries in spreads.items():
        for metric, (mean, std, half, n) in entries.items():
            ends = metrics.interval(metric, mean, half, first.score)
            values = [None if math.isnan(value) else value for value in (mean, std, *ends)]
            facts.setdefault(scenario, {})[metric] = dict(zip(("mean", "std", "low", "high"), values, strict=True), n=n)
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    whole = {"model": first.model_name, "dataset": first.dataset_name, "setting": first.setting}
    whole |= {"seeds": [run.seed for run in runs], "runs": [run.folder.name for run in runs], "metrics": facts}
    whole["failed"] = [{"seed": seed, "reason": reason} for seed, reason in failed.items()]
    whole |= {"leaks": found_leaks(runs), "marks": first.marks}
    write_text(folder / SUMMARY, json.dumps(whole, indent=1) + "\n")
    rows = [("model", "dataset", "scenario", "metric", *COLUMNS)]
    for scenario, entries in facts.items():
        for metric, values in entries.items():
            cells = ["" if values[name] is None else values[name] for name in COLUMNS]
            rows.append((first.model_name, first.dataset_name, scenario, metric, *cells))
    write_text(folder / "summary.csv", csv_text(rows))
    found = [(run.seed, "finished", run.folder.name, "") for run in runs]
    found += [(seed, "failed", "", reason) for seed, reason in failed.items()]
    write_text(folder / "runs.csv", csv_text([("seed", "state", "run", "reason"), *sorted(found)]))


def write_seeds_report(
    folder: Path, runs: Sequence[Run], spreads: SeedsTable, failed: Mapping[int, str] = MappingProxyType({})
) -> Path:
    """Write report.html about the same experiment under several seeds into `folder`, which is made; returns its path.

    Args:
        runs: the finished runs, all with the same options but the seed.
        spreads: what `summarise_seeds` returned for them.
        failed: seed -> why its run failed.

    Raises:
        UserError: the file cannot be written.
    """
    summaries = [summarise_run(run) for run in runs]
    first = replace(runs[0], leaks=found_leaks(runs))
    means = {name: {metric: entry[0] for metric, entry in entries.items()} for name, entries in spreads.items()}
    text = render(
        "seeds.html",
        title=f"{first.model_name} on {first.dataset_name}, {count(len(runs), 'seed')}",
        headline=headline(first, count(first.n_tasks, "task"), f"seeds {', '.join(str(run.seed) for run in runs)}"),
        refresh=0,
        key=[(label, metrics.plus_minus(*spreads[scenario][metric][:2]) + unit)
             for label, scenario, metric, unit in key_metrics(first, means)],
        first=list(_pictures(runs)),
        runs=[(run.seed, run.folder.name, f"../{quote(run.folder.name)}/report.html") for run in runs],
        failed=sorted(failed.items()),
        metrics=[(name, *seeds_table(name, runs, summaries, spreads[name])) for name in spreads],
        published=beside_published(first, means),
        costs=[],
        **setup(first, leave_out=("seed", "seeds")),
    )  # fmt: skip
    return write_page(folder, text)


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    score, main = runs[0].score, next(iter(runs[0].matrices))
    curves = {name: np.stack([metrics.seen_means(run.matrices[name]) for run in runs]) for name in runs[0].matrices}
    yield Picture("average_accuracy", plots.average_curves(curves, score), captions.average(curves, score))
    last = {run.seed: run.matrices[main][np.flatnonzero(~np.isnan(run.matrices[main]).all(1))[-1:]] for run in runs}
    figure = plots.final_scores(last, main, score)
    yield Picture("final_accuracy", figure, plots.worded(captions.FINAL, score), runs[0].n_tasks > 2 * charts.WIDE)


def seeds_table(scenario: str, runs: Sequence[Run], summaries: list[Summary], entries: dict) -> tuple[list, list, list]:
    """Head and rows of the metrics that are defined, and those that are not with the reason why."""
    rows, undefined = [], []
    for metric in METRICS:
        if metric not in entries:
            undefined.append((about(metric, runs[0]), reason(runs[0], scenario, metric)))
            continue
        mean, std, half, n = entries[metric]
        low, high = metrics.interval(metric, mean, half, runs[0].score)
        interval = f"needs {metrics.FEWEST} seeds" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        values = [summary.get(scenario, {}).get(metric) for summary in summaries]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        defined = f"of {n} seeds" if n < len(runs) else ""
        rows.append([about(metric, runs[0]), (metrics.plus_minus(mean, std), defined), interval, *cells])
    return ["metric", "mean ± std", "95 % interval", *(f"seed {run.seed}" for run in runs)], rows, undefined
