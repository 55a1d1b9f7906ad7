"""Where the constants come from by which a stream normalises its images: a table, the first task, or all of them."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from palimpsest.utils.leaks.kinds import STATISTICS
from palimpsest.utils.leaks.memory import Known
from palimpsest.utils.leaks.reads import TRAINED

CLOSE = 2e-3  # of values in [0, 1]
TABLES = [((0.0,), (1.0,)), ((0.5,), (0.5,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


def foreign_statistics(dataset: Any, known: Known) -> dict[str, list[str]]:
    """{STATISTICS: what is wrong}, empty where nothing is: the constants are the stream class's MEAN and STD, those of
    an option, or measured on the first task's training images.
    """
    low, width = known.ends()
    if not low.isfinite().all() or (width < 1e-6).any():
        return {}  # no scaling by constants: of each image by itself, say
    std = 1 / width.flatten(1)[:, 0]
    mean = -low.flatten(1)[:, 0] * std
    own = getattr(type(dataset), "MEAN", None), getattr(type(dataset), "STD", None)
    tables = [own] if None not in own else []
    if any(close(mean, m) and close(std, s) for m, s in [*tables, *TABLES] if len(m) in (1, len(mean))):
        return {}
    first = next(islice(known.parts[TRAINED](), 1), None)
    if first is None:
        return {}
    pixels = first.transpose(0, 1).flatten(1).float() / 255
    if close(mean, pixels.mean(1).cpu()) and close(std, pixels.std(1).cpu()):
        return {}
    told = ", ".join(f"{value:.4f}" for value in mean.tolist())
    return {STATISTICS: [f"the mean {told} is of no table and not of the first task: it knows later images"]}


def close(values: Tensor, others: Any) -> bool:
    """Whether statistics of each channel agree; one value stands for all channels."""
    return bool((values - torch.as_tensor(others, dtype=values.dtype)).abs().amax() < CLOSE)
