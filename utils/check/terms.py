"""Finds terms of a loss that reach no weight: constants to the gradient, which a method most likely did not mean."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from palimpsest.utils.check.sync import caller

SUMS = {"add", "sub", "rsub", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "add_", "sub_"}
KEEPING = ("Add", "Sub", "Mul", "Div", "Neg", "Rsub")  # what may stand between a term and the loss


class LooseTerms(TorchFunctionMode):
    """Notes every tensor without a gradient that is added to a scalar on which `backward` is called afterwards.

    Attributes:
        found: (value, place in the method's file) of each; a value of 0 is a term that there is not yet.
    """

    def __init__(self):
        super().__init__()
        self.added: dict = {}  # grad_fn of a sum -> what was added without a gradient
        self.found: list[tuple[Tensor, str]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "backward":
            self._look_below(args[0].grad_fn)
        out = func(*args, **(kwargs or {}))
        if name in SUMS and isinstance(out, Tensor) and out.dim() == 0 and out.requires_grad:
            pair = [part for part in args[:2] if isinstance(part, Tensor)]
            loose = [part for part in pair if not part.requires_grad]
            if len(pair) == 2 and loose:
                self.added[out.grad_fn] = loose[0].detach().clone(), caller() or "its file"
        return out

    def _look_below(self, node) -> None:
        waiting, seen = [node], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self.added:
                self.found.append(self.added[node])
            if node.name().startswith(KEEPING):
                waiting += [below for below, _ in node.next_functions]

    def places(self) -> list[str]:
        """Where such terms that are not 0 were added."""
        return [place for value, place in self.found if bool((torch.as_tensor(value) != 0).any())]
