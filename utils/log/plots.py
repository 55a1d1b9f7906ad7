"""Plots of a run. Each function returns a matplotlib Figure; nothing touches pyplot or the global style.

A score matrix R (T, T) holds percent, R[t, i] on task i after training task t, nan where nothing was evaluated. Tasks
are numbered from 1 in the plots. matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import metrics
from utils.charts import (
    CYCLE,
    HEAT,
    INK,
    MAX_LABELLED,
    MAX_NUMBERED,
    figure_of,
    task_colour_bar,
    task_colours,
    task_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; a scenario has the same colour in every plot.
COLOURS = {"class-il": "#0072B2", "task-il": "#D55E00", "domain-il": "#009E73", "general-continual": "#CC79A7"}
SCORES = {"r2": "R²"}  # how a score is written, where not by its name
BARS = {
    "forgetting": ("Forgetting", "best minus last accuracy (points)"),
    "bwt": ("Backward transfer", "change of accuracy (points)"),
    "fwt": ("Forward transfer", "change of accuracy (points)"),
}


def worded(text: str, score: str) -> str:
    """A text about accuracy as one about another score, named as in `datasets.utils.scores`."""
    name = SCORES.get(score, score)
    return text.replace("accuracy", name).replace("Accuracy", name[0].upper() + name[1:])


def mean_curve(matrix: np.ndarray) -> np.ndarray:
    """Mean accuracy over the tasks seen so far after each task, shape (T,), nan where it was not evaluated."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.array([matrix[t, : t + 1].mean() for t in range(len(matrix))])


def terms_per_task(metric: str, matrix: np.ndarray, baseline: np.ndarray | None = None) -> dict[int, float]:
    """The terms of 'forgetting', 'bwt' or 'fwt' that are defined, by task (from 1).

    Args:
        baseline: scores (T,) of the untrained network, for 'fwt'.
    """
    values = metrics.terms(matrix, baseline).get(metric, np.empty(0))
    first = 2 if metric == "fwt" else 1  # forward transfer has no term for the first task, the others none for the last
    return {task: value for task, value in enumerate(values.tolist(), first) if not np.isnan(value)}


def accuracy_curves(matrix: np.ndarray, title: str = "", score: str = "accuracy") -> Figure:
    """Accuracy (or another score) of each task over training, from the task itself on."""
    matrix = np.asarray(matrix, dtype=np.float64)
    n = len(matrix)
    figure, axes = _score_figure(
        score, 5.8, 3.5, title or "Accuracy of each task", "after training task", "accuracy (%)"
    )
    colours = task_colours(n)
    steps = np.arange(1, n + 1)
    style = {"marker": "o", "markersize": 4, "linewidth": 1.6}
    for i in range(n):
        if not np.isnan(matrix[i:, i]).all():
            axes.plot(steps[i:], matrix[i:, i], color=colours[i], label=f"task {i + 1}", **style)
    _task_axis(axes, n)
    _percent_axis(axes, matrix)
    if n > MAX_LABELLED:
        task_colour_bar(figure, axes, colours)
    elif axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)
    return figure


def average_curve(
    matrices: Mapping[str, np.ndarray], title: str = "Average accuracy", score: str = "accuracy"
) -> Figure:
    """Mean accuracy over the tasks seen so far, one line per scenario; the last value is in the legend."""
    figure, axes = _score_figure(score, 5.8, 3.5, title, "after training task", "mean accuracy on tasks seen (%)")
    curves = {name: mean_curve(matrix) for name, matrix in matrices.items()}
    for k, (name, curve) in enumerate(curves.items()):
        known = curve[~np.isnan(curve)]
        label = f"{name}: last {known[-1]:.2f}" if known.size else f"{name}: not evaluated"
        axes.plot(np.arange(1, len(curve) + 1), curve, "-o", color=_colour(name, k), markersize=4, label=label)
    _finish_curves(axes, list(curves.values()))
    return figure


def seed_curves(
    curves: Mapping[str, np.ndarray], title: str = "Average accuracy over seeds", score: str = "accuracy"
) -> Figure:
    """Mean accuracy over the tasks seen so far: mean over seeds with a band of one standard deviation.

    Args:
        curves: scenario -> `mean_curve` of each seed, shape (seeds, T).
    """
    figure, axes = _score_figure(score, 5.8, 3.5, title, "after training task", "mean accuracy on tasks seen (%)")
    for k, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, dtype=np.float64)
        mean, steps, colour = values.mean(0), np.arange(1, values.shape[1] + 1), _colour(name, k)
        std = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, "-o", color=colour, markersize=4, label=f"{name}: mean ± std of {len(values)} seed(s)")
        for row in values:
            axes.plot(steps, row, color=colour, alpha=0.35, linewidth=0.7)
    _finish_curves(axes, list(curves.values()))
    return figure


