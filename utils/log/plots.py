"""Plots of a run and of its trained network. Each function returns a matplotlib Figure; nothing touches pyplot or the
global style.

A score matrix R (T, T) holds percent, R[t, i] on task i after training task t, nan where nothing was evaluated. Tasks
are numbered from 1 in the plots. matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.utils.charts import (
    CYCLE,
    HEAT,
    INK,
    MARKERS,
    MAX_LABELLED,
    MAX_NUMBERED,
    SMALL,
    figure_of,
    heat_map,
    legend,
    short,
    task_colour_bar,
    task_colours,
    task_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A scenario has the same colour in every plot.
COLOURS = dict(zip(("class-il", "task-il", "domain-il", "general-continual"), CYCLE, strict=False))
SCORES = {"r2": "R²"}  # how a score is written, where not by its name
BARS = {
    "forgetting": ("Forgetting", "best minus last accuracy (points)"),
    "fwt": ("Forward transfer", "change of accuracy (points)"),
}


def worded(text: str, score: str) -> str:
    """A text about accuracy as one about another score, named as in `datasets.utils.scores`."""
    name = SCORES.get(score, score)
    return text.replace("accuracy", name).replace("Accuracy", name[0].upper() + name[1:])


def accuracy_curves(
    matrix: np.ndarray, title: str = "Accuracy of each task", score: str = "accuracy", names: Sequence[str] = ()
) -> Figure:
    """Accuracy (or another score) of each task over training, from the task itself on; the legend has its name."""
    n = len(matrix)
    figure, axes = _score_figure(score, title, "after training task", "accuracy (%)")
    colours = task_colours(n)
    for i in range(n):
        steps, scores = np.arange(i + 1, n + 1), matrix[i:, i]
        label = short(names[i]) if i < len(names) else f"{i + 1}" if i else "task 1"
        if not np.isnan(scores).all():
            axes.plot(steps, scores, "-o", color=colours[i], markersize=4, linewidth=1.6, label=label)
    _fit_axes(axes, matrix)
    if n > MAX_LABELLED:
        task_colour_bar(figure, axes, colours)
    elif axes.lines:
        legend(axes, ncols=8, columnspacing=0.9, handlelength=1.1, handletextpad=0.4)
    return figure


def point_curves(
    points: Sequence[tuple[int, Sequence[float]]], ends: Sequence[int], title: str, score: str = "accuracy"
) -> Figure:
    """Accuracy of each task at the points of any-time evaluation, from the task itself on.

    Args:
        points: (iteration, accuracy of each task so far).
        ends: iterations at which a task ended, drawn as vertical lines.
    """
    n = max(len(scores) for _, scores in points)
    figure, axes = figure_of(8.6, 2.8, *(worded(w, score) for w in (title, "training iteration", "accuracy (%)")))
    colours = task_colours(n)
    for i in range(n):
        steps, values = zip(*((step, scores[i]) for step, scores in points if len(scores) > i), strict=True)
        style = {"marker": "." if len(steps) < 60 else "", "color": colours[i], "linewidth": 1.2}
        axes.plot(steps, values, **style, label=f"{i + 1}" if i else "task 1")
    for end in ends:
        axes.axvline(end, color=CYCLE[-1], linestyle=":", linewidth=1, zorder=0)
    low, high = _range(np.array([score for _, scores in points for score in scores]))
    axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.grid(False, axis="x")
    if n > MAX_LABELLED:
        task_colour_bar(figure, axes, colours)
    else:
        legend(axes, beside=True)
    return figure


def average_curves(curves: Mapping[str, np.ndarray], score: str = "accuracy") -> Figure:
    """Mean accuracy over the tasks seen so far, one line per scenario; the last value is in the legend. Of several
    seeds the mean with a band of one sample standard deviation, and each seed as a thin line.

    Args:
        curves: scenario -> `metrics.seen_means` of each seed, (seeds, T).
    """
    seeds = len(next(iter(curves.values())))
    title = f"Average accuracy, mean ± std of {seeds} seeds" if seeds > 1 else "Average accuracy"
    figure, axes = _score_figure(score, title, "after training task", "mean accuracy on tasks seen (%)")
    for k, (name, values) in enumerate(curves.items()):
        mean, steps, colour = values.mean(0), np.arange(1, values.shape[1] + 1), _colour(name, k)
        known = mean[~np.isnan(mean)]
        label = f"{name}: last {known[-1]:.2f}" if known.size else f"{name}: not evaluated"
        if seeds > 1:
            std = values.std(0, ddof=1)
            low, high = np.clip([mean - std, mean + std], *_range(values))  # no accuracy is above 100
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps, values.T, color=colour, alpha=0.5, linewidth=0.8)
        axes.plot(steps, mean, "-o", color=colour, markersize=4, label=label)
    _fit_axes(axes, np.concatenate(list(curves.values())))
    legend(axes)
    return figure


def accuracy_matrix(
    matrix: np.ndarray, title: str = "Accuracy matrix", score: str = "accuracy", names: Sequence[str] = ()
) -> Figure:
    """The score matrix as a heat map with its numbers; a matrix of one row (joint training) is drawn as that row."""
    words = [worded(text, score) for text in (title, "accuracy (%) on task", "after training task")]
    digits = 1 if len(matrix) <= 6 else 0  # as many as there is room for
    return heat_map(matrix, *words, lambda value: f"{value:.{digits}f}", _range(matrix), names=names)


def term_bars(metric: str, terms: Mapping[str, np.ndarray], score: str = "accuracy") -> Figure:
    """What became of each task: a group of bars, one colour per scenario.

    Args:
        metric: 'forgetting' or 'fwt'.
        terms: scenario -> the metric's terms as in `metrics.terms`, nan where one is not defined; not all of them are.
    """
    title, ylabel = BARS[metric]
    figure, axes = _score_figure(score, f"{title} of each task", "task", ylabel)
    first = 2 if metric == "fwt" else 1  # forward transfer has no term for the first task, the others none for the last
    tasks, heights, width = [], [], 0.8 / len(terms)
    for k, (name, values) in enumerate(terms.items()):
        known = np.flatnonzero(~np.isnan(values))
        places = known + first + (k - (len(terms) - 1) / 2) * width
        bars = axes.bar(places, values[known], width * 0.92, color=_colour(name, k), label=name)
        if len(known) * len(terms) <= 10:
            axes.bar_label(bars, fmt="%.1f", padding=2, color=INK)
        tasks, heights = [*tasks, *(known + first).tolist()], [*heights, *values[known].tolist()]
    low, high = min(0.0, *heights), max(0.0, *heights)
    reach = max(0.12 * (high - low), 0.5)
    axes.set_ylim(low - reach if low < 0 else 0, high + reach)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(min(tasks) - 0.6, max(tasks) + 0.6)
    axes.set_xticks([task for task in task_ticks(max(tasks)) if task >= min(tasks)])
    legend(axes)
    return figure


def final_scores(rows: Mapping[int, np.ndarray], scenario: str, score: str = "accuracy") -> Figure:
    """Score on each task at the end of training: a mark per seed, a line at their mean.

    Args:
        rows: seed -> (1, T), or (0, T) of a run without scores.
    """
    figure, axes = _score_figure(score, f"Accuracy at the end: {scenario}", "task", "accuracy (%)")
    found = {seed: row[0] for seed, row in rows.items() if len(row)}
    for k, (seed, values) in enumerate(found.items()):
        places = np.arange(1, len(values) + 1) + 0.5 * ((k + 0.5) / len(found) - 0.5)
        look = {"marker": MARKERS[k % len(MARKERS)], "color": CYCLE[k % len(CYCLE)], "linestyle": "", "markersize": 5}
        axes.plot(places, values, label=f"seed {seed}", **look)
    if found:
        values = np.stack(list(found.values()))
        axes.hlines(values.mean(0), np.arange(1, values.shape[1] + 1) - 0.35, np.arange(1, values.shape[1] + 1) + 0.35,
                    color=INK, linewidth=1)  # fmt: skip
        _fit_axes(axes, values)
        axes.set_xlim(0.4, values.shape[1] + 0.6)
        legend(axes, ncols=4, columnspacing=1.0, handletextpad=0.2)
    return figure


def comparison_bars(values: Mapping[str, tuple[float, float]], xlabel: str, title: str, share: bool = False) -> Figure:
    """A horizontal bar per method with its standard deviation, if there is one.

    Args:
        values: method -> (mean, standard deviation or nan), drawn from the top.
        share: the values are percentages: no whisker leaves 0 to 100.
    """
    figure, axes = figure_of(6.0, 1.3 + 0.32 * len(values), title, xlabel, "")
    means, deviations = np.array(list(values.values())).T
    places = np.arange(len(values))
    whiskers = {"linewidth": 1, "ecolor": INK, "capsize": 2}
    ends = np.clip([means - deviations, means + deviations], *((0, 100) if share else (-np.inf, np.inf)))
    axes.barh(places, means, 0.7, xerr=np.abs(ends - means), color=CYCLE[0], error_kw=whiskers)
    ends = np.where(np.isnan(ends), means, ends)
    for place, mean, highest in zip(places, means, ends[1], strict=True):
        end = (max(highest, 0.0), place)
        axes.annotate(f"{mean:.1f}", end, (4, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(places, [name if len(name) <= 44 else f"{name[:43]}…" for name in values])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = min(0.0, *ends[0]), max(0.0, *ends[1])
    axes.set_xlim(low, 112 if share else high + 0.15 * max(high - low, 1.0))
    return figure


def loss_curves(
    losses: Sequence[tuple[int, Mapping[str, float], float]],
    names: Sequence[str],
    task_ends: Sequence[int] = (),
    shares: bool = False,
) -> Figure:
    """Terms over training iterations. Unless they are shares, on a logarithmic axis where the values span more than a
    factor of 30; where some are negative on both sides of zero, if the medians of two terms differ by as much.

    Args:
        losses: (iteration, mean of each term since the last entry, learning rate); long runs are averaged.
        names: the terms that are drawn.
        task_ends: iterations at which a task ended, drawn as vertical lines.
    """
    title, ylabel = ("Shares in training", "share") if shares else ("Training loss", "loss")
    figure, axes = figure_of(8.6, 2.8, title, "training iteration", ylabel)
    low, high, sizes = np.inf, -np.inf, []
    for k, name in enumerate(names):
        points = np.array([(step, terms[name]) for step, terms, _ in losses if name in terms], dtype=np.float64)
        blocks = np.array_split(points, min(len(points), 1000))
        steps, values = np.array([block.mean(0) for block in blocks]).T
        style = {"marker": "." if len(values) < 30 else "", "linestyle": ("-", "--", ":")[k // len(CYCLE) % 3]}
        axes.plot(steps, values, **style, color=CYCLE[k % len(CYCLE)], linewidth=1.2, label=name)
        low, high = min(low, values.min()), max(high, values.max())
        sizes.append(np.median(np.abs(values)))
    for end in task_ends:
        axes.axvline(end, color=CYCLE[-1], linestyle=":", linewidth=1, zorder=0)
    axes.grid(False, axis="x")
    if low > 0 and high > 30 * low and not shares:
        axes.set_yscale("log")
    elif low < 0 and (sizes := [size for size in sizes if size]) and max(sizes) > 30 * min(sizes):
        axes.set_yscale("symlog", linthresh=max(min(sizes), max(sizes) / 1e4))
    if len(names) > 1:
        legend(axes, beside=True)
    return figure


def capacity_bars(owned: Sequence[int], total: int) -> Figure:
    """Parameters owned after each task: by earlier tasks and by the task itself; the line is what there is to own."""
    figure, axes = figure_of(*SMALL, "Parameters in use", "after training task", "parameters")
    new, tasks = np.asarray(owned, dtype=np.float64), np.arange(1, len(owned) + 1)
    before = np.cumsum(new) - new
    axes.bar(tasks, before, 0.7, color=CYCLE[-1], label="owned by earlier tasks")
    bars = axes.bar(tasks, new, 0.7, bottom=before, color=CYCLE[0], label="owned by the task itself")
    if len(new) <= MAX_LABELLED:
        axes.bar_label(bars, [f"{100 * n / max(total, 1):.1f} %" for n in new], padding=2, color=INK)
    axes.axhline(total, color=INK, linestyle="--", linewidth=1, label=f"all there are: {total:,}")
    axes.set_ylim(0, max(total, *np.cumsum(new)) * 1.1 or 1)
    axes.set_xlim(0.4, len(new) + 0.6)
    axes.set_xticks(task_ticks(len(new)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    legend(axes)
    return figure


def importance_histogram(counts: np.ndarray, edges: np.ndarray, zeros: float) -> Figure:
    """How many parameters have an importance of which size, over powers of ten.

    Args:
        counts, edges: (B,) and, in powers of ten, (B + 1,).
        zeros: share of the parameters whose importance is 0; they are in no bin.
    """
    figure, axes = figure_of(*SMALL, "Importance of the parameters", "importance", "parameters")
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=CYCLE[0])
    axes.xaxis.set_major_formatter(lambda value, _: f"1e{value:g}")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=8)
    axes.text(0.99, 0.97, f"{100 * zeros:.1f} % are 0", ha="right", va="top", color=INK, transform=axes.transAxes)
    return figure


def matrix_image(matrix: np.ndarray) -> np.ndarray:
    """The score matrix as a small RGB picture, uint8 (H, W, 3), cheap to draw after every task of a quick run."""
    from PIL import Image, ImageColor, ImageDraw

    low, high = _range(matrix)
    share, stops = (matrix - low) / (high - low), np.array([ImageColor.getrgb(colour) for colour in HEAT])
    colours = np.stack([np.interp(share, np.linspace(0, 1, len(HEAT)), stop) for stop in stops.T], axis=-1)
    colours[np.isnan(matrix)] = 240
    cell = 40 if len(matrix) <= MAX_NUMBERED else 12
    image = Image.fromarray(colours.astype(np.uint8)).resize([len(matrix) * cell] * 2, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for (t, i), value in np.ndenumerate(matrix):
        if len(matrix) <= MAX_NUMBERED and not np.isnan(value):
            place, colour = ((i + 0.5) * cell, (t + 0.5) * cell), "white" if share[t, i] > 0.5 else INK
            draw.text(place, f"{value:.1f}", fill=colour, anchor="mm")
    return np.asarray(image)


def _score_figure(score: str, *words: str) -> tuple[Figure, Axes]:
    """An empty figure, its title and its axes in the words of the score."""
    return figure_of(*SMALL, *(worded(text, score) for text in words))


def _fit_axes(axes: Axes, curves: np.ndarray) -> None:
    """Axes of tasks and percent for curves (any, T)."""
    n, (low, high) = curves.shape[-1], _range(curves)
    axes.set_xlim(0.7, n + 0.3)
    axes.set_xticks(task_ticks(n))
    axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))


def _range(values: np.ndarray) -> tuple[float, float]:
    """0 to 100, widened where a score (a negative error, say) lies outside."""
    known = values[np.isfinite(values)]
    return min(0.0, *known, 0.0), max(100.0, *known, 100.0)


def _colour(scenario: str, k: int) -> str:
    return COLOURS.get(scenario, CYCLE[k % len(CYCLE)])
