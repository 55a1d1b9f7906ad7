"""Plots of what posteriors over weights say, in the style of `utils.charts`; each function returns a matplotlib Figure.

Tasks are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.utils.charts import (
    CYCLE,
    FAINT,
    INK,
    MARKERS,
    MAX_LABELLED,
    SMALL,
    confusion_matrix,
    figure_of,
    heat_colours,
    legend,
    style,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
MOST_PANELS = 6  # tasks with a panel of their own
OWN, OTHER = CYCLE[0], CYCLE[1]
PLANE = {"origin": "lower", "aspect": "equal", "interpolation": "nearest", "zorder": 0}  # of an image below examples

Points = Sequence[tuple[np.ndarray, np.ndarray]]  # (inputs, labels) of every task's training examples


def uncertainty_histogram(own: np.ndarray, other: np.ndarray, what: str) -> Figure:
    """Share of the examples by their uncertainty under a posterior, own and other tasks' data apart.

    Args:
        own, other: (n,), (m,) values of all posteriors together.
        what: 'entropy', in [0, 1], or 'spread', at least 0, over powers of ten.
    """
    if what == "entropy":
        edges, label = np.linspace(0, 1, BINS + 1), "entropy of the mean prediction, as a share of the largest"
    else:
        values = np.concatenate([own, other])
        low = values[values > 0].min(initial=np.inf)
        low, high = (low, values.max()) if np.isfinite(low) else (1e-3, 1.0)
        edges, label = np.geomspace(low / 1.01, high * 1.01, BINS + 1), "spread of the predictions"
        own, other = own.clip(low), other.clip(low)
    figure, axes = figure_of(*SMALL, f"{what.capitalize()} on own and on other tasks' data", label, "examples (%)")
    axes.set_xscale("linear" if what == "entropy" else "log")
    for values, colour, name in ((own, OWN, "own task"), (other, OTHER, "other tasks")):
        shares = 100 * np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.45, label=name)
        axes.stairs(shares, edges, color=colour, linewidth=1.3)
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(0, 130)
    legend(axes)
    return figure


def reliability(bins: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Share of right predictions against the confidence in them, and how many there are of each confidence.

    Args:
        bins: name -> what `models.utils.posterior.calibration.reliability` returns.
    """
    figure, (axes, counts) = _panels(2, 1, 5.0, 4.8, height_ratios=[3, 1], sharex=True)
    style(axes, "Reliability", "", "right predictions (%)")
    style(counts, "", "confidence (%)", "examples (%)")
    axes.plot([0, 100], [0, 100], color="#888888", linestyle=":", linewidth=1, label="perfect")
    for k, (name, (claimed, right, count)) in enumerate(bins.items()):
        filled = count > 0
        edges, share = np.linspace(0, 100, len(count) + 1), 100 * count / max(count.sum(), 1)
        look = {"color": CYCLE[k], "linestyle": "-" if k == 0 else "--"}  # one may lie on the other
        axes.plot(100 * claimed[filled], 100 * right[filled], marker="o", markersize=7 - 3 * k, label=name, **look)
        counts.stairs(share, edges, linewidth=1.3, **look)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-3, 103)
    legend(axes, beside=True)
    return figure


def task_inference(counts: np.ndarray, what: str) -> Figure:
    """Share of each task's examples (row, percent) for which each task is inferred, by the entropy or the spread."""
    figure = confusion_matrix(counts, f"Task inferred by the {what}", "task", 1)
    figure.axes[0].set_xlabel("inferred task")
    return figure


