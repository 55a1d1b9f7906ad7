"""SGD, Adam and AdamW of torch.optim without their calls to the compiler and the profiler of torch.

torch.optim tells the compiler at each step and at each `zero_grad` where it must not look, and the profiler where it
is. The first of these calls imports the compiler, about 1.2 s of CPU time, the others take some 30 microseconds a step.
Nothing here compiles an optimiser; the arithmetic is that of torch.optim, bit for bit, and every other attribute, too.
"""

import inspect
from collections.abc import Callable
from functools import wraps

import torch
from torch.optim import Optimizer, optimizer


def _eager(step: Callable) -> Callable:
    """A step as its author wrote it; gradients are recorded in it only with `differentiable`, as torch.optim does."""
    written = inspect.unwrap(step)

    def bare(self, closure=None):
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return written(self, closure)

    with_hooks = Optimizer.profile_hook_step(bare)

    @wraps(written)
    def eager(self, closure=None):
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        shared = optimizer._global_optimizer_pre_hooks or optimizer._global_optimizer_post_hooks
        return (with_hooks if own or shared else bare)(self, closure)

    eager.hooked = True  # or torch.optim would wrap it
    return eager


class Eager:
    """The part that all optimisers share; it stands before the class of torch.optim."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return inspect.unwrap(Optimizer.zero_grad)(self, set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


class SGD(Eager, torch.optim.SGD):
    """`torch.optim.SGD`."""

    step = _eager(torch.optim.SGD.step)


class Adam(Eager, torch.optim.Adam):
    """`torch.optim.Adam`."""

    step = _eager(torch.optim.Adam.step)


class AdamW(Eager, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = _eager(torch.optim.AdamW.step)
