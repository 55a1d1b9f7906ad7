"""Episodic memory by task: an equal share of a buffer for every past task."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from palimpsest.models.utils.fisher import rank_one_gradients
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.errors import UserError


class EpisodicMemory(Rehearsal):
    """A method whose buffer holds an equal share of every past task, task after task, each the first rows of the task's
    own shuffled order; the current task's are not kept.

    Attributes:
        sizes: rows of each past task, in order.
    """

    BUFFER_SHARES = "tasks"

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sizes: list[int] = []

    def end_task(self, dataset):
        self.add_task(dataset.train_loader)

    def add_task(self, train_loader, logits: Callable[[Tensor], Tensor] | None = None) -> None:
        """Give the finished task its share of the buffer; the tasks before are trimmed to theirs.

        Args:
            train_loader: of the finished task.
            logits: raw images -> logits to be stored with them.

        Raises:
            UserError: more tasks than rows.
        """
        buffer, sizes = self.buffer, self.sizes
        share = buffer.buffer_size // (len(sizes) + 1)
        if not share:
            raise UserError(f"--buffer_size {buffer.buffer_size} leaves no example for each of {len(sizes) + 1} tasks")
        kept, size = [min(n, share) for n in sizes], 0
        fields = [field.split(sizes) for field in buffer.get_all_data()] if sizes else []
        rows = [[part[:n].clone() for part in task] for task, n in zip(zip(*fields, strict=True), kept, strict=True)]
        for _, labels, raw in train_loader:
            raw, labels = raw[: share - size], labels[: share - size]
            rows.append([raw, labels, *([logits(raw)] if logits else [])])
            size += len(raw)
            if size == share:
                break
        buffer.empty()
        for row in rows:
            buffer.add_data(*row)
        self.sizes = [*kept, size]


def gradient_at(model: Rehearsal, inputs: Tensor, labels: Tensor) -> Tensor:
    """Gradient (P,) of the method's loss on a batch; BatchNorm in the mode it is in."""
    model.backward_on(inputs, labels)
    return model.net.get_grads()


def gradients_at(model: Rehearsal, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Gradients (t, P) of the method's loss on each of t batches.

    A fully connected network takes equal batches in one pass, where the gradient of a weight is sum_n d_n a_n^T over
    the rows of a batch. Any other goes from one to the next: BatchNorm has them see one another, and the gradients of
    convolutions are no cheaper together.
    """
    net, sizes = model.net, [len(y) for y in labels]
    if len(sizes) == 1 or len({*sizes}) > 1 or net.plain_layers is None:
        return torch.stack([gradient_at(model, x, y) for x, y in zip(inputs, labels, strict=True)])

    def total(outputs: Tensor) -> Tensor:
        return sum(model.loss(out, y) for out, y in zip(outputs.split(sizes), labels, strict=True))

    pairs = rank_one_gradients(net, total, torch.cat([*inputs]), map(net.get_submodule, net.plain_layers))
    parts = []
    for d, a in pairs.values():
        d, a = d.unflatten(0, (len(sizes), -1)), a.unflatten(0, (len(sizes), -1))
        parts += [(d.mT @ a).flatten(1), d.sum(1)]
    return torch.cat(parts, dim=1)