def functions(
    x: np.ndarray,
    rows: Mapping[str, Sequence[np.ndarray | None]],
    targets: Sequence[np.ndarray],
    domains: Sequence[tuple[float, float]],
    points: Points,
    noise: float,
) -> Figure:
    """What every task's posterior predicts over an axis: a column per task, a row per moment.

    Args:
        x: (n,).
        rows: moment -> (2, n) mean and spread of each task, None where it is not known.
        targets: (n,) noise-free function of each task.
        domains: ends of each task's interval.
        points: training examples.
        noise: standard deviation of the likelihood, added to the spread in quadrature.
    """
    n = min(len(targets), MOST_PANELS)
    figure, panels = _panels(len(rows), n, 2.1 + 2.7 * n, 1.0 + 2.3 * len(rows), sharex=True, sharey=True)
    inside = [(x >= low) & (x <= high) for low, high in domains]
    known = np.concatenate([y for _, y in points] + [y[rows] for y, rows in zip(targets, inside, strict=True)])
    reach = max(float(np.ptp(known)), 1e-6)
    for r, (moment, curves) in enumerate(rows.items()):
        for task in range(n):
            axes = panels[r * n + task]
            style(axes, f"Task {task + 1}, {moment}", "x" if r == len(rows) - 1 else "", "" if task else "y")
            axes.axvspan(*domains[task], color=FAINT, zorder=0, label="interval of the task")
            if curves[task] is None:
                axes.text(0.5, 0.5, "not trained in this run", ha="center", transform=axes.transAxes)
                continue
            mean, std = curves[task][0], np.sqrt(curves[task][1] ** 2 + noise**2)
            for width, alpha, label in ((2, 0.18, "± 2 standard deviations"), (1, 0.32, "± 1 standard deviation")):
                low, high = mean - width * std, mean + width * std
                axes.fill_between(x, low, high, color=OWN, alpha=alpha, linewidth=0, label=label)
            axes.plot(x, mean, color=OWN, linewidth=1.5, label="mean prediction")
            truth = {"color": INK, "linestyle": "--", "linewidth": 1.2, "label": "function without noise"}
            axes.plot(x[inside[task]], targets[task][inside[task]], **truth)
            axes.scatter(*points[task], 12, color=OTHER, linewidths=0, zorder=3, label="training examples")
    panels[0].set_xlim(x[0], x[-1])
    panels[0].set_ylim(known.min() - 0.6 * reach, known.max() + 0.6 * reach)
    entries = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
    return figure


def class_map(predicted: np.ndarray, extent: tuple[float, ...], points: Points, title: str) -> Figure:
    """Predicted class over the plane, with the training examples in the colour of their class.

    Args:
        predicted: (n, n) classes, rows from the bottom.
        extent: left, right, bottom, top.
        points: training examples, inputs (k, 2); the marker is the task's.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    n = int(max(predicted.max(), *(labels.max() for _, labels in points))) + 1
    colours = CYCLE[:n] if n <= len(CYCLE) else colormaps["turbo"](np.linspace(0.02, 0.95, n))
    figure, axes = figure_of(4.6, 3.8, title, "first input", "second input")
    norm = BoundaryNorm(np.arange(-0.5, n), n)
    axes.imshow(predicted, cmap=ListedColormap(colours), norm=norm, alpha=0.4, extent=extent, **PLANE)
    for task, (inputs, labels) in enumerate(points):
        for label in np.unique(labels).tolist():
            look = {"marker": MARKERS[task % len(MARKERS)], "color": colours[label], "edgecolors": INK}
            name = f"class {label} (task {task + 1})"
            axes.scatter(*inputs[labels == label].T, 22, linewidths=0.6, label=name, **look)
    axes.grid(False)
    if len(axes.collections) <= MAX_LABELLED:
        legend(axes, beside=True)
    return figure


def entropy_maps(entropies: np.ndarray, extent: tuple[float, ...], points: Points) -> Figure:
    """Entropy of every task's posterior over the plane, one colour scale for all; training examples of all tasks.

    Args:
        entropies: (J, n, n) in [0, 1], rows from the bottom.
        extent, points: as of `class_map`.
    """
    n = min(len(entropies), MOST_PANELS)
    figure, panels = _panels(1, n, 1.6 + 2.7 * n, 3.3, sharex=True, sharey=True)
    heat = heat_colours()
    for task, axes in enumerate(panels):
        style(axes, f"Entropy, posterior of task {task + 1}", "first input", "" if task else "second input")
        image = axes.imshow(entropies[task], cmap=heat, vmin=0, vmax=1, extent=extent, **PLANE)
        for other, (inputs, _) in enumerate(points):
            own = other == task
            colour, label = (OTHER, "own task's training examples") if own else ("#bbbbbb", "other tasks'")
            axes.scatter(*inputs.T, 12, color=colour, edgecolors=INK, linewidths=0.4, label=label, zorder=2 + own)
        axes.grid(False)
    bar = figure.colorbar(
        image, ax=list(panels), pad=0.01, fraction=0.03, aspect=30, label="entropy, share of the largest"
    )
    bar.ax.set_facecolor("none")
    entries = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return figure


def _panels(rows: int, columns: int, width: float, height: float, **more: Any) -> tuple[Figure, np.ndarray]:
    """An empty figure (inches) with rows x columns axes, in one array row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more).ravel()
