"""Parts of a network that must not move, held by value: methods that give each task weights of its own share this."""

import torch
from torch import Tensor, nn


class Held(nn.Module):
    """Remembers which entries of a network's parameters may move, and the values of the others.

    Zero gradients alone would not do: weight decay and the moments of an optimiser move a weight without one.
    """

    def __init__(self):
        super().__init__()
        self.movable: list[Tensor | None] = []  # bool, shaped like the parameter; None where all of it may move
        self.values: list[Tensor | None] = []

    def hold(self, net: nn.Module, movable: dict[str, Tensor]) -> None:
        """From now on hold what `movable` (parameter name -> bool, broadcast to its shape) marks False."""
        self.movable, self.values = [], []
        for name, parameter in net.named_parameters():
            mask = movable[name].expand_as(parameter).contiguous()
            free = bool(mask.all())
            self.movable.append(None if free else mask)
            self.values.append(None if free else parameter.detach().clone())

    def step(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step on the movable entries alone."""
        held = [h for h in zip(net.parameters(), self.movable, self.values, strict=True) if h[1] is not None]
        for parameter, movable, _ in held:
            if parameter.grad is not None:
                parameter.grad.mul_(movable)
        optimizer.step()
        with torch.no_grad():
            for parameter, movable, value in held:
                parameter.copy_(torch.where(movable, parameter, value))


def head_rows(parameter: Tensor, classes: slice | Tensor) -> Tensor:
    """Mask, to be broadcast, of the rows of a classifier's weight or bias that belong to a task's classes, an index."""
    mask = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
    mask[classes] = True
    return mask.view(-1, *[1] * (parameter.dim() - 1))
