"""Plots of what `models.utils.gates.analysis` finds, in the style of `utils.charts`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from palimpsest.utils.charts import CYCLE, INK, SMALL, figure_of, heat_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gate_rates(rates: np.ndarray, classes: np.ndarray, slices: list[int]) -> Figure:
    """Share of each class's images (row, percent) that keep each filter (column), lines between the agents."""
    figure, axes = figure_of(8.5, 1.4 + 0.2 * len(classes), "Filters in use", "filter, by agent", "class")
    colours = heat_colours()
    image = axes.imshow(100 * rates, cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    for place in slices[1:-1]:
        axes.axvline(place - 0.5, color=CYCLE[1], linewidth=1.2)
    middles = (np.array(slices[1:]) + slices[:-1]) / 2 - 0.5
    axes.set_xticks(middles, [f"{g}: {width} filters" for g, width in enumerate(np.diff(slices), start=1)])
    step = -(-len(classes) // 25)
    axes.set_yticks(range(0, len(classes), step), [str(c) for c in classes[::step]])
    axes.grid(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03, aspect=20, label="% kept")
    bar.ax.set_facecolor("none")
    return figure


def gate_overlap(overlap: np.ndarray, similarity: np.ndarray, classes: np.ndarray) -> Figure:
    """Soft Jaccard index of the rates of two classes against the cosine of their mean images, a point per pair."""
    first, second = np.triu_indices(len(classes), 1)
    title = "Shared filters and likeness of classes"
    figure, axes = figure_of(*SMALL, title, "cosine of the mean images", "overlap of the filters")
    axes.scatter(similarity[first, second], overlap[first, second], 18, CYCLE[0], linewidths=0, alpha=0.8)
    names = [f"{classes[i]}-{classes[j]}" for i, j in zip(first, second, strict=True)]
    _label(axes, similarity[first, second], overlap[first, second], names)
    return figure


def gate_accuracy(curve: list[tuple[float, float, float, float]], images: int) -> Figure:
    """Accuracy on so many images against the share of multiply-accumulates, a point per threshold."""
    title = f"Accuracy and computation by threshold tau, {images:,} images"
    xlabel = "multiply-accumulates (% of the plain network)"
    figure, axes = figure_of(*SMALL, title, xlabel, "accuracy (%)")
    thresholds, _, macs, accuracy = np.array(curve).T
    axes.plot(100 * macs, accuracy, "-o", color=CYCLE[0], markersize=4)
    axes.margins(0.08, 0.15)
    # At least ten points high: less is chance on so few images.
    low, high = axes.get_ylim()
    rest = max(0, 10 - (high - low)) / 2
    axes.set_ylim(low - rest, high + rest)
    _label(axes, 100 * macs, accuracy, [f"{tau:g}" for tau in thresholds])
    return figure


def _label(axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Name points, the outermost first; one whose name would lie on another's is left without."""
    if not names:
        return
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    u, v = (x - left) / (right - left), (y - bottom) / (top - bottom)
    placed: list[int] = []
    for k in np.argsort(-np.hypot(u - np.median(u), v - np.median(v))):
        if all(abs(u[k] - u[other]) > 0.09 or abs(v[k] - v[other]) > 0.06 for other in placed):
            placed.append(k)
            look = {"textcoords": "offset points", "ha": "center", "color": INK}
            axes.annotate(names[k], (x[k], y[k]), (0, 5), **look)
