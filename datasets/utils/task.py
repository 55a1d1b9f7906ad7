"""What a task is: its loss, its score, and what its outputs mean. Nobody else asks what kind of task it is.

A new kind of task is a subclass of `Task` and a stream that has it as its `TASK`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.datasets.utils.scores import IGNORED, ClassScore, RegressionScore, TokenLoss, TokenScore
from palimpsest.utils.distillation import kd


class Task:
    """One task of a stream. `outputs` are the task's part of what the network says, see `Backbone.outputs`.

    Class attributes:
        NAME: what its answers are, for messages.
        METRIC: the first number of its score, that of R.
        NOTE: what a reader of that number must know.
        FISHERS: kinds of Fisher information that are defined, see `models.utils.fisher.fisher_diagonal`.

    Attributes:
        name: for tables and pictures; empty where the tasks are only numbered.
        branch: the branch of the network that answers, None where the network has one answer for all tasks.
        columns: (first, one past the last) of the outputs that are its part, None where that is all or no range.
    """

    NAME = "any"
    METRIC: str
    NOTE = ""
    FISHERS: tuple[str, ...] = ("mc", "empirical")
    name = ""
    branch: str | None = None
    columns: tuple[int, int] | None = None

    def part(self, outputs: Tensor) -> Tensor:
        """This task's part of all that the network says."""
        return outputs

    def loss(self, outputs: Tensor, labels: Any) -> Tensor:
        """What is trained, 0-d, mean over the batch."""
        raise NotImplementedError

    def score(self, last: "Task | None" = None) -> Any:
        """A fresh running score of what `ContinualModel.predict` returns, as in `datasets.utils.scores`.

        Args:
            last: in class-IL the latest task trained: the outputs of all tasks up to it compete.
        """
        raise NotImplementedError

    def distance(self, outputs: Tensor, taught: Tensor, tau: float, direction: str = "teacher") -> Tensor:
        """How far outputs are from those of a teacher, 0-d, mean over the batch: for distillation.

        Args:
            tau: temperature, where the outputs are logits.
            direction: 'teacher' for KL(teacher || student), or 'student'.
        """
        raise NotImplementedError

    def sample(self, outputs: Tensor, labels: Any) -> Tensor:
        """Labels (B, ...) drawn from p(y | x), not scored where `labels` are not: for the Fisher information."""
        raise NotImplementedError

    def log_likelihood(self, output: Tensor, label: Tensor) -> Tensor:
        """log p(y | x) of one example, 0-d, summed over its outputs."""
        raise NotImplementedError

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """What outputs for a few images mean, on the host, in the form that `datasets.utils.vision.plots` draws. Asked
        only of streams that show images.
        """
        raise NotImplementedError


class ClassTask(Task):
    """One of the classes low..high-1 for each example: logits (B, C), labels (B,) that count over the whole stream.

    Args:
        low, high: first class, and one past the last.
        whole: these are all outputs of the network.
        criterion: (logits, labels counted from `low`) -> scalar; by default cross-entropy.
    """

    NAME, METRIC = "classification", "accuracy"
    FISHERS = ("mc", "exact", "empirical", "weighted")
    LOSS: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.cross_entropy)
    SCORE: type = ClassScore

    def __init__(self, low: int = 0, high: int | None = None, whole: bool = True, criterion: Callable | None = None):
        self.low, self.high, self.whole, self.criterion = low, high, whole, criterion or self.LOSS

    @property
    def columns(self) -> tuple[int, int] | None:
        ranged = not self.whole and type(self).part is ClassTask.part
        return (self.low, self.high) if ranged else None

    def part(self, outputs: Tensor) -> Tensor:
        return outputs if self.whole else outputs[..., self.low : self.high]

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(outputs, self.position(labels))

    def position(self, labels: Tensor) -> Tensor:
        """Where the classes stand in `part`."""
        return labels - self.low if self.low else labels

    def class_at(self, position: Tensor) -> Tensor:
        """The classes that stand there."""
        return position + self.low

    def score(self, last: "ClassTask | None" = None) -> ClassScore | TokenScore:
        return self.SCORE(0, max(self.high, last.high)) if last else self.SCORE(self.low, self.high)

    def distance(self, outputs: Tensor, taught: Tensor, tau: float, direction: str = "teacher") -> Tensor:
        """tau^2 * KL between the softened distributions."""
        return kd(outputs, taught, tau, direction).mean()

    def sample(self, outputs: Tensor, labels: Tensor) -> Tensor:
        p = torch.softmax(outputs, dim=-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1).view(labels.shape)
        return torch.where(labels == IGNORED, labels, self.class_at(drawn))

    def log_likelihood(self, output: Tensor, label: Tensor) -> Tensor:
        label = torch.where(label == IGNORED, label, self.position(label))
        return -F.cross_entropy(output.reshape(-1, output.shape[-1]), label.reshape(-1), reduction="sum")


