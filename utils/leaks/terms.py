"""Finds terms of a loss that reach no weight: constants to the gradient, which a method most likely did not mean."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Not the place that an author wants.
OURS = ("check/sync.py", "leaks/terms.py", "log/leaks.py", "models/utils/continual_model.py")
SUMS = {"add", "sub", "rsub", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "add_", "sub_"}
SUMS |= {"lerp", "addcmul"}
JOINS = {"stack", "cat", "concat", "hstack", "vstack"}
# What may stand between a term and the loss; of the second kind only where the other factor is a constant.
LINEAR = {"Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Stack", "Cat", "View", "UnsafeView", "Select", "Slice", "Expand"}
LINEAR |= {"Unsqueeze", "Squeeze", "Lerp", "Addcmul", "ToCopy", "Clone"}
PRODUCTS = {"Mul", "Div", "Dot", "Mv", "Mm", "T"}


class LooseTerms(TorchFunctionMode):
    """Notes every scalar that is added to others, and whether it reaches a weight once a gradient of the sum is taken.

    Args:
        weights: what is trained.
        pulls: filled with how strongly each term pulls at the weights, None where nobody asks: it takes a backward
            pass for each.

    Attributes:
        found: (value, place in the method's file) of each that reaches none; a value of 0 is a term that there is not
            yet.
    """

    def __init__(self, weights: Iterable[Tensor], pulls: "Pulls | None" = None):
        super().__init__()
        weights = list(weights)
        self.weights, self.pulls = {id(p) for p in weights}, pulls
        self.trained = [*{id(p): p for p in weights if p.requires_grad}.values()]
        self.added: dict = {}  # grad_fn of a sum -> its terms: (grad_fn or leaf, value, tensor), and the place
        self.found: list[tuple[Tensor, str]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ("backward", "grad"):
            losses = args[0] if args else kwargs.get("tensors", kwargs.get("outputs"))
            for loss in [losses] if isinstance(losses, Tensor) else losses or ():
                self._look_below(loss.grad_fn)
        # Noted before the call, since a sum in place changes its first term.
        terms = [(p.grad_fn or p, p.detach().clone(), p) for p in _terms(name, args)]
        out = func(*args, **kwargs)
        if len(terms) > 1 and isinstance(out, Tensor) and out.requires_grad:
            self.added[out.grad_fn] = terms, caller() or "its file"
        return out

    def _look_below(self, root) -> None:
        reaching = self._reaching(root)
        if root not in reaching:
            return  # the gradient of something else than a loss: of images, say
        waiting, seen = [root], set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            terms, place = self.added.get(node, ((), ""))
            for i, (source, value, term) in enumerate(terms):
                if not self._is_weight(source, reaching):
                    self.found.append((value, place))
                elif self.pulls is not None:
                    self.pulls.note(place, i, term, self.trained)
            kind, below = node.name().partition("Backward")[0], _below(node)
            if kind in LINEAR or kind in PRODUCTS and len(below) == 1:
                waiting += below

    def _reaching(self, root) -> set:
        """The nodes from the root down that lead to a weight."""
        above: dict[Any, list] = {}
        waiting, ends = [root], []
        while waiting:
            node = waiting.pop()
            if id(getattr(node, "variable", None)) in self.weights:
                ends.append(node)
            for other in _below(node):
                if other not in above:
                    waiting.append(other)
                above.setdefault(other, []).append(node)
        reaching = set()
        while ends:
            node = ends.pop()
            if node not in reaching:
                reaching.add(node)
                ends += above.get(node, ())
        return reaching

    def _is_weight(self, source, reaching: set) -> bool:
        return id(source) in self.weights if isinstance(source, Tensor) else source in reaching

    def places(self) -> list[str]:
        """Where such terms that are not 0 were added."""
        return [place for value, place in self.found if bool((value != 0).any())]


class Pulls:
    """How strongly each term of the loss has pulled at the weights in a run.

    Attributes:
        found: (place, which of the terms added there) -> the largest |value| and the largest norm of its gradient.
    """

    WEAK = 1e-6  # of the strongest term of the run: what rounding leaves of nothing

    def __init__(self):
        self.failed = False  # a term whose gradient cannot be asked for twice
        self.found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def note(self, place: str, which: int, term: Tensor, weights: list[Tensor]) -> None:
        """Take the gradient of a term."""
        try:
            gradients = torch.autograd.grad(term.sum(), weights, retain_graph=True, allow_unused=True)
        except RuntimeError:
            self.failed = True
            return
        norms = [g.detach().norm().to(term.device) for g in gradients if g is not None]
        value, norm = term.detach().abs().amax(), torch.stack(norms).norm() if norms else term.new_zeros(())
        before = self.found.get((place, which), (value, norm))
        self.found[place, which] = torch.maximum(value, before[0]), torch.maximum(norm, before[1])

    def unbound(self, weak: float = WEAK) -> list[str]:
        """Where terms were added that never moved a weight. Of a term that was exactly 0 all the time nothing is said
        where its gradient was, too: it may have had nothing to do.

        Args:
            weak: share of the strongest term's gradient up to which there is none.
        """
        if self.failed:
            return []
        strongest = max((float(norm) for _, norm in self.found.values()), default=0.0)
        found = {key: float(value) for key, (value, norm) in self.found.items() if float(norm) <= weak * strongest}
        return [place for (place, _), value in found.items() if value]


def trained_by(method: nn.Module) -> Iterator[Tensor]:
    """The network's parameters, and those of every optimiser that the method or a part of it holds."""
    yield from method.net.parameters()
    for part in method.modules():
        for value in vars(part).values():
            if isinstance(value, torch.optim.Optimizer):
                yield from (p for group in value.param_groups for p in group["params"])


def _terms(name: str, args: tuple) -> list[Tensor]:
    """The scalars that are added or joined; a constant beside many numbers is often a density's normaliser."""
    if name in SUMS:
        parts = [part for part in args[:2] if isinstance(part, Tensor)]
        return parts if all(part.dim() == 0 for part in parts) else []
    if name in JOINS and args and all(isinstance(part, Tensor) and part.numel() == 1 for part in args[0]):
        return list(args[0])
    return []


def _below(node) -> list:
    return [other for other, _ in node.next_functions if other is not None] if node is not None else []


def caller() -> str | None:
    """File and line outside torch that made a call, None when it was made inside torch's optimisers."""
    frame = inspect.currentframe().f_back.f_back
    place = None
    while frame:
        path = frame.f_code.co_filename.replace("\\", "/")
        if "/torch/optim/" in path:
            return None
        if place is None and "/torch/" not in path and not path.endswith(OURS):
            place = f"{path.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        if frame.f_code.co_name == "watched":
            return place
        frame = frame.f_back
    return place
