"""A stream whose tasks are handed over one by one as loaders, with no number of them known in advance."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.utils.continual_dataset import MultiHeadLoss
from datasets.utils.task import ClassTask, TaskStream, TokenTask
from utils.errors import UserError
from utils.randomness import preserve_rng


class GivenLoader:
    """Batches of anybody's loader on the training device, as methods expect them.

    Args:
        loader: iterable of (inputs, labels) batches.
        device: where they are wanted.
        join: (inputs, labels) -> the same with more examples, for the batches that are trained on.
    """

    dataset: Sequence | None = None

    def __init__(self, loader: Iterable, device: torch.device, join: Callable | None = None):
        self.loader, self.device, self.join = loader, device, join
        self.batch_size = getattr(loader, "batch_size", None) or 1

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.loader:
            if not isinstance(batch, list | tuple) or len(batch) < 2:
                raise UserError(f"the loader gives {type(batch).__name__}: expected batches of (inputs, labels)")
            inputs, labels = (part.to(self.device, non_blocking=True) for part in batch[:2])
            yield inputs, labels, inputs

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A pass of training; its order is the loader's affair."""
        for inputs, labels, _ in self:
            if self.join:
                inputs, labels = self.join(inputs, labels)
            yield inputs, labels, inputs


class TestLoader(GivenLoader):
    """The same for evaluation: (inputs, labels).

    Attributes:
        dataset: has the length of the last pass, which a sampler may make shorter than the data.
    """

    dataset = range(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = 0
        for inputs, labels, _ in super().__iter__():
            n += len(labels)
            yield inputs, labels
        self.dataset = range(n)


class GivenTasks(TaskStream):
    """What methods and the evaluation ask of a stream, filled in task by task.

    Args:
        setting: 'class-il', 'task-il' (every example's softmax over the classes of its own task), 'domain-il', or
            None to decide at the first task: 'domain-il' if it has labels for every output or one label per position
            of a sequence, else 'class-il'.
        n_classes: outputs of the network.
        n_tasks: number of tasks, where a method must know it.
        device: of the network.
        multi_head: whether 'task-il' is the loss's business; not for methods that look at their own head only.
    """

    NAME, RECORDS_EPOCHS = "given", False

    def __init__(
        self,
        setting: str | None,
        n_classes: int,
        n_tasks: int | None,
        device: torch.device,
        multi_head: bool = True,
    ):
        self.setting, self.N_CLASSES, self.n_tasks, self.device = setting, n_classes, n_tasks, device
        self.multi_head = multi_head and setting == "task-il"
        self.ranges: list[tuple[int, int]] = []  # first class of each task, and one past its last
        self.sequences = False  # whether an input has a label per position
        self.train_loader: GivenLoader | None = None
        self.test_loaders: dict[int, TestLoader] = {}
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None  # of the current task, in place of cross-entropy
        self._make_tasks()

    @property
    def SETTING(self) -> str:  # noqa: N802 - the streams' own name
        return "class-il" if self.setting == "task-il" else self.setting

    @property
    def N_TASKS(self) -> int:  # noqa: N802
        return max(len(self.ranges), self.n_tasks or 1)

    EVAL_TASKS = N_TASKS

    @property
    def N_CLASSES_PER_TASK(self) -> list[int]:  # noqa: N802
        return [high - low for low, high in self.ranges]

    def enter_task(self, task: int) -> GivenLoader:
        """The loader of the latest task."""
        return self.train_loader

    def add_task(self, loader: Iterable, classes: tuple[int, int] | None = None, join: Callable | None = None) -> None:
        """Begin the next task.

        Args:
            loader: its training batches.
            classes: its first class, and one past its last; found by a pass over the loader by default.
            join: see `GivenLoader`.

        Raises:
            UserError: labels that are no output of the network, or that an earlier task has.
        """
        self.train_loader, task = GivenLoader(loader, self.device, join), len(self.ranges)
        found, self.sequences = labels_of(self.train_loader, whole=classes is None)
        classes = classes or found
        if self.setting is None:
            self.setting = "domain-il" if self.sequences or classes == (0, self.N_CLASSES) else "class-il"
        low, high = classes
        if not 0 <= low < high <= self.N_CLASSES:
            raise UserError(
                f"task {task} has labels {low} to {high - 1}: the network's {self.N_CLASSES} outputs stand for labels "
                f"0 to {self.N_CLASSES - 1}"
            )
        before = self.ranges[-1][1] if self.ranges else 0
        if self.SETTING == "class-il" and low != before:
            raise UserError(
                f"task {task} has labels {low} to {high - 1}: in {self.setting} they go on where those of the task "
                f"before end, at {before}; give setting 'domain-il' if tasks share their labels"
            )
        self.ranges.append(classes)
        self._make_tasks()

    def _make_tasks(self) -> None:
        self.TASK = TokenTask if self.sequences else ClassTask
        if self.multi_head and self.ranges:
            free = [(self.ranges[-1][1], self.N_CLASSES)]  # outputs of tasks to come
            self._own_heads = MultiHeadLoss([*self.ranges, *free], self.device)
        ranges = [self.get_offsets(task) for task in range(len(self.ranges))]
        self._set_tasks(ranges, ranges, self.multi_head)

    def get_offsets(self, task: int) -> tuple[int, int]:
        return self.ranges[task] if self.SETTING == "class-il" else (0, self.N_CLASSES)

    task_classes = get_offsets

    def cpt(self, task: int) -> int:
        low, high = self.get_offsets(task)
        return high - low

    def get_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self._loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss_fn is not None:
            return self.loss_fn(logits, labels)
        if self.multi_head:
            return self._own_heads(logits, labels)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def get_transform(self):
        return _as_it_is

    get_normalization_transform = get_transform

    def extend_test_loaders(self, last: int) -> None:
        """Test loaders are given, not made."""

    def state_dict(self) -> dict:
        ranges = [list(r) for r in self.ranges]
        return {"setting": self.setting, "ranges": ranges, "sequences": self.sequences}

    def load_state_dict(self, state: dict) -> None:
        self.setting, self.sequences = state["setting"], state["sequences"]
        self.ranges = [(int(low), int(high)) for low, high in state["ranges"]]
        self._make_tasks()


def labels_of(loader: GivenLoader, whole: bool = True) -> tuple[tuple[int, int], bool]:
    """Least label and one past the greatest of a loader, or of its first batch, negative ones (not scored) left out;
    whether there are several per input.
    """
    ends: list[tuple[int, int]] = []
    with preserve_rng():
        for _, labels, _ in loader:
            scored = labels[labels >= 0]
            if scored.numel():
                ends.append((int(scored.min()), int(scored.max()) + 1))
            if not whole:
                break
    if not ends:
        raise UserError("the loader gives no batch with a label")
    return (min(low for low, _ in ends), max(high for _, high in ends)), labels.dim() > 1


def _as_it_is(x: Tensor) -> Tensor:
    return x
