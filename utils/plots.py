"""Plots of a run. Each function returns a matplotlib Figure; nothing touches pyplot or the global style.

A score matrix R (T, T) holds percent, R[t, i] on task i after training task t, nan where nothing was evaluated. Tasks
are numbered from 1 in the plots. matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; a scenario has the same colour in every plot.
COLOURS = {"class-il": "#0072B2", "task-il": "#D55E00", "domain-il": "#009E73", "general-continual": "#CC79A7"}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
HEAT = ("#f7fbff", "#9ecae1", "#2171b5", "#08306b")  # 0, 33, 67 and 100 percent
INK = "#222222"
SCORES = {"r2": "R²"}  # how a score is written, where not by its name
MARKERS = "os^DvP*X<>"  # of the classes, in turn
MAX_LABELLED = 12  # tasks with an entry of their own in a legend; more get a colour bar
MAX_NUMBERED = 25  # tasks up to which a matrix has room for its numbers


def worded(text: str, score: str) -> str:
    """A text about accuracy as one about another score, named as in `datasets.utils.scores`."""
    name = SCORES.get(score, score)
    return text.replace("accuracy", name).replace("Accuracy", name[0].upper() + name[1:])


def mean_curve(matrix: np.ndarray) -> np.ndarray:
    """Mean accuracy over the tasks seen so far after each task, shape (T,), nan where it was not evaluated."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.array([matrix[t, : t + 1].mean() for t in range(len(matrix))])


def forgetting_per_task(matrix: np.ndarray) -> np.ndarray:
    """Drop of each task but the last from its best score to its last one, shape (n - 1,) for n trained tasks.

    The best includes the last score, so no drop is negative: the terms of the metric `forgetting`. Empty where fewer
    than two tasks were trained, or where the first rows are missing (joint training, a run that started later).
    """
    return metrics.forgetting_terms(metrics.trained_part(matrix))


def backward_per_task(matrix: np.ndarray) -> dict[int, float]:
    """What later tasks did to each task (numbered from 1): the terms of backward transfer that are defined."""
    trained = metrics.trained_part(matrix)
    return _defined(metrics.backward_transfer_terms(trained), 1) if len(trained) else {}


def forward_per_task(matrix: np.ndarray, baseline: np.ndarray | None) -> dict[int, float]:
    """What earlier tasks did for each task before it was trained: the terms of forward transfer that are defined.

    Args:
        baseline: scores (T,) of the untrained network; without them there is nothing to tell.
    """
    if baseline is None:
        return {}
    return _defined(metrics.forward_transfer_terms(metrics.trained_part(matrix), np.asarray(baseline)), 2)


def accuracy_curves(matrix: np.ndarray, title: str = "", score: str = "accuracy") -> Figure:
    """Accuracy (or another score) of each task over training, from the task itself on."""
    matrix = np.asarray(matrix, dtype=np.float64)
    n = len(matrix)
    figure, axes = _score_figure(
        score, 5.8, 3.5, title or "Accuracy of each task", "after training task", "accuracy (%)"
    )
    colours = _task_colours(n)
    steps = np.arange(1, n + 1)
    style = {"marker": "o", "markersize": 4, "linewidth": 1.6}
    for i in range(n):
        if not np.isnan(matrix[i:, i]).all():
            axes.plot(steps[i:], matrix[i:, i], color=colours[i], label=f"task {i + 1}", **style)
    _task_axis(axes, n)
    _percent_axis(axes, matrix)
    if n > MAX_LABELLED:
        _task_colour_bar(figure, axes, colours)
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
    ticks = [t - 1 for t in _ticks(n)]
    axes.set_xticks(ticks, [str(t + 1) for t in ticks])
    shown_rows = range(len(rows)) if len(rows) == 1 else ticks
    axes.set_yticks(list(shown_rows), [str(rows[r] + 1) for r in shown_rows])
    axes.grid(False)
    axes.set_facecolor("#f0f0f0")  # seen where nothing was evaluated
    axes.tick_params(length=0)
    if len(rows) > 1:
        figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=30)
    return figure


