"""Plots of a run on vision tasks, in the style of `utils.charts`; each function returns a matplotlib Figure.

Stages and epochs are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.utils.charts import CYCLE, INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, HELD_OUT = CYCLE[0], "#C62828"
RIGHT, WRONG, FAINT = "#00785A", "#B23A00", "#777777"
VOID = 255
COLOURS = [c for c in (*range(0, 20, 2), *range(1, 20, 2)) if c not in (14, 15)]  # of tab20, without its greys
SIDE, ABOVE = 1.6, 0.75  # of an image, above the first row: inches
NAMED = 5  # classes named for an image


def stage_curves(epochs: Sequence[Mapping[str, Any]], tasks: Mapping[str, str], joint: bool = False) -> Figure:
    """A panel per stage: per epoch the loss that the method minimises; where there is a held-out part the task's loss
    on it and on training images, and below the held-out score; a star at the epoch that early stopping went back to.

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
        # Beside a held-out loss the same loss on training images; what the method minimises has terms of its own.
        both = any("training_loss" in record for record in records)
        _curve(axes[0], records, "training_loss" if both else "loss", TRAINING, "training")
        _curve(axes[0], records, "held_out_loss", HELD_OUT, "held out")
        if scored:
            metric = list(tasks.values())[stages[column]]
            style(axes[1], "", "epoch", f"held-out {metric} (%)")
            _curve(axes[1], records, "held_out_score", HELD_OUT, "held out")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
    handles = {name: h for axes in panels.flat for h, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _curve(axes: Axes, records: Sequence[Mapping[str, Any]], what: str, colour: str, label: str) -> None:
    known = [(record["epoch"] + 1, record[what], record["kept"]) for record in records if what in record]
    if known:
        epochs, values, _ = zip(*known, strict=True)
        axes.plot(epochs, values, "o-" if len(epochs) < 30 else "-", color=colour, ms=3, linewidth=1.4, label=label)
    for epoch, value, kept in known:
        if kept:
            axes.axvline(epoch, color="#999999", linestyle=":", linewidth=1, zorder=0)
            if colour == HELD_OUT:
                star = {"color": CYCLE[5], "ms": 11, "mec": INK, "mew": 0.6, "ls": "", "zorder": 4}
                axes.plot(epoch, value, "*", label="epoch kept", **star)


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
    from matplotlib.patches import Patch

    images, columns = images.movedim(1, -1).numpy(), {"truth": task.truth(labels), **columns}
    words = ["image"] if "present" in columns["truth"] else []
    titles, legend = [*words, *columns], _classes_shown([*columns.values()])
    below = 0.2 * -(-len(legend) // len(titles)) + 0.1
    height = ABOVE + SIDE * len(images) + below
    figure = Figure(figsize=(SIDE * len(titles), height))
    figure.suptitle(task.TITLE.format(task.name), x=0.02, y=1 - 0.1 / height, ha="left", fontsize=11, color=INK)
    figure.subplots_adjust(0.01, below / height, 0.99, 1 - ABOVE / height, wspace=0.08, hspace=0.08)
    cells = figure.subplots(len(images), len(titles), squeeze=False)
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, fontsize=9, color=INK)
    for i, (row, image) in enumerate(zip(cells, images, strict=True)):
        answers = [{name: values[i].numpy() for name, values in column.items()} for column in columns.values()]
        if words:
            row[0].imshow(image, interpolation="nearest")
        for cell, answer in zip(row[len(words) :], answers, strict=True):
            if words:
                _write_classes(cell, task, answers[0], answer)
                continue
            cell.imshow(_masked(image, answer["mask"]) if "mask" in answer else image, interpolation="nearest")
            if "boxes" in answer:
                _draw_boxes(cell, answer, len(image))
    for cell in cells.flat:
        cell.set_axis_off()
    names = {c: "void" if c == VOID else task.class_names[c] for c in legend}
    handles = [Patch(color=_colour(c), label=name) for c, name in names.items()]
    look = {"loc": "lower left", "ncols": len(titles), "frameon": False, "fontsize": 8, "handlelength": 1}
    figure.legend(handles=handles, **look)
    return figure


def _colour(c: int) -> tuple[float, ...]:
    """RGB of a class, grey for what is void; no two of the first eighteen classes are alike, and none is grey."""
    from matplotlib import colormaps

    return (0.8, 0.8, 0.8) if c == VOID else colormaps["tab20"].colors[COLOURS[c % len(COLOURS)]]


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image in grey with the classes of the mask in their colours; the background, 0, is left as it is."""
    out = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    for c in set(np.unique(mask).tolist()) - {0}:
        out[mask == c] = 0.35 * out[mask == c] + 0.65 * 255 * np.array(_colour(c))
    return out.round().astype(np.uint8)


def _draw_boxes(cell: Axes, found: Mapping[str, np.ndarray], size: int) -> None:
    """Boxes in the colour of their class with their score, crowds dashed; no box that is padding."""
    from matplotlib.patches import Rectangle

    for i in np.flatnonzero(found["classes"] >= 0):
        left, upper, right, lower = found["boxes"][i].clip(0, size) - 0.5  # pixels have their middles at whole numbers
        colour, dashed = _colour(int(found["classes"][i])), "crowd" in found and found["crowd"][i]
        look = {"linewidth": 1.4, "linestyle": "--" if dashed else "-", "fill": False, "edgecolor": colour}
        cell.add_patch(Rectangle((left, upper), right - left, lower - upper, **look))
        if "scores" in found:
            box = {"facecolor": colour, "edgecolor": "none", "pad": 0.4}
            va = "bottom" if upper > size / 9 else "top"
            cell.text(left, upper, _short(found["scores"][i]), fontsize=6, color="w", va=va, bbox=box)


def _write_classes(cell: Axes, task, truth: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray]) -> None:
    """The classes of an image, or as many of those with the best scores, at least one, line by line; right or wrong."""
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
    for k, (text, colour) in enumerate(lines):
        y = 0.5 - 0.11 * (k - (len(lines) - 1) / 2)
        cell.text(0.5, y, text, fontsize=8.5, color=colour, va="center", ha="center", transform=cell.transAxes)


def _classes_shown(columns: Sequence[Mapping[str, Any]]) -> list[int]:
    """The classes that the legend must name, 255 among them where some pixels are void."""
    key, none = ("mask", 0) if "mask" in columns[0] else ("classes", -1)
    return sorted({c for column in columns if key in column for c in column[key].unique().tolist()} - {none})


def _short(share: float) -> str:
    """A number in [0, 1] in two digits."""
    return f"{share:.2f}".lstrip("0") if share < 0.995 else "1.0"