def accuracy_matrix(matrix: np.ndarray, title: str = "", score: str = "accuracy") -> Figure:
    """The score matrix as a heat map with its numbers; a matrix of one row (joint training) is drawn as that row."""
    from matplotlib.colors import LinearSegmentedColormap

    matrix = np.asarray(matrix, dtype=np.float64)
    n = len(matrix)
    trained = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    rows = trained if trained.size == 1 else np.arange(n)
    shown = matrix[rows]
    cell = float(np.clip(8 / n, 0.2, 0.62))
    width = max(cell * n + 1.9, 4.2)
    height = max(cell * len(rows) + 1.3, 1.8)
    words = (title or "Accuracy matrix", "accuracy (%) on task", "after training task")
    figure, axes = _score_figure(score, width, height, *words)
    colours = LinearSegmentedColormap.from_list("heat", HEAT)
    low, high = _range(matrix)
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=colours, vmin=low, vmax=high, aspect="auto")
    if n <= MAX_NUMBERED:
        for (r, i), value in np.ndenumerate(shown):
            if not np.isnan(value):
                dark = (value - low) / (high - low) > 0.5
                axes.text(
                    i,
                    r,
                    _short(value, n),
                    ha="center",
                    va="center",
                    fontsize=9 if n <= 10 else 7.5,
                    color="w" if dark else INK,
                )
    ticks = [t - 1 for t in task_ticks(n)]
    axes.set_xticks(ticks, [str(t + 1) for t in ticks])
    shown_rows = range(len(rows)) if len(rows) == 1 else ticks
    axes.set_yticks(list(shown_rows), [str(rows[r] + 1) for r in shown_rows])
    axes.grid(False)
    axes.set_facecolor("#f0f0f0")  # seen where nothing was evaluated
    axes.tick_params(length=0)
    if len(rows) > 1:
        figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=30)
    return figure


def term_bars(metric: str, terms: Mapping[str, Mapping[int, float]], score: str = "accuracy") -> Figure:
    """What became of each task, one colour per scenario.

    Args:
        metric: 'forgetting', 'bwt' or 'fwt'.
        terms: scenario -> what `terms_per_task` returns.
    """
    title, ylabel = BARS[metric]
    figure, axes = _score_figure(score, 5.8, 3.5, f"{title} of each task", "task", ylabel)
    _bars(axes, terms)
    return figure


