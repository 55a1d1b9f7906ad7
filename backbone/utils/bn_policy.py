"""What becomes of BatchNorm when a shared trunk learns one task after another.

A penalty on weights does not hold running statistics: they follow the images of the newest task, and the old branches
read features that are normalised otherwise than those they were trained on.
"""

from copy import deepcopy
from math import gcd

import torch
from torch import Tensor, nn

POLICIES = ("shared", "freeze_after_first", "per_task", "groupnorm")
GROUPS = 8  # of GroupNorm at most; fewer where the channels cannot be divided


class TaskBatchNorm2d(nn.Module):
    """A BatchNorm2d, statistics and scale and shift, for each task; `active` names the one in use.

    Args:
        norm: what each of them is a copy of.
        tasks: their names.
    """

    def __init__(self, norm: nn.BatchNorm2d, tasks: list[str]):
        super().__init__()
        self.norms = nn.ModuleDict({task: deepcopy(norm) for task in tasks})
        self.active = tasks[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.active](x)


class StoppableBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that, once `stopped`, normalises with the statistics it has and no longer moves them; its scale
    and shift go on learning.
    """

    stopped = False

    def train(self, mode: bool = True) -> "StoppableBatchNorm2d":
        return super().train(mode and not self.stopped)


def apply_policy(trunk: nn.Module, policy: str, tasks: list[str]) -> None:
    """Replace the BatchNorm layers of a trunk by what the policy of `POLICIES` says, weights and statistics kept."""
    for name, part in list(trunk.named_children()):
        if isinstance(part, TaskBatchNorm2d):
            part = part.norms[part.active]
        if isinstance(part, nn.BatchNorm2d):
            setattr(trunk, name, _replaced(part, policy, tasks))
        else:
            apply_policy(part, policy, tasks)


def _replaced(norm: nn.BatchNorm2d, policy: str, tasks: list[str]) -> nn.Module:
    if policy == "shared":
        return norm
    if policy == "per_task":
        return TaskBatchNorm2d(norm, tasks)
    if policy == "groupnorm":
        new = nn.GroupNorm(gcd(norm.num_features, GROUPS), norm.num_features)
    else:
        new = StoppableBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    new.load_state_dict(norm.state_dict(), strict=False)  # a GroupNorm has no statistics
    return new.to(norm.weight.device)


def use_task(trunk: nn.Module, task: str) -> None:
    """From now on normalise as for `task`; nothing to do but under 'per_task'."""
    for part in trunk.modules():
        if isinstance(part, TaskBatchNorm2d):
            part.active = task


@torch.no_grad()
def begin_task(trunk: nn.Module, task: str, previous: str) -> None:
    """Enter training on `task` after `previous`: statistics stop, or those of the task begin as the others are."""
    for part in trunk.modules():
        if isinstance(part, StoppableBatchNorm2d):
            part.stopped = True
            part.eval()
        elif isinstance(part, TaskBatchNorm2d):
            part.norms[task].load_state_dict(part.norms[previous].state_dict())