def forgetting_bars(
    matrices: Mapping[str, np.ndarray], title: str = "Forgetting of each task", score: str = "accuracy"
) -> Figure:
    """Drop of each task from its best to its last accuracy, one group of bars per task, one colour per scenario."""
    figure, axes = _score_figure(score, 5.8, 3.5, title, "task", "best minus last accuracy (points)")
    drops = {name: forgetting_per_task(matrix) for name, matrix in matrices.items()}
    _bars(axes, {name: dict(enumerate(values.tolist(), start=1)) for name, values in drops.items()})
    return figure


def transfer_bars(
    terms: Mapping[str, Mapping[int, float]], title: str = "Backward transfer of each task", score: str = "accuracy"
) -> Figure:
    """Change of each task's accuracy, backward or forward, one colour per scenario.

    Args:
        terms: scenario -> task, from 1 -> points.
    """
    figure, axes = _score_figure(score, 5.8, 3.5, title, "task", "change of accuracy (points)")
    _bars(axes, terms)
    return figure


def capacity_bars(owned: Sequence[int], total: int, title: str = "Parameters in use") -> Figure:
    """Parameters owned after each task: by earlier tasks and by the task itself; the line is what there is to own."""
    figure, axes = _figure(5.8, 3.5, title, "after training task", "parameters")
    new, tasks = np.asarray(owned, dtype=np.float64), np.arange(1, len(owned) + 1)
    before = np.cumsum(new) - new
    axes.bar(tasks, before, 0.7, color="#c8c8c8", label="owned by earlier tasks")
    bars = axes.bar(tasks, new, 0.7, bottom=before, color=CYCLE[0], label="owned by the task itself")
    if len(new) <= MAX_LABELLED:
        labels = [f"{100 * n / max(total, 1):.1f} %" for n in new]
        axes.bar_label(bars, labels, fontsize=8, padding=2)
    axes.axhline(total, color=INK, linestyle="--", linewidth=1, label=f"all there are: {total:,}")
    axes.set_ylim(0, max(total, *np.cumsum(new)) * 1.1 or 1)
    axes.set_xlim(0.4, len(new) + 0.6)
    axes.set_xticks(_ticks(len(new)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)
    return figure


def importance_histogram(counts: np.ndarray, edges: np.ndarray, zeros: float, title: str = "") -> Figure:
    """How many parameters have an importance of which size, over powers of ten.

    Args:
        counts, edges: (B,) and, in powers of ten, (B + 1,).
        zeros: share of the parameters whose importance is 0; they are in no bin.
    """
    figure, axes = _figure(5.8, 3.5, title or "Importance of the parameters", "importance", "parameters")
    edges = np.asarray(edges, dtype=np.float64)
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=CYCLE[0])
    axes.xaxis.set_major_formatter(lambda value, _: f"1e{value:g}")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=8)
    axes.text(0.99, 0.97, f"{100 * zeros:.1f} % are 0", ha="right", va="top", fontsize=9, transform=axes.transAxes)
    return figure


