"""A frozen copy of a network that a method keeps as its teacher, and that may not exist yet."""

from copy import deepcopy

from torch import nn

from palimpsest.models.utils.continual_model import ContinualModel


class Snapshot(nn.Module):
    """Holds nothing, or a frozen copy of a module as it was when `take` was called.

    Register it in `__init__`; call `take(net)` in a hook. It is a part of checkpoints. The copy follows
    `train()`/`eval()` (a `Teacher` stays in eval mode) but never learns: no gradients, and BatchNorm normalises with
    the batch's statistics in train mode without touching its running ones.
    """

    def __init__(self):
        super().__init__()
        self.copy: nn.Module | None = None

    def __bool__(self) -> bool:
        return self.copy is not None

    def take(self, module: nn.Module) -> None:
        """Replace the copy by a fresh one of `module`."""
        self.copy = deepcopy(module).requires_grad_(False)
        for parameter in self.copy.parameters():
            parameter.grad = None
        for part in self.copy.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.track_running_stats = False
        self.copy.train(self.training)

    def forward(self, *args, **kwargs):
        return self.copy(*args, **kwargs)


class Teacher(Snapshot):
    """A snapshot that always answers in eval mode: BatchNorm by its running statistics, no dropout. What it says of an
    image does not depend on the rest of the batch, as in the references of the methods that distil from it.
    """

    def __init__(self):
        super().__init__()
        self.eval()

    def train(self, mode: bool = True):
        return super().train(False)


class Distillation(ContinualModel):
    """A method with a `teacher`: the network as it was when the task began; there is none in the first task."""

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.teacher = Teacher()

    def begin_task(self, dataset):
        if self.current_task > 0:
            self.teacher.take(self.net)
