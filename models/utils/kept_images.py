"""Images that a method keeps of each task of a vision stream: which, and as what."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import default_collate

from palimpsest.datasets.utils.streaming import moved


def raw_images(part, rows: Iterable[int], device: torch.device) -> tuple[Tensor, Tensor | dict]:
    """Raw images (n, 3, H, W) uint8 and labels of examples of a task, without augmentation.

    Args:
        part: what a loader of the task shows as its `dataset`.
        rows: which of them.
    """
    raw, labels = default_collate([(raw, label) for _, label, raw in map(part.__getitem__, rows)])
    return raw.to(device), moved(labels, device)


def select_exemplars(shown: Tensor, n: int) -> list[int]:
    """Up to `n` rows of `shown` (N, C) bool, one by one that whose classes the chosen ones show least."""
    shown, counts, chosen = shown.double().cpu(), torch.zeros(shown.shape[1], dtype=torch.float64), []
    for _ in range(min(n, len(shown))):
        gain = (shown / (1 + counts)).sum(1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        counts += shown[chosen[-1]]
    return chosen
