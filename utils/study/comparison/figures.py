"""Pictures of a comparison. Each function returns a matplotlib Figure; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.utils.charts import CYCLE, INK, MARKERS, figure_of, legend, short, task_ticks
from palimpsest.utils.log.plots import worded
from palimpsest.utils.metrics import FEWEST
from palimpsest.utils.study.comparison.statistics import LEVEL, Ranks, student_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = ("-", "--", ":")
MARGIN = 0.2  # ranks between an entry and its name


def task_curves(curves: Mapping[str, np.ndarray], title: str, score: str = "accuracy") -> Figure:
    """Mean score on the tasks seen after each task: a line per entry with the 95 % interval of its mean as a band.

    Args:
        curves: entry -> (runs, tasks) in percent, nan where nothing was evaluated (joint training has its end alone);
            below `FEWEST` runs there is no band.
    """
    figure, axes = figure_of(6.4, 3.6, title, "after training task", worded("average accuracy (%)", score))
    n, seen = max(values.shape[1] for values in curves.values()), []
    for k, (name, values) in enumerate(curves.items()):
        known = np.flatnonzero(~np.isnan(values).any(0))
        tasks, shown = known + 1, values[:, known]
        colour, mean = CYCLE[k % len(CYCLE)], shown.mean(0)
        look = {"marker": MARKERS[k % len(MARKERS)], "markersize": 4, "linestyle": LINES[k // len(CYCLE) % len(LINES)]}
        axes.plot(tasks, mean, color=colour, linewidth=1.5, label=short(name, 40), **look)
        seen.append(mean)
        if len(shown) >= FEWEST and len(known):
            _, _, low, high = student_interval(shown.T)
            if score != "r2":
                low, high = np.clip(low, 0, 100), np.clip(high, 0, 100)
            axes.fill_between(tasks, low, high, color=colour, alpha=0.18, linewidth=0)
            if len(known) == 1:
                axes.errorbar(tasks, mean, [mean - low, high - mean], color=colour, capsize=3)
            seen += [low, high]
    values = np.concatenate([*seen, np.zeros(0)])
    low, high = (values.min(), values.max()) if values.size else (0.0, 100.0)
    reach = max(0.05 * (high - low), 0.5)
    axes.set_ylim(low - reach, high + reach)
    axes.set_xlim(0.8, n + 0.2)
    axes.set_xticks(task_ticks(n))
    legend(axes, beside=True)
    return figure


def critical_difference(ranks: Ranks, title: str, labels: Mapping[str, str]) -> Figure:
    """Mean ranks over streams, best at the left; a bar joins entries that Nemenyi's test does not tell apart.

    Args:
        labels: entry -> how it is called.
    """
    import pandas
    from scikit_posthocs import critical_difference_diagram

    shown = {labels[name]: rank for name, rank in ranks.ranks.items()}
    names = list(shown)
    matrix = pandas.DataFrame(1.0, index=names, columns=names)
    for (a, b), p in ranks.nemenyi.items():
        matrix.loc[labels[a], labels[b]] = matrix.loc[labels[b], labels[a]] = p
    figure, axes = figure_of(6.4, 1.3 + 0.24 * len(names), title, "", "")
    axes.spines["top"].set_visible(True)
    axes.spines["top"].set_color(INK)
    axes.grid(False)
    drawn = critical_difference_diagram(
        shown,
        matrix,
        alpha=LEVEL,
        ax=axes,
        label_props={"fontsize": "medium"},
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        marker_props={"color": CYCLE[0], "s": 24},
        elbow_props={"color": INK, "linewidth": 0.8},
        crossbar_props={"color": INK, "linewidth": 3},
        text_h_margin=MARGIN,
    )
    for label in drawn["labels"]:
        label.set_color(INK)
        x, side = label.get_position()[0], -1 if label.get_ha() == "right" else 1
        label.set_x(x + side * MARGIN / 4)
    axes.set_xlim(1 - MARGIN, len(names) + MARGIN)
    axes.set_xticks(range(1, len(names) + 1))
    axes.set_title(title, fontsize="medium", loc="left", color=INK, pad=26)
    width = min(ranks.critical, len(names) - 1)
    words = f"critical difference {ranks.critical:.2f}" + (", beyond the axis" if width < ranks.critical else "")
    top = axes.get_ylim()[1]
    axes.plot([1, 1 + width], [top + 1.2] * 2, color=INK, linewidth=1.5, marker="|", clip_on=False)
    place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate(words, (1 + width, top + 1.2), color=INK, **place)
    return figure