def sum_of_distances(
    tasks: Sequence[Task], outputs: Sequence[Tensor], taught: Sequence[Tensor], tau: float, direction: str = "teacher"
) -> Tensor:
    """sum_t task.distance(outputs_t, taught_t, tau, direction), 0-d; one call for all classifiers of one width."""
    groups: dict[Any, list[tuple]] = defaultdict(list)
    for t, (task, f, f_old) in enumerate(zip(tasks, outputs, taught, strict=True)):
        alike = f.shape if type(task).distance is ClassTask.distance else t
        groups[alike].append((task, f, f_old))
    total = []
    for group in groups.values():
        of, f, f_old = zip(*group, strict=True)
        if len(group) == 1:
            total.append(of[0].distance(f[0], f_old[0], tau, direction))
        else:
            total.append(kd(torch.stack(f), torch.stack(f_old), tau, direction).flatten(1).mean(1).sum())
    return sum(total)


class TokenTask(ClassTask):
    """The next token at each position: logits (B, L, C), labels (B, L), -100 where none is scored."""

    NAME, FISHERS = "language", Task.FISHERS
    LOSS = TokenLoss(F.cross_entropy)
    SCORE = TokenScore


class RegressionTask(Task):
    """Numbers: outputs and labels (B, K) float; the likelihood is Gaussian with deviation 1."""

    NAME, METRIC = "regression", "r2"
    NOTE = (
        "R^2 in percent wherever scores are called accuracy: 100 is perfect, below 0 is worse than the mean of the "
        "task's targets"
    )
    LOSS = staticmethod(F.mse_loss)

    def __init__(self, low: int = 0, high: int | None = None, whole: bool = True, criterion: Callable | None = None):
        self.criterion = criterion or self.LOSS

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(outputs, labels)

    def score(self, last: Task | None = None) -> RegressionScore:
        return RegressionScore()

    def distance(self, outputs: Tensor, taught: Tensor, tau: float, direction: str = "teacher") -> Tensor:
        """Mean squared difference; there is nothing to be softened, and it has no direction."""
        return F.mse_loss(outputs, taught)

    def sample(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs + torch.randn_like(outputs)

    def log_likelihood(self, output: Tensor, label: Tensor) -> Tensor:
        """Up to a constant."""
        return -(output - label).square().sum() / 2


class TaskStream:
    """The tasks of a stream as methods and the evaluation see them.

    A stream has SETTING, N_CLASSES, `get_loss`, `get_offsets` and `train_loader`, and calls `_set_tasks`.

    Class attributes:
        TASK: class of its tasks, or the base class of those that there are.
        MIXED: examples of different tasks can stand in one batch.

    Attributes:
        tasks: those that are scored, in stream order.
    """

    TASK: type[Task] = ClassTask
    MIXED = True
    tasks: list[Task]

    def make_task(self, classes: tuple[int, int], criterion: Callable | None = None) -> Task:
        """A task over classes (first, one past the last), trained by `criterion`; the kind's own loss by default."""
        return self.TASK(*classes, whole=classes == (0, self.N_CLASSES), criterion=criterion)

    def _set_tasks(self, scored: list[tuple[int, int]], trained: list[tuple[int, int]], multi_head: bool) -> None:
        """Make the tasks from the classes of those that are scored and of those that are trained one after another."""
        loss = self.get_loss()
        own = None if multi_head else loss  # a head's own softmax is no matter of the examples' labels
        self.tasks = [self.make_task(classes) for classes in scored]
        self._heads = [self.make_task(classes, own) for classes in dict.fromkeys(trained)]
        self._pool = [self.make_task((0, self.N_CLASSES), loss)]

    def heads(self, n: int) -> list[Task]:
        """The tasks that are trained in the first n stages, each with outputs of its own: those that share their
        outputs are one.
        """
        return self._heads[:n]

    def pools(self, n: int) -> list[Task]:
        """The same with all that can stand in one batch as one task, over all outputs and with the stream's loss."""
        return self._pool if self.MIXED else self.heads(n)

    def class_index(self, task: int) -> slice | Tensor:
        """What a task's classes are among all outputs, as an index."""
        return slice(*self.get_offsets(task))

    def positions(self, labels: Tensor, task: int) -> Tensor:
        """Labels of a task as positions among its own classes."""
        return labels - self.get_offsets(task)[0]

    def examples(self, n: int | None = None) -> Iterator[tuple[Tensor, Any]]:
        """(inputs, labels) of the batches that hold the first `n` training examples of the current task, all by
        default.
        """
        loader = self.train_loader
        batches = ((x, y) for x, y, _ in loader)
        return batches if n is None else islice(batches, max(1, -(-n // loader.batch_size)))

    def shape_network(self, net) -> None:
        """Give a fresh network what the tasks need besides its outputs, such as branches.

        Raises:
            UserError: it cannot have them.
        """

    def begin_stage(self, net, stage: int) -> None:
        """Called with the method's network before a stage of training."""

    def begin_batch(self, net) -> None:
        """Called with the method's network before each step: the batch may be of another task than the last one."""

    def shown(self, task: int) -> tuple[Tensor, Any] | None:
        """Raw images (n, C, H, W) and labels of the test examples that pictures of a task show, None without any."""
        return None
