"""Floating-point operations, counted while they run, by the formulas of `torch.utils.flop_counter`.

A product of (m, k) and (k, n) is 2 m k n operations; convolutions and attention are counted, what goes element by
element (activations, normalisation, the optimiser's update) is not. To count changes no result, and tiny operations
take two to three times as long meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from palimpsest.datasets.utils.loaders import TaskData

MEASURED = 3  # rounds of a loop that are counted; the later ones are taken to be like the last of them


PRODUCTS = {torch.prod, Tensor.prod, torch.cumprod, Tensor.cumprod}


class _Unwatched(torch.autograd.Function):
    """A function whose gradient is taken as if no mode were on."""

    @staticmethod
    def forward(ctx, function: Callable, x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        (x,), again = ctx.saved_tensors, torch.is_grad_enabled()  # on where a gradient of the gradient is wanted
        with _disable_current_modes(), torch.enable_grad():
            x = x if again else x.detach().requires_grad_()
            return None, torch.autograd.grad(ctx.function(x), x, grad, create_graph=again)[0]


class _UsualGradients(TorchFunctionMode):
    """torch takes the gradient of a product over a dimension by another formula, with other last bits, where a mode
    such as a counter is on. Here by the usual one.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in PRODUCTS and torch.is_grad_enabled() and args and args[0].requires_grad and "out" not in kwargs:
            return _Unwatched.apply(lambda x: func(x, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)


class FlopCounter(TorchDispatchMode):
    """Counts what runs inside the block. torch's own `FlopCounterMode` counts the same and finds out besides in which
    module it was, which takes far longer.

    Attributes:
        total: operations so far.
    """

    supports_higher_order_operators = True

    def __init__(self):
        super().__init__()
        self.total, self.formulas, self.depth = 0, {}, 0
        self.gradients = _UsualGradients()

    def __enter__(self) -> "FlopCounter":
        if not self.depth:  # entered again for the parts of an operation
            self.gradients.__enter__()
        self.depth += 1
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.depth -= 1
        if not self.depth:
            self.gradients.__exit__(*args)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes a second, only not to compile what is below

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self.formulas:
            self.formulas[func] = flop_registry.get(getattr(func, "_overloadpacket", None))
        formula = self.formulas[func]
        if formula is None and torch.is_inference_mode_enabled() and hasattr(func, "decompose"):
            with self:  # here what is made of other operations comes as a whole
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += int(_apply(formula, args, kwargs, out))
        return out


def _apply(formula: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
    """A formula of torch's on tensors: most ask for shapes, and a wrapper looks for them in every argument."""
    plain = getattr(formula, "__wrapped__", None)
    if plain is None or not isinstance(out, Tensor):
        return formula(*args, **kwargs, out_val=out)
    shapes = [a.shape if isinstance(a, Tensor) else a for a in args]
    return plain(
        *shapes, **{k: v.shape if isinstance(v, Tensor) else v for k, v in kwargs.items()}, out_shape=out.shape
    )


class _Rounds:
    """The rounds of the loops inside a call: after a few of a kind the counting stops until another kind begins, and
    the rounds are multiplied.
    """

    def __init__(self):
        self.counter, self.on = FlopCounter(), False
        self.more = 0.0  # operations of rounds that were not counted
        self.rounds: dict[str, int] = {}
        self.rate: dict[str, float] = {}
        self.running: tuple[str, int, int] | None = None  # kind and size of this round, the total at its beginning

    def begin(self, kind: str, size: int = 1, last: bool = False) -> None:
        """A round begins, the one before has ended. The last one is counted with all that follows."""
        self.end()
        if last:
            self.running = None
            self.switch(True)
            return
        self.rounds[kind] = self.rounds.get(kind, 0) + 1
        self.switch(self.rounds[kind] <= MEASURED)
        self.running = kind, max(size, 1), self.counter.total

    def end(self) -> None:
        """The round has ended, if there was one."""
        if self.running:
            kind, size, start = self.running
            if self.on:
                self.rate[kind] = (self.counter.total - start) / size
            else:
                self.more += self.rate[kind] * size

    def switch(self, on: bool) -> None:
        if on != self.on:
            self.on = on
            self.counter.__enter__() if on else self.counter.__exit__(None, None, None)


def count_flops(function: Callable, *args: Any, data: Any = None) -> tuple[Any, int]:
    """Call a function that may train or go through data: (what it returns, its operations).

    Long loops are not slowed down: of the rounds that a step of an optimiser ends, and of those that a batch begins,
    the first `MEASURED` are counted, and the others are taken to be like the last of these, by the size of the batch.
    The last batch of a pass is counted with what follows it.

    Args:
        data: the `TaskData` whose batches are meant.
    """
    rounds = _Rounds()
    handle = register_optimizer_step_post_hook(lambda *_: rounds.begin("step"))
    rounds.switch(True)
    try:
        with _batches_told(data, lambda size, last: rounds.begin("batch", size, last)):
            out = function(*args)
    finally:
        handle.remove()
        if rounds.running and rounds.running[0] == "batch":  # a step that was the last one begins nothing
            rounds.end()
        rounds.switch(False)
    return out, rounds.counter.total + round(rounds.more)


@contextmanager
def _batches_told(data: Any, tell: Callable[[int, bool], None]) -> Iterator[None]:
    """Inside, `tell` is called with the size of every batch that is made of `data`, where it is a stream's own, and
    whether it ends a pass.
    """
    if not isinstance(data, TaskData):
        yield
        return
    transform = data.transform

    seen = 0

    def told(raw):
        nonlocal seen
        seen += len(raw)
        tell(len(raw), seen % len(data) == 0)
        return transform(raw)

    data.transform = told
    try:
        yield
    finally:
        data.transform = transform
