"""Tasks whose classes are any set of outputs: no range, or ranges out of order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.datasets.utils.scores import ClassScore
from palimpsest.datasets.utils.task import ClassTask

Classes = tuple[int, int] | frozenset[int]  # first and one past the last, or a set that is no such range


class SetScore(ClassScore):
    """`ClassScore` among any set of classes, int64 and sorted."""

    def __init__(self, classes: Tensor):
        super().__init__()
        self.classes = classes

    def competing(self, n: int) -> list[int]:
        return self.classes.tolist()

    def answers(self, logits: Tensor) -> Tensor:
        return self.classes[logits[:, self.classes].argmax(1)]


class SetTask(ClassTask):
    """One of a set of classes that is no range, or that comes out of order.

    Args:
        classes: of the task, sorted.
        seen: of the task and of those before it, sorted.
        n: outputs of the network.
        device: of the network.
        criterion: see `ClassTask`; labels are positions among `classes`.
    """

    def __init__(self, classes: list[int], seen: list[int], n: int, device: torch.device, criterion=None):
        super().__init__(0, n, whole=False, criterion=criterion)
        self.classes, self.seen = (torch.tensor(part, device=device) for part in (classes, seen))
        self.table = torch.full((n,), -1, device=device)
        self.table[self.classes] = torch.arange(len(classes), device=device)

    def part(self, outputs: Tensor) -> Tensor:
        return outputs[..., self.classes]

    def position(self, labels: Tensor) -> Tensor:
        return _entries(self.table, labels)

    def class_at(self, position: Tensor) -> Tensor:
        return _entries(self.classes, position)

    def score(self, last: "SetTask | None" = None) -> SetScore:
        return SetScore(torch.cat((self.seen, last.seen)).unique() if last else self.classes)


def _entries(table: Tensor, at: Tensor) -> Tensor:
    """`table[at]`, inside `vmap` and `grad` too, where one number is no index."""
    return table.index_select(0, at.reshape(-1)).view(at.shape)


def labels_in(classes: Classes) -> list[int]:
    """All of them, sorted."""
    return sorted(classes) if isinstance(classes, frozenset) else [*range(*classes)]


def as_classes(labels: set[int]) -> Classes:
    """As a range where they are one."""
    low, high = min(labels), max(labels) + 1
    return (low, high) if len(labels) == high - low else frozenset(labels)


def name_classes(labels: Sequence[int]) -> str:
    """For messages."""
    return f"label{'s' * (len(labels) > 1)} " + ", ".join(map(str, labels[:8])) + ", ..." * (len(labels) > 8)


def in_order(classes: Sequence[Classes]) -> bool:
    """Whether each is a range that begins where the one before ends."""
    labels = [label for part in classes for label in labels_in(part)]
    return labels == [*range(len(labels))]