def embedding(
    points: np.ndarray, tasks: np.ndarray, labels: np.ndarray, shares: Sequence[float], title: str = ""
) -> Figure:
    """Test examples by the network's features, on two principal axes: colour is the task, marker the class.

    In a stream of one task the colour is the class.

    Args:
        points: (n, 2).
        tasks, labels: (n,), from 0.
        shares: of the variance, of each axis.
    """
    axis = [f"principal axis {k} ({100 * share:.0f} % of the variance)" for k, share in enumerate(shares, start=1)]
    figure, axes = _figure(6.4, 4.4, title or "Features of test examples", *axis)
    several = len(set(tasks.tolist())) > 1
    groups, word = (tasks, "task") if several else (labels, "class")
    first = 1 if several else 0
    colours = _task_colours(int(groups.max()) + 1)
    for marker in dict.fromkeys(MARKERS[label % len(MARKERS)] for label in sorted(set(labels.tolist()))):
        chosen = labels % len(MARKERS) == MARKERS.index(marker)
        axes.scatter(*points[chosen].T, 16, colours[groups[chosen]], marker=marker, linewidths=0, alpha=0.75)
    if len(colours) > MAX_LABELLED:
        _task_colour_bar(figure, axes, colours, word, first)
    else:
        for task in sorted(set(groups.tolist())):
            axes.scatter([], [], 30, color=colours[task], label=f"{word} {task + first}")
    classes = sorted(set(labels.tolist()))
    if several and len(classes) <= len(MARKERS):
        for label in classes:
            axes.scatter([], [], 22, color="#777777", marker=MARKERS[label % len(MARKERS)], label=f"class {label}")
    if axes.get_legend_handles_labels()[0]:
        beside = {"bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
        below = {"bbox_to_anchor": (0, -0.13), "ncols": 5}  # the colour bar is beside
        place = below if len(colours) > MAX_LABELLED else beside
        axes.legend(loc="upper left", frameon=False, fontsize=8, **place)
    return figure


def confusion_matrix(
    counts: np.ndarray, title: str = "Confusion matrix: class-il", what: str = "class", first: int = 0
) -> Figure:
    """Share of each true class (row, percent) that was predicted as each class (column); or task, numbered from
    `first`.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(counts, dtype=np.float64)
    n = len(counts)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = float(np.clip(0.48 * n, 3.0, 6.2))
    figure, axes = _figure(size + 1.5, size + 0.8, title, f"predicted {what}", f"true {what}")
    colours = LinearSegmentedColormap.from_list("heat", HEAT)
    image = axes.imshow(percent, cmap=colours, vmin=0, vmax=100, interpolation="nearest")
    if n <= MAX_LABELLED:
        for (true, predicted), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "w" if value > 50 else INK
                axes.text(predicted, true, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color=colour)
    ticks = range(0, n, next(step for step in (1, 2, 5, 10, 20) if n / step <= MAX_NUMBERED))
    names = [str(tick + first) for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.grid(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, pad=0.02, fraction=0.045, aspect=30, label=f"% of the true {what}")
    return figure


def comparison_bars(
    values: Mapping[str, tuple[float, float]], xlabel: str, title: str, highest: float | None = None
) -> Figure:
    """A horizontal bar per method with its standard deviation.

    Args:
        values: method -> (mean, standard deviation), drawn from the top.
        highest: end of the axis, by default a little beyond the longest bar.
    """
    figure, axes = _figure(6.0, 1.3 + 0.32 * len(values), title, xlabel, "")
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
    figure, axes = _figure(8.5, 3.2, title, "training iteration", ylabel)
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


def _figure(width: float, height: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty figure (inches) in the common style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    style(axes, title, xlabel, ylabel)
    return figure, axes


def _score_figure(score: str, width: float, height: float, *words: str) -> tuple[Figure, Axes]:
    """The same, in the words of another score than accuracy."""
    return _figure(width, height, *(worded(text, score) for text in words))


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Bring axes into the common style."""
    axes.set_title(title, fontsize=11, loc="left", color=INK)
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


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
    axes.set_xticks([task for task in _ticks(max(tasks)) if task >= min(tasks)])
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)


def _defined(terms: np.ndarray, first: int) -> dict[int, float]:
    return {task: value for task, value in enumerate(terms.tolist(), start=first) if not np.isnan(value)}


def _task_colours(n: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, n))


def _task_colour_bar(figure: Figure, axes: Axes, colours: np.ndarray, label: str = "task", first: int = 1) -> None:
    """In place of a legend with more entries than one can tell apart."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    n = len(colours)
    norm = BoundaryNorm(np.arange(first - 0.5, n + first), n)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, label=label, pad=0.02)
    bar.set_ticks([t - 1 + first for t in _ticks(n, most=10)])
    bar.minorticks_off()


def _finish_curves(axes: Axes, curves: list[np.ndarray]) -> None:
    _task_axis(axes, max((np.shape(curve)[-1] for curve in curves), default=1))
    _percent_axis(axes, np.concatenate([np.ravel(curve) for curve in curves]) if curves else np.empty(0))
    if curves:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)


def _task_axis(axes: Axes, n: int) -> None:
    axes.set_xlim(0.7, n + 0.3)
    axes.set_xticks(_ticks(n))


def _ticks(n: int, most: int = 25) -> list[int]:
    """Task numbers 1..n, thinned to about `most`."""
    stride = next(s for s in (1, 2, 5, 10, 20, 50, 100, n) if n / s <= most)
    return list(range(1, n + 1)) if stride == 1 else [1, *range(stride, n + 1, stride)]


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
