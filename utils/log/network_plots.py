"""Plots of the trained network: its parameters, what it confuses, how its features lie. The style is that of
`utils.charts`; tasks are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.charts import CYCLE, INK, MARKERS, MAX_LABELLED, figure_of, task_colour_bar, task_colours, task_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def capacity_bars(owned: Sequence[int], total: int, title: str = "Parameters in use") -> Figure:
    """Parameters owned after each task: by earlier tasks and by the task itself; the line is what there is to own."""
    figure, axes = figure_of(5.8, 3.5, title, "after training task", "parameters")
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
    axes.set_xticks(task_ticks(len(new)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)
    return figure


def importance_histogram(counts: np.ndarray, edges: np.ndarray, zeros: float, title: str = "") -> Figure:
    """How many parameters have an importance of which size, over powers of ten.

    Args:
        counts, edges: (B,) and, in powers of ten, (B + 1,).
        zeros: share of the parameters whose importance is 0; they are in no bin.
    """
    figure, axes = figure_of(5.8, 3.5, title or "Importance of the parameters", "importance", "parameters")
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
    figure, axes = figure_of(6.4, 4.4, title or "Features of test examples", *axis)
    several = len(set(tasks.tolist())) > 1
    groups, word = (tasks, "task") if several else (labels, "class")
    first = 1 if several else 0
    colours = task_colours(int(groups.max()) + 1)
    for marker in dict.fromkeys(MARKERS[label % len(MARKERS)] for label in sorted(set(labels.tolist()))):
        chosen = labels % len(MARKERS) == MARKERS.index(marker)
        axes.scatter(*points[chosen].T, 16, colours[groups[chosen]], marker=marker, linewidths=0, alpha=0.75)
    if len(colours) > MAX_LABELLED:
        task_colour_bar(figure, axes, colours, word, first)
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