def comparison_bars(
    values: Mapping[str, tuple[float, float]], xlabel: str, title: str, highest: float | None = None
) -> Figure:
    """A horizontal bar per method with its standard deviation.

    Args:
        values: method -> (mean, standard deviation), drawn from the top.
        highest: end of the axis, by default a little beyond the longest bar.
    """
    figure, axes = figure_of(6.0, 1.3 + 0.32 * len(values), title, xlabel, "")
    means, deviations = np.array(list(values.values())).T
    places = np.arange(len(values))
    whiskers = {"linewidth": 1, "ecolor": INK, "capsize": 2}
    axes.barh(places, means, 0.7, xerr=deviations, color=CYCLE[0], error_kw=whiskers)
    for place, mean, deviation in zip(places, means, deviations, strict=True):
        end = (max(mean + deviation, 0.0), place)
        axes.annotate(f"{mean:.1f}", end, (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [_clipped(name) for name in values])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = min(0.0, *(means - deviations)), max(0.0, *(means + deviations))
    axes.set_xlim(low, high + 0.15 * max(high - low, 1.0) if highest is None else highest)
    return figure


def loss_curves(
    losses: Sequence[tuple[int, Mapping[str, float], float]],
    task_ends: Sequence[int] = (),
    title: str = "Training loss",
    ylabel: str = "loss",
    linear: bool = False,
) -> Figure:
    """Every term over training iterations. Unless `linear`, on a logarithmic axis where the values span more than a
    factor of 30; where some are negative on both sides of zero, if the medians of two terms differ by as much.

    Args:
        losses: (iteration, mean of each term since the last entry, learning rate); long runs are averaged.
        task_ends: iterations at which a task ended, drawn as vertical lines.
    """
    figure, axes = figure_of(8.5, 3.2, title, "training iteration", ylabel)
    low, high, sizes = np.inf, -np.inf, []
    for k, name in enumerate(dict.fromkeys(name for _, terms, _ in losses for name in terms)):
        points = np.array([(step, terms[name]) for step, terms, _ in losses if name in terms], dtype=np.float64)
        blocks = np.array_split(points, min(len(points), 1000))
        steps, values = np.array([block.mean(0) for block in blocks]).T
        style = {"marker": "." if len(values) < 30 else "", "linestyle": ("-", "--", ":")[k // len(CYCLE) % 3]}
        axes.plot(steps, values, **style, color=CYCLE[k % len(CYCLE)], linewidth=1.2, label=name)
        low, high = min(low, values.min()), max(high, values.max())
        sizes.append(np.median(np.abs(values)))
    for end in task_ends:
        axes.axvline(end, color="#bbbbbb", linewidth=0.8, zorder=0)
    if low > 0 and high > 30 * low and not linear:
        axes.set_yscale("log")
    elif low < 0 and (sizes := [size for size in sizes if size]) and max(sizes) > 30 * min(sizes):
        axes.set_yscale("symlog", linthresh=max(min(sizes), max(sizes) / 1e4))
    if low <= high:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)
    return figure


def matrix_image(matrix: np.ndarray) -> np.ndarray:
    """The score matrix as a small RGB picture, uint8 (H, W, 3), cheap to draw after every task of a quick run."""
    from PIL import Image, ImageDraw

    matrix = np.asarray(matrix, dtype=np.float64)
    n = len(matrix)
    width, height = (44, 28) if n <= MAX_NUMBERED else (12, 12)
    margin = 28
    image = Image.new("RGB", (margin + n * width + 1, margin + n * height + 1), "white")
    draw = ImageDraw.Draw(image)
    low, high = _range(matrix)
    stops = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in HEAT])
    for t in range(n):
        if n <= MAX_NUMBERED or t % 10 == 9:
            draw.text((margin / 2, margin + (t + 0.5) * height), str(t + 1), fill=INK, anchor="mm")
            draw.text((margin + (t + 0.5) * width, margin / 2), str(t + 1), fill=INK, anchor="mm")
        for i in range(n):
            box = [margin + i * width, margin + t * height, margin + (i + 1) * width, margin + (t + 1) * height]
            if np.isnan(matrix[t, i]):
                draw.rectangle(box, fill="#f0f0f0", outline="white")
                continue
            share = (matrix[t, i] - low) / (high - low)
            colour = [int(np.interp(share, np.linspace(0, 1, len(HEAT)), stops[:, c])) for c in range(3)]
            draw.rectangle(box, fill=tuple(colour), outline="white")
            if n <= MAX_NUMBERED:
                centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                draw.text(centre, f"{matrix[t, i]:.1f}", fill="white" if share > 0.5 else INK, anchor="mm")
    return np.asarray(image)


def _score_figure(score: str, width: float, height: float, *words: str) -> tuple[Figure, Axes]:
    """The same, in the words of another score than accuracy."""
    return figure_of(width, height, *(worded(text, score) for text in words))


def _bars(axes: Axes, series: Mapping[str, Mapping[int, float]]) -> None:
    """A group of bars per task, one colour per scenario; says why where there is nothing."""
    series = {name: terms for name, terms in series.items() if terms}
    if not series:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not defined: needs two tasks trained in sequence", ha="center", transform=axes.transAxes)
        return
    tasks = [task for terms in series.values() for task in terms]
    values = [value for terms in series.values() for value in terms.values()]
    width = 0.8 / len(series)
    for k, (name, terms) in enumerate(series.items()):
        places = np.array(list(terms)) + (k - (len(series) - 1) / 2) * width
        bars = axes.bar(places, list(terms.values()), width * 0.92, color=_colour(name, k), label=name)
        if len(values) <= 20:
            axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    low, high = min(0.0, *values), max(0.0, *values)
    reach = max(0.12 * (high - low), 0.5)
    axes.set_ylim(low - reach if low < 0 else 0, high + reach)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(min(tasks) - 0.6, max(tasks) + 0.6)
    axes.set_xticks([task for task in task_ticks(max(tasks)) if task >= min(tasks)])
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)


def _finish_curves(axes: Axes, curves: list[np.ndarray]) -> None:
    _task_axis(axes, max((np.shape(curve)[-1] for curve in curves), default=1))
    _percent_axis(axes, np.concatenate([np.ravel(curve) for curve in curves]) if curves else np.empty(0))
    if curves:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)


def _task_axis(axes: Axes, n: int) -> None:
    axes.set_xlim(0.7, n + 0.3)
    axes.set_xticks(task_ticks(n))


def _percent_axis(axes: Axes, values: np.ndarray) -> None:
    low, high = _range(values)
    axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))


def _range(values: np.ndarray) -> tuple[float, float]:
    """0 to 100, widened where a score (a negative error, say) lies outside."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return min(0.0, *known, 0.0), max(100.0, *known, 100.0)


def _short(value: float, n: int) -> str:
    return f"{value:.1f}" if n <= 10 else f"{value:.0f}"


def _clipped(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _colour(scenario: str, k: int) -> Any:
    return COLOURS.get(scenario, CYCLE[k % len(CYCLE)])
