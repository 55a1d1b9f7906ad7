"""The common style of all pictures, and the kinds of picture that more than one family draws.

matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    bar.set_ticks(task_ticks(n, 10, first))
    bar.minorticks_off()


def task_ticks(n: int, most: int = 25, first: int = 1) -> list[int]:
    """Numbers of n tasks or classes, the first one and multiples of a round number, about `most` of them."""
    stride = next(s for s in (1, 2, 5, 10, 20, 50, 100, n) if n / s <= most)
    return [k for k in range(first, first + n) if k == first or k % stride == 0]


def short(name: str, most: int = 18) -> str:
    """A name that leaves room for others."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def heat_map(
    values: np.ndarray,
    title: str,
    xlabel: str,
    ylabel: str,
    number: Callable[[float], str],
    limits: tuple[float, float] = (0.0, 100.0),
    first: int = 1,
    label: str = "",
    names: Sequence[str] = (),
) -> Figure:
    """A square matrix in colours with its numbers, its rows and columns numbered from `first`; of a matrix with one row
    that is not nan that row alone.

    Args:
        values: (n, n), nan where there is nothing.
        number: value -> what is written in its cell, where there is room for it.
        limits: values of the lightest and of the darkest colour.
        label: of the colour bar.
        names: of rows and columns, in place of numbers.
    """
    from matplotlib.colors import LinearSegmentedColormap

    n, (low, high) = len(values), limits
    ticks = [k - first for k in task_ticks(n, MAX_NUMBERED, first)]
    rows = np.flatnonzero(~np.isnan(values).all(axis=1))
    rows, row_ticks = (rows, [0]) if len(rows) == 1 else (np.arange(n), ticks)
    shown, cell = values[rows], min(8 / n, 0.62)
    figure, axes = figure_of(max(cell * n + 1.9, 4.2), max(cell * len(rows) + 1.3, 1.8), title, xlabel, ylabel)
    colours = LinearSegmentedColormap.from_list("heat", HEAT)
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=colours, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(shown if n <= MAX_NUMBERED else np.empty(0)):
        if not np.isnan(value):
            look = {"fontsize": 9 if n <= 10 else 7.5, "color": "w" if value - low > (high - low) / 2 else INK}
            axes.text(column, row, number(value), ha="center", va="center", **look)
    named = [short(names[k]) if k < len(names) else str(k + first) for k in range(n)]
    axes.set_xticks(ticks, [named[k] for k in ticks], **({"rotation": 30, "ha": "right"} if names else {}))
    axes.set_yticks(row_ticks, [named[rows[k]] for k in row_ticks])
    axes.grid(False)
    axes.set_facecolor("#f0f0f0")  # seen where there is nothing
    axes.tick_params(length=0)
    if len(rows) > 1 or label:
        figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=30, label=label)
    return figure


def confusion_matrix(
    counts: np.ndarray, title: str = "Confusion matrix: class-il", what: str = "class", first: int = 0
) -> Figure:
    """Share of each true class (row, percent) that was predicted as each class (column); or task, numbered from
    `first`.
    """
    counts = np.asarray(counts, dtype=np.float64)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    words = (title, f"predicted {what}", f"true {what}")
    return heat_map(
        percent, *words, lambda v: f"{v:.0f}" if v >= 0.5 else "", first=first, label=f"% of the true {what}"
    )
