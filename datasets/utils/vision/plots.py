"""Plots of a run on vision tasks, in the style of `utils.charts`; each function returns a matplotlib Figure.

Stages and epochs are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.charts import CYCLE, INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, HELD_OUT = CYCLE[0], "#C62828"
RIGHT, WRONG, FAINT = "#00785A", "#B23A00", "#777777"
VOID, VOID_GREY = 255, 205
COLOURS = [c for c in (*range(0, 20, 2), *range(1, 20, 2)) if c not in (14, 15)]  # of tab20, without its greys
SIDE, GAP, LINE = 1.5, 0.12, 0.16  # of a column, between two of them, of a line of text: inches
SMALL = 1.0  # side of an image that stands beside words
NAMED = 5  # classes named for an image


def stage_curves(epochs: Sequence[Mapping[str, Any]], tasks: Mapping[str, str], joint: bool = False) -> Figure:
    """A panel per stage: training loss per epoch, and where there is a held-out part its loss and, below, its score; a
    star at the epoch that early stopping went back to.

    Args:
        epochs, tasks: those of a `Run`.
        joint: the only stage is that of all tasks.
    """
    from matplotlib.figure import Figure

    stages = sorted({record["task"] for record in epochs})
    names = ["all tasks at once"] if joint else [f"stage {t + 1}: {list(tasks)[t]}" for t in stages]
    scored = any("held_out_score" in record for record in epochs)
    figure = Figure(figsize=(max(0.6 + 2.9 * len(stages), 4.5), 5.0 if scored else 2.8), layout="constrained")
    panels = figure.subplots(1 + scored, len(stages), squeeze=False, sharex="col")
    for column, axes in enumerate(panels.T):
        records = [record for record in epochs if record["task"] == stages[column]]
        style(axes[0], names[column].capitalize(), "" if scored else "epoch", "" if column else "loss")
        _curve(axes[0], records, "loss", TRAINING, "training")
        _curve(axes[0], records, "held_out_loss", HELD_OUT, "held out")
        if scored:
            metric = list(tasks.values())[stages[column]]
            style(axes[1], "", "epoch", f"held-out {metric} (%)")
            _curve(axes[1], records, "held_out_score", HELD_OUT, "held out")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
    entries = {
        name: handle for axes in panels.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _curve(axes: Axes, records: Sequence[Mapping[str, Any]], what: str, colour: str, label: str) -> None:
    known = [record for record in records if what in record]
    if not known:
        return
    steps, values = zip(*((record["epoch"] + 1, record[what]) for record in known), strict=True)
    axes.plot(steps, values, "o-" if len(steps) < 30 else "-", color=colour, markersize=3, linewidth=1.4, label=label)
    for record in known:
        if record["kept"]:
            axes.axvline(record["epoch"] + 1, color="#999999", linestyle=":", linewidth=1, zorder=0)
            if what != "loss":
                star = {"markeredgecolor": INK, "markeredgewidth": 0.6, "linestyle": "none", "label": "epoch kept"}
                axes.plot(record["epoch"] + 1, record[what], "*", color=CYCLE[5], markersize=11, zorder=4, **star)


def prediction_figures(dataset, pictures: Sequence[tuple[int, list[dict]]]) -> list[tuple[str, str, Figure, bool]]:
    """(file name, what it shows, figure, whether it is wide) for each task.

    Args:
        dataset: a vision stream.
        pictures: those of a `Run`.
    """
    names, figures = [task.name for task in dataset.tasks], []
    for index, task in enumerate(dataset.tasks):
        columns = {}
        for stage, answers in pictures:
            state = "(its own stage)" if stage == index else "(not trained yet)" if stage < index else ""
            title = "after all tasks at once" if dataset.args.joint else f"after {names[stage]}\n{state}"
            again = title.strip() in columns  # the last stage is scored twice where it is followed by a fine-tuning
            columns["after fine-tuning" if again else title.strip()] = answers[index]
        figure = predictions(task, *dataset.shown(index), columns)
        alt = f"predictions on test images of {task.name} after each stage, beside the truth"
        figures.append((f"predictions_{task.name}", alt, figure, True))
    return figures


def predictions(task, images, labels, columns: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A row per image: the truth, then the predictions at each moment; masks and boxes are drawn into the image,
    classes stand beside it in words.

    Args:
        task: the `VisionTask`.
        images: (n, 3, S, S) uint8.
        labels: as a batch has them.
        columns: title -> what `VisionTask.decode` returned.
    """
    from matplotlib.figure import Figure

    images = images.movedim(1, -1).numpy()
    truths = task.truth(labels)
    words = "present" in truths
    side, titles = (SMALL, ["image", "truth", *columns]) if words else (SIDE, ["truth", *columns])
    legend = _classes_shown([truths, *columns.values()])
    per_line = int(len(titles) * (SIDE + GAP) / 1.1)
    top, step, width = 0.78, side + GAP, GAP + len(titles) * (SIDE + GAP)
    height = top + len(images) * step + 0.2 * -(-len(legend) // per_line) + GAP
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))  # in inches, from the top left
    axes.set_axis_off()
    axes.text(GAP, 0.12, task.TITLE.format(task.name), fontsize=11, color=INK, va="top")
    for c, title in enumerate(titles):
        middle = {"fontsize": 9, "color": INK, "va": "bottom", "ha": "center", "linespacing": 1.1}
        axes.text(GAP + c * (SIDE + GAP) + SIDE / 2, top - 0.05, title, **middle)
    for i, image in enumerate(images):
        answers = [{k: v[i].numpy() for k, v in column.items()} for column in (truths, *columns.values())]
        upper = top + i * step
        if words:
            _draw(axes, image, GAP + (SIDE - side) / 2, upper, side)
        for c, one in enumerate(answers, words):
            left = GAP + c * (SIDE + GAP)
            if words:
                lines = _classes_in_words(task, answers[0], one)
                for k, (text, colour) in enumerate(lines):
                    y = upper + side / 2 + (k - (len(lines) - 1) / 2) * LINE
                    axes.text(left + SIDE / 2, y, text, fontsize=8.5, color=colour, va="center", ha="center")
            elif "boxes" in one:
                _draw(axes, image, left, upper, side)
                _draw_boxes(axes, one, left, upper, side / len(image))
            else:
                _draw(axes, _masked(image, one["mask"]), left, upper, side)
    for k, c in enumerate(legend):
        x, y = GAP + 1.1 * (k % per_line), top + len(images) * step + 0.2 * (k // per_line)
        colour = [VOID_GREY / 255] * 3 if c == VOID else _colour(c)
        axes.fill_between((x, x + 0.13), y, y + 0.13, color=colour, linewidth=0)
        axes.text(x + 0.18, y + 0.065, "void" if c == VOID else task.class_name(c), fontsize=8, color=INK, va="center")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return figure


def _draw(axes: Axes, image: np.ndarray, left: float, upper: float, side: float) -> None:
    axes.imshow(image, extent=(left, left + side, upper + side, upper), interpolation="nearest", zorder=1)


def _colour(c: int) -> tuple[float, ...]:
    """RGB of a class; no two of the first eighteen are alike, and none is grey as what is void."""
    from matplotlib import colormaps

    return colormaps["tab20"].colors[COLOURS[c % len(COLOURS)]]


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image in grey with the classes of the mask in their colours; the background, 0, is left as it is."""
    out = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    for c in np.unique(mask):
        if c != 0:
            colour = np.full(3, VOID_GREY) if c == VOID else 255 * np.array(_colour(int(c)))
            out[mask == c] = 0.35 * out[mask == c] + 0.65 * colour
    return out.round().astype(np.uint8)


def _draw_boxes(axes: Axes, found: Mapping[str, np.ndarray], left: float, upper: float, scale: float) -> None:
    """Boxes in the colour of their class with their score, crowds dashed; no box that is padding."""
    from matplotlib.patches import Rectangle

    for i in np.flatnonzero(found["classes"] >= 0):
        x, y, right, lower = scale * found["boxes"][i].clip(0, SIDE / scale)
        colour = _colour(int(found["classes"][i]))
        dashed = "crowd" in found and found["crowd"][i]
        look = {"linewidth": 1.4, "linestyle": "--" if dashed else "-", "fill": False, "zorder": 2}
        axes.add_patch(Rectangle((left + x, upper + y), right - x, lower - y, edgecolor=colour, **look))
        if "scores" in found:
            box = {"facecolor": colour, "edgecolor": "none", "pad": 0.4}
            score = _short(found["scores"][i])
            va = "bottom" if y > LINE else "top"
            axes.text(left + x, upper + y, score, fontsize=6, color="w", va=va, bbox=box, zorder=3)


def _classes_in_words(task, truth: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Lines and their colours: the classes of an image, or as many of those with the best scores, at least one; right
    or wrong.
    """
    there = np.flatnonzero(truth["present"])
    if answer is truth:
        lines = [(task.class_names[c], INK) for c in there] or [("nothing", INK)]
    else:
        best = np.argsort(-answer["scores"], kind="stable")[: max(len(there), 1)]
        colours = [FAINT if not len(there) else RIGHT if c in there else WRONG for c in best]
        texts = [f"{task.class_names[c]} {_short(answer['scores'][c])}" for c in best]
        lines = list(zip(texts, colours, strict=True))
    if len(lines) > NAMED:
        lines = [*lines[: NAMED - 1], (f"and {len(lines) - NAMED + 1} more", FAINT)]
    return lines


def _classes_shown(columns: Sequence[Mapping[str, Any]]) -> list[int]:
    """The classes that the legend must name, 255 among them where some pixels are void."""
    key, none = ("mask", 0) if "mask" in columns[0] else ("classes", -1)
    return sorted({c for column in columns if key in column for c in column[key].unique().tolist()} - {none})


def _short(share: float) -> str:
    """A number in [0, 1] in two digits."""
    return f"{share:.2f}".lstrip("0") if share < 0.995 else "1.0"
