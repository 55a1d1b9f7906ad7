"""A stream whose tasks are handed over one by one as loaders, with no number of them known in advance."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.datasets.utils.class_sets import Classes, SetTask, as_classes, in_order, labels_in, name_classes
from palimpsest.datasets.utils.continual_dataset import MultiHeadLoss
from palimpsest.datasets.utils.given_batches import (
    are_numbers,
    read_classes,
    read_inputs,
    read_numbers,
    repeatable,
    split_batch,
)  # fmt: skip
from palimpsest.datasets.utils.task import ClassTask, RegressionTask, TaskStream, TokenTask
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import preserve_rng

KINDS = {kind.NAME: kind for kind in (ClassTask, TokenTask, RegressionTask)}


class GivenData:
    """The examples of a loader in memory, on the training device: read by one pass when they are first asked for. What
    a loader draws at random for an example is drawn once here.
    """

    def __init__(self, loader: "GivenLoader"):
        self.loader = loader

    @cached_property
    def _read(self) -> tuple[Tensor, Tensor]:
        with preserve_rng():
            inputs, labels, _ = zip(*self.loader, strict=True)
        return torch.cat(inputs), torch.cat(labels)

    def first(self) -> tuple[Tensor, Tensor]:
        """Input and label of the first example, as a batch of one."""
        return self.data[:1], self.targets[:1]

    @property
    def data(self) -> Tensor:
        """Inputs (n, ...)."""
        return self._read[0]

    @property
    def targets(self) -> Tensor:
        """Labels (n, ...)."""
        return self._read[1]

    def __len__(self) -> int:
        return len(self.targets)


class GivenLoader:
    """Batches of anybody's loader on the training device, as methods expect them.

    Args:
        loader: iterable of (inputs, labels) batches; what can be gone through only once is kept in memory.
        read: (a batch, whether the labels' values are looked at) -> (inputs, labels), see `GivenTasks.read`.
        with_old: (inputs, labels) -> the same with more examples, for the batches that are trained on.

    Attributes:
        batch_size: the loader's, 0 where it has none.
        dataset: its examples, for methods that choose among them.
        chosen: (inputs, labels) to train on in place of the loader's own, in a random order; None for the loader's.
    """

    def __init__(self, loader: Iterable, read: Callable, with_old: Callable | None = None):
        self.loader, self.read, self.with_old, self.looked = repeatable(loader), read, with_old, False
        size = getattr(loader, "batch_size", None)
        self.batch_size = size if isinstance(size, int) and size > 0 else 0
        self.dataset = GivenData(self)
        self.chosen: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.loader) if self.chosen is None else -(-len(self.chosen[1]) // self.batch_size)

    def keep(self, rows: Tensor) -> None:
        """Train only on these of the task's examples, given as positions (k,)."""
        self.chosen = self.dataset.data[rows], self.dataset.targets[rows]

    def join(self, inputs: Tensor, labels: Tensor) -> None:
        """Train on these examples, too."""
        own = self.chosen or (self.dataset.data, self.dataset.targets)
        more = inputs.to(own[0].device), labels.to(own[1].device)
        self.chosen = torch.cat((own[0], more[0])), torch.cat((own[1], more[1]))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass of training."""
        if self.chosen is None:
            yield from ((inputs, labels) for inputs, labels, _ in self)
            return
        inputs, labels = self.chosen
        for rows in torch.randperm(len(labels)).to(labels.device).split(self.batch_size):
            yield inputs[rows], labels[rows]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.loader:
            inputs, labels = self.read(batch, not self.looked)
            yield inputs, labels, inputs
        self.looked = True

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A pass of training; its order is the loader's affair."""
        for inputs, labels in self._batches():
            if self.with_old:
                inputs, labels = self.with_old(inputs, labels)
            yield inputs, labels, inputs


class TestLoader(GivenLoader):
    """The same for evaluation: (inputs, labels).

    Attributes:
        dataset: has the length of the last pass, which a sampler may make shorter than the data.

    Raises:
        UserError: there is nothing to score, or nothing of the task.
    """

    def __init__(self, loader: Iterable, read: Callable, task: int, classes: list[int] | None):
        super().__init__(loader, read)
        self.task, self.classes = task, classes
        self.dataset = range(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n, scored, found = 0, 0, []
        for inputs, labels, _ in super().__iter__():
            n += len(labels)
            scored += labels.numel() if labels.is_floating_point() else (labels >= 0).sum()
            if self.classes is not None:
                found.append(labels.unique())
            yield inputs, labels
        if not n or not int(scored):
            what = "example" if not n else "label that is scored"
            raise UserError(f"the loader to score task {self.task} gives no {what}: there is no score without any")
        if found and not {*(labels := torch.cat(found).unique().tolist())} & {*self.classes}:
            raise UserError(
                f"the loader to score task {self.task} has {name_classes(labels)}, none of the task's "
                f"{name_classes(self.classes)}: are the loaders in the order of the tasks?"
            )
        self.dataset = range(n)


class GivenTasks(TaskStream):
    """What methods and the evaluation ask of a stream, filled in task by task.

    Args:
        setting: 'class-il', 'task-il' (every example's softmax over the classes of its own task), 'domain-il',
            'regression' (domain-il with numbers for labels), or None to decide at the first task: 'domain-il' if it has
            labels for every output, one label per position of a sequence, or numbers with a fraction in the shape of
            the outputs; else 'class-il'.
        n_classes: outputs of the network.
        n_tasks: number of tasks, where a method must know it.
        device, dtype: of the network.
        multi_head: whether 'task-il' is the loss's business; not for methods that look at their own head only.
        kind: what its tasks are, a key of `KINDS`.
    """

    NAME, RECORDS_EPOCHS, SETTINGS = "given", False, ()

    def __init__(
        self,
        setting: str | None,
        n_classes: int,
        n_tasks: int | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        multi_head: bool = True,
        kind: str = ClassTask.NAME,
    ):
        self.setting, self.N_CLASSES, self.n_tasks = setting, n_classes, n_tasks
        self.device, self.dtype, self.kind = device, dtype, kind
        self.multi_head = multi_head and setting == "task-il"
        self.classes: list[Classes] = []  # of each task
        self.train_loader: GivenLoader | None = None
        self.held_out_loader: TestLoader | None = None
        self.test_loaders: dict[int, TestLoader] = {}
        self.SIZE: tuple[int, ...] = ()  # of an input, from the first task on
        self.floats = True  # inputs are no whole numbers
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None  # of the current task, in place of its own
        self._make_tasks()

    @property
    def SETTING(self) -> str:  # noqa: N802 - the streams' own name
        return {"task-il": "class-il", "regression": "domain-il"}.get(self.setting, self.setting)

    @property
    def N_TASKS(self) -> int:  # noqa: N802
        return max(len(self.classes), self.n_tasks or 1)

    EVAL_TASKS = N_TASKS

    @property
    def N_CLASSES_PER_TASK(self) -> list[int]:  # noqa: N802
        return [len(labels_in(classes)) for classes in self.classes]

    def read(
        self, batch: Any, look: bool = True, task: int | None = None, declared: set[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A batch of a loader as methods expect it.

        Args:
            batch: (inputs, labels, ...), see `split_batch`.
            look: whether the values of labels on a GPU are checked; those on the host always are.
            task, declared: a task, and its classes if no others may be there.

        Raises:
            UserError: it cannot be read; the line says what was given and what is expected.
        """
        inputs, labels = split_batch(batch)
        if self.kind == RegressionTask.NAME:
            labels = read_numbers(labels, self.N_CLASSES, self.device, self.dtype)
        else:
            look = look or labels.device.type == "cpu"
            labels = read_classes(labels, self.N_CLASSES, self.kind == TokenTask.NAME, look)
            if look and declared is not None and (others := {*labels[labels >= 0].unique().tolist()} - declared):
                others = name_classes(sorted(others))
                raise UserError(f"task {task} has {others} besides its classes: correct `classes`")
            labels = labels.to(self.device, non_blocking=True)
        return read_inputs(inputs, self.device, self.dtype), labels

    def enter_task(self, task: int) -> GivenLoader:
        """The loader of the latest task."""
        return self.train_loader

    def task_data(self, task: int) -> GivenData:
        """Training examples of the latest task."""
        return self.train_loader.dataset

    @property
    def in_order(self) -> bool:
        """Whether the tasks' classes, one after the other, are 0, 1, 2, ..."""
        return self.SETTING != "class-il" or in_order(self.classes)

    def add_task(self, loader: Iterable, classes: Any = None, with_old: Callable | None = None) -> Tensor:
        """Begin the next task; returns the inputs of a first batch.

        Args:
            loader: its training batches.
            classes: a tuple (its first class, one past its last), or a set of them; found by a pass over the loader by
                default.
            with_old: see `GivenLoader`.

        Raises:
            UserError: labels that are no output of the network, or that an earlier task has.
        """
        task, declared = len(self.classes), None if classes is None else self._declared(classes)
        self.train_loader = GivenLoader(loader, partial(self.read, task=task, declared=declared), with_old)
        if self.kind == RegressionTask.NAME:
            if declared is not None:
                raise UserError(f"classes is {classes!r}: a regression has none, drop it")
            declared = {*range(self.N_CLASSES)}
        first, found = look_over(self.train_loader, whole=declared is None)
        self.train_loader.batch_size = self.train_loader.batch_size or len(first)
        classes = as_classes(found if declared is None else declared)
        if self.setting is None:
            shared = self.kind != ClassTask.NAME or classes == (0, self.N_CLASSES)
            self.setting = "domain-il" if shared else "class-il"
        if self.SETTING == "class-il":
            self._refuse_shared(task, classes)
        self.classes.append(classes)
        self.SIZE = tuple(first.shape[1:])
        self.floats = first.is_floating_point()
        self._make_tasks()
        return first

    def _declared(self, classes: Any) -> set[int]:
        """The classes of the next task as they are given to `train_task`."""
        ends = isinstance(classes, tuple) and len(classes) == 2
        if not ends and not isinstance(classes, set | frozenset | range):
            raise UserError(f"classes is {classes!r}: expected a tuple (first, one past the last), or a set of classes")
        if not all(type(c) is int for c in classes):
            raise UserError(f"classes is {classes!r}: expected integers")
        out, n = {*(range(*classes) if ends else classes)}, self.N_CLASSES
        if not out or min(out) < 0 or max(out) >= n:
            raise UserError(f"classes is {classes!r}: the network's {n} outputs stand for labels 0 to {n - 1}")
        return out

    def _refuse_shared(self, task: int, classes: Classes) -> None:
        before = {c for part in self.classes for c in labels_in(part)}
        if shared := sorted(before & {*labels_in(classes)}):
            raise UserError(
                f"task {task} has {name_classes(shared)}, which an earlier task has: in {self.setting} every class is "
                "of one task; give setting 'domain-il' if tasks share their labels"
            )
        if self.kind == TokenTask.NAME and not in_order([*self.classes, classes]):
            raise UserError(
                f"task {task} has {name_classes(labels_in(classes))}: in {self.setting} labels of sequences go on "
                f"where those of the task before end, at {len(before)}"
            )

    def _make_tasks(self) -> None:
        self.TASK, n = KINDS[self.kind], self.N_CLASSES
        if self.multi_head and self.classes:
            taken = {c for part in self.classes for c in labels_in(part)}
            free = frozenset(range(n)) - taken  # outputs of tasks to come
            self._own_heads = MultiHeadLoss([*self.classes, free], self.device)
        ranges = [self.get_offsets(task) for task in range(len(self.classes))]
        self._set_tasks(ranges, ranges, self.multi_head)
        if self.SETTING == "class-il" and not in_order(self.classes):
            seen, own = set(), None if self.multi_head else self._loss
            self.tasks, self._heads = [], []
            for classes in map(labels_in, self.classes):
                seen |= {*classes}
                for tasks, criterion in ((self.tasks, None), (self._heads, own)):
                    tasks.append(SetTask(classes, sorted(seen), n, self.device, criterion))

    def get_offsets(self, task: int) -> tuple[int, int]:
        """Classes before a task's, and with them: where its own are, if those of all tasks come in order."""
        if self.SETTING != "class-il":
            return 0, self.N_CLASSES
        sizes = self.N_CLASSES_PER_TASK
        return sum(sizes[:task]), sum(sizes[: task + 1])

    def class_index(self, task: int) -> slice | Tensor:
        own = self.tasks[task]
        return own.classes if isinstance(own, SetTask) else super().class_index(task)

    def positions(self, labels: Tensor, task: int) -> Tensor:
        own = self.tasks[task]
        return own.position(labels) if isinstance(own, SetTask) else super().positions(labels, task)

    def task_classes(self, task: int) -> tuple[int, int]:
        """0, and one past the greatest label of the tasks up to this one."""
        if self.SETTING != "class-il":
            return 0, self.N_CLASSES
        return 0, 1 + max(max(labels_in(part)) for part in self.classes[: task + 1])

    def get_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self._loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss_fn is not None:
            loss = self.loss_fn(logits, labels)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise UserError(f"loss_fn returns {given}: expected a tensor of one number, as its mean over the batch")
            return loss.reshape(())
        if self.kind == RegressionTask.NAME:
            return RegressionTask.LOSS(logits, labels)
        if self.multi_head:
            return self._own_heads(logits, labels)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def get_transform(self):
        return _as_it_is

    get_normalization_transform = get_transform

    def test_loader(self, loader: Iterable, task: int) -> TestLoader:
        """A loader to score a task; the one in use if it is the same."""
        mine = self.test_loaders.get(task)
        if mine is not None and (loader is mine.loader or loader is getattr(mine.loader, "source", mine)):
            return mine
        classes = labels_in(self.classes[task]) if self.SETTING == "class-il" else None
        return TestLoader(loader, self.read, task, classes)

    def extend_test_loaders(self, last: int) -> None:
        """Test loaders are given, not made."""

    def state_dict(self) -> dict:
        classes = [labels_in(part) for part in self.classes]
        inputs = {"size": [*self.SIZE], "floats": self.floats}
        return {"setting": self.setting, "kind": self.kind, "classes": classes, "inputs": inputs}

    def load_state_dict(self, state: dict) -> None:
        self.setting, self.kind = state["setting"], state["kind"]
        self.classes = [as_classes({*map(int, part)}) for part in state["classes"]]
        if inputs := state.get("inputs"):  # files of before have none
            self.SIZE, self.floats = tuple(map(int, inputs["size"])), bool(inputs["floats"])
        self._make_tasks()


def kind_of(setting: str | None, outputs: torch.Size, batch: Any) -> str:
    """What the tasks are, by a first batch.

    Args:
        setting: see `GivenTasks`.
        outputs: shape of the network's output for the batch.
        batch: as the loader gives it.
    """
    if setting == "regression" or (setting in (None, "domain-il") and are_numbers(split_batch(batch)[1], outputs)):
        if len(outputs) != 2:
            raise UserError(f"the network returns {tuple(outputs)}: a regression needs (B, K), K numbers per example")
        return RegressionTask.NAME
    return TokenTask.NAME if len(outputs) == 3 else ClassTask.NAME


def look_over(loader: GivenLoader, whole: bool = True) -> tuple[Tensor, set[int]]:
    """The inputs of a loader's first batch; the class labels (not -100) of the loader, or of a batch that has any."""
    first, found = None, set()
    with preserve_rng():
        for inputs, labels, _ in loader:
            first = inputs if first is None else first
            if labels.is_floating_point():  # of a regression
                break
            found |= {*labels[labels >= 0].unique().tolist()}
            if found and not whole:
                break
    if first is None or not (found or labels.is_floating_point()):
        raise UserError("the loader gives no batch with a label")
    return first, found


def _as_it_is(x: Tensor) -> Tensor:
    return x
