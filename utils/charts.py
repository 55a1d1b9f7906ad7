"""The common style of all pictures, and the kinds of picture that more than one family draws.

matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
HEAT = ("#f7fbff", "#9ecae1", "#2171b5", "#08306b")  # 0, 33, 67 and 100 percent
INK = "#222222"
MAX_LABELLED = 12  # tasks with an entry of their own in a legend; more get a colour bar
MAX_NUMBERED = 25  # tasks up to which a matrix has room for its numbers
MARKERS = "os^DvP*X<>"  # of the classes, in turn


def figure_of(width: float, height: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty figure (inches) in the common style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    style(axes, title, xlabel, ylabel)
    return figure, axes


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Bring axes into the common style."""
    axes.set_title(title, fontsize=11, loc="left", color=INK)
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def task_colours(n: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, n))


def task_colour_bar(figure: Figure, axes: Axes, colours: np.ndarray, label: str = "task", first: int = 1) -> None:
    """In place of a legend with more entries than one can tell apart."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    n = len(colours)
    norm = BoundaryNorm(np.arange(first - 0.5, n + first), n)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, label=label, pad=0.02)
    bar.set_ticks([t - 1 + first for t in task_ticks(n, most=10)])
    bar.minorticks_off()


def task_ticks(n: int, most: int = 25) -> list[int]:
    """Task numbers 1..n, thinned to about `most`."""
    stride = next(s for s in (1, 2, 5, 10, 20, 50, 100, n) if n / s <= most)
    return list(range(1, n + 1)) if stride == 1 else [1, *range(stride, n + 1, stride)]


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
    figure, axes = figure_of(size + 1.5, size + 0.8, title, f"predicted {what}", f"true {what}")
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
