"""The reservoirs of a stream: one for all examples that can stand in one batch, or one for each task."""

import torch
from torch import Tensor, nn

from datasets.utils.task import Task
from utils.buffer import Buffer

Labels = Tensor | dict[str, Tensor]


class Reservoirs(nn.ModuleList):
    """A reservoir for each pool of a stream, see `TaskStream.pools`: labels of unlike tasks have different shapes.

    Args:
        size: examples kept in all; each pool has an equal share, at least one.
        stream: the stream.
        device: where they are kept.
    """

    def __init__(self, size: int, stream, device: torch.device | str = "cpu"):
        n = len(stream.pools(stream.N_TASKS))
        super().__init__(Buffer(max(size // n, 1), device) for _ in range(n))
        self.mixed = stream.MIXED

    def add(self, pools: list[Task], raw: Tensor, labels: Labels) -> None:
        """Offer raw inputs (B, ...) of the last of `pools`, with their labels."""
        fields = labels if isinstance(labels, dict) else {"labels": labels}
        self[len(pools) - 1].add_data(examples=raw, **fields)

    def join(
        self, pools: list[Task], inputs: Tensor, labels: Labels, size: int, transform
    ) -> list[tuple[Task, Tensor, Labels]]:
        """The batch of the last of `pools`, joined by `size` old examples of its own where they can stand in it; and a
        batch of up to `size` old examples of each pool before.
        """
        own = self[len(pools) - 1]
        if self.mixed and not own.is_empty():
            x, y = _draw(own, size, transform)
            inputs, labels = torch.cat((inputs, x)), torch.cat((labels, y))
        old = [(task, part) for task, part in zip(pools[:-1], self, strict=False) if not part.is_empty()]
        return [(pools[-1], inputs, labels), *((task, *_draw(part, size, transform)) for task, part in old)]


def _draw(buffer: Buffer, size: int, transform) -> tuple[Tensor, Labels]:
    inputs, *rest = buffer.get_data(size, transform=transform)
    names = buffer.fields[1:]
    return inputs, rest[0] if names == ["labels"] else dict(zip(names, rest, strict=True))
