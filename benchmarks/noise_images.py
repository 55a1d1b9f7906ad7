"""Five tasks of two classes of noise, 32x32 pixels in three colours: a stream that needs no files, for speed alone."""

from pathlib import Path

import torch

from palimpsest.datasets.utils.sources import RawData, Source
from palimpsest.datasets.utils.streams import ClassIncremental

CLASSES, PER_CLASS, TESTED = 10, 1000, 20


def read(name: str, base: Path) -> RawData:
    """Images (N, 3, 32, 32) of a fixed seed, and labels."""
    rng = torch.Generator().manual_seed(0)

    def split(n: int):
        images = torch.randint(0, 256, (CLASSES * n, 3, 32, 32), dtype=torch.uint8, generator=rng)
        return images, torch.arange(CLASSES).repeat_interleave(n)

    return RawData(*split(PER_CLASS), *split(TESTED))


class NoiseImages(ClassIncremental):
    NAME = "noise-images"
    SOURCE = Source("noise-images", read, "made by benchmarks/noise_images.py", (3, 32, 32), CLASSES)
    N_TASKS = 5
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.03, "n_epochs": 1, "batch_size": 10, "num_threads": 1}
