"""A class-incremental stream of 100 small tasks: noise around two centres a task, 8x8 pixels."""

from pathlib import Path

import numpy as np
import torch

from palimpsest.datasets.utils.sources import RawData, Source
from palimpsest.datasets.utils.streams import ClassIncremental

TASKS, PER_CLASS, TESTED = 100, 50, 5


def read(name: str, base: Path) -> RawData:
    """200 classes: a centre each, and noise of a fixed seed."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 255, (2 * TASKS, 1, 1, 8, 8))

    def split(n: int):
        images = (0.6 * centres + 0.4 * rng.uniform(0, 255, (2 * TASKS, n, 1, 8, 8))).astype(np.uint8)
        labels = np.repeat(np.arange(2 * TASKS), n)
        return torch.from_numpy(images.reshape(-1, 1, 8, 8)), torch.from_numpy(labels)

    return RawData(*split(PER_CLASS), *split(TESTED))


class ManyTasks(ClassIncremental):
    NAME = "many-tasks"
    SOURCE = Source("many-tasks", read, "made by benchmarks/many_tasks.py", (1, 8, 8), 2 * TASKS)
    N_TASKS = TASKS
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.03, "n_epochs": 1, "batch_size": 10, "num_threads": 1}
