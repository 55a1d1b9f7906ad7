"""What every method is: the contract between a method file, the training loop and the streams."""

import inspect
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add, attrgetter

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.precision import mixed_precision
from palimpsest.datasets.utils.task import ClassTask, Task
from palimpsest.models.utils.contract import Count, checked_loss, checked_rows, refuse_hidden, reserved_names
from palimpsest.utils.errors import UserError
from palimpsest.utils.optimise import make_optimizer
from palimpsest.utils.panels import Report


class ContinualModel(nn.Module):
    """A continual-learning method around a network.

    A method defines `NAME`, `COMPATIBILITY` and `observe`; the hooks are optional. Whatever it remembers between
    two batches is in its checkpoint without a further line: all its attributes, with the modules, tensors, optimisers,
    lists and objects they hold. What cannot be kept is refused by its name at the first checkpoint (`docs/resume.md`).

    Class attributes:
        NAME: as given to `--model`; equals the file's name.
        COMPATIBILITY: settings the method supports, of 'class-il', 'domain-il', 'task-il', 'general-continual'.
        TASKS: kinds of task the method is defined for, see `datasets.utils.task`: by default logits (B, C) and labels
            (B,); `Task` for a method that leaves all that is special about a task to the task.
        JOINT: the method is trained on all tasks at once (an upper bound).
        UNUSED: options of the runner that have no effect on the method; giving one is an error.
        PRESETS: {option: {value: {other option: value}}}; choosing the value sets the others unless the command
            line does.
        SEARCH: {option: values} that `--tune` tries besides the learning rate, as in a file of `--space`.
        DEFAULTS: {option: value} that the method needs whatever the stream's defaults are (a network, an optimiser and
            its learning rate); the stored hyperparameters and the command line come after.
        INFERS_TASK: on a domain-il stream the method finds out the task; it is then also scored with the task given.
        BUFFER_SHARES: 'classes' or 'tasks' where the buffer is divided equally among all of these, so that each needs a
            slot; '' where it is not.
        LEAST_PER_CLASS: examples of a class that the method cannot do without; 2 where it holds one out.
        ALONE: when training batches enter the network without replayed examples: 'always', 'first batch' of the first
            task, 'first task', or 'never'. A batch of one example is refused then where BatchNorm cannot normalise it.
        KEEPS_IMAGES: the method keeps images of past tasks, and not in a Buffer.
        declared_leaks: {kind of leak: what stands beside its scores in every table}, where a published protocol knows
            more than it should; an attribute or a property. See `utils.leaks.kinds`.
        WAITS: why `observe` waits for the device, where it cannot do without; empty for nearly all methods.

    Args:
        backbone: the network, logits over all classes of the stream.
        loss: (logits, labels) -> scalar.
        args: resolved options.
        transform: raw uint8 batch -> augmented, normalised network input.
        dataset: the stream.

    Attributes:
        net: the backbone.
        opt: the optimiser of `get_parameters()`.
        current_task: tasks that have ended so far, i.e. the index of the one in training.
        n_tasks, num_classes, cpt: tasks, classes, and classes per task of the stream (cpt may be a list).
        n_classes_current_task, n_seen_classes, n_past_classes, n_remaining_classes: class counts, the current task
        among the seen.
        task_iteration, epoch_iteration: batches observed in this task and in this epoch.
        These counts are the runner's; a method that sets one of them keeps a number of its own under that name.
    """

    NAME: str
    COMPATIBILITY: list[str]
    TASKS: tuple[type[Task], ...] = (ClassTask,)
    JOINT = False
    PRESETS: dict[str, dict] = {}
    SEARCH: dict[str, object] = {}
    DEFAULTS: dict[str, object] = {}
    UNUSED: tuple[str, ...] = ()
    INFERS_TASK = False
    BUFFER_SHARES = ""
    LEAST_PER_CLASS = 1
    ALONE = "always"
    KEEPS_IMAGES = False
    declared_leaks: dict[str, str] = {}
    WAITS = ""

    @staticmethod
    def get_parser(parser):
        """Add the method's options to `parser` and return it."""
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__()
        self.net = backbone
        self.loss = loss
        self.args = args
        self.transform = transform
        self.dataset = dataset
        if dataset is not None:
            dataset.shape_network(backbone)
        first = next(iter(backbone.parameters()), None)
        if first is None:
            raise UserError(f"the network of {self.NAME} has nothing to train besides its classifier: take another one")
        self.device = first.device
        self.normalization_transform = dataset.get_normalization_transform() if dataset is not None else None
        self.n_tasks = dataset.N_TASKS if dataset is not None else 1
        self.num_classes = dataset.N_CLASSES if dataset is not None else backbone.num_classes
        self.cpt = dataset.N_CLASSES_PER_TASK if dataset is not None else self.num_classes
        self._current_task = 0
        self._task_iteration = self._epoch_iteration = 0
        self._n_past_classes = 0
        self._n_classes_current_task = 0
        self.opt = self.get_optimizer()
        self._autocast = getattr(args, "precision", "fp32") == "bf16"
        parameters = inspect.signature(self.observe).parameters
        forward = inspect.signature(self.forward).parameters.values()
        positional = [p for p in forward if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        task_only = not {"class-il", "domain-il", "general-continual"} & set(self.COMPATIBILITY)
        self._wants_task = task_only and len(positional) > 1
        self._needs_task = self._wants_task and positional[1].default is inspect.Parameter.empty
        self._wants_epoch = "epoch" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def __setattr__(self, name, value):
        if name in RESERVED:
            refuse_hidden(self, name)
        super().__setattr__(name, value)

    # ---- what a method writes

    def observe(self, inputs: Tensor, labels: Tensor, not_aug_inputs: Tensor, epoch: int | None = None):
        """One training step.

        Args:
            inputs: (B, C, H, W) float, augmented and normalised.
            labels: (B,) int64.
            not_aug_inputs: (B, C, H, W) uint8, the raw images: what a Buffer stores and `transform` takes.
            epoch: index of the epoch within the task.

        Returns:
            The loss as a 0-d tensor (never `.item()`: that waits for the device), or a dict with 'loss' and further
            terms to log.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes). Methods for 'task-il' alone may take `forward(x, task_label)`."""
        return self.net(x)

    def predict(self, x: Tensor, task: int) -> Tensor:
        """Logits (B, num_classes) by which inputs of `task` are scored: the one hook for methods that need the task
        at test time.

        By default `forward(x)`, or `forward(x, task)` for a method that supports 'task-il' alone and takes two
        arguments; where the task has a branch of the network, what that answers.
        """
        if branch := self.dataset.tasks[task].branch:
            return self.net(x, branch)
        return self(x, task) if self._wants_task else self(x)

    def evaluate_batch(self, inputs: Tensor, labels: Tensor, task: int, scenarios: list[str]) -> tuple[dict, dict]:
        """What an evaluation asks of one batch of `task`: by default `predict` for every scenario, and nothing more.

        Returns:
            scenario -> what the stream's score reads; metric -> (scenario, sum over the batch as a 0-d tensor) of what
            the method measures besides, whose mean over the task's examples is reported.
        """
        logits = self.predict(inputs, task)
        return dict.fromkeys(scenarios, logits), {}

    def training_rows(self, data) -> Tensor | None:
        """Positions (k,) of the task's examples to train on, None for all; asked whenever a task is entered.

        Must be a function of the seed and the data, since a resumed run asks again.
        """
        return None

    def other_batches(self, dataset, n_tasks: int) -> Iterable[tuple[str, int]]:
        """Passes in train mode besides those through the training batches, in a run of so many tasks: (what it is
        through, size of its smallest batch). Asked before training.
        """
        return ()

    def extra_examples(self) -> tuple[Tensor, Tensor] | None:
        """Raw images (n, C, H, W) and labels (n,) that join the task's own, None for none: an epoch is then one pass
        over the union, in batches of the usual size. Asked whenever a task is entered.

        Must not change within a task, since a resumed run asks again.
        """
        return None

    def epoch_sizes(self, dataset, tasks: Sequence[int]) -> list[int]:
        """Examples that an epoch of each of these tasks will go over. Asked before training, at the first of them."""
        if (rows := self.training_rows(data := dataset.train_loader.dataset)) is None:
            return [dataset.train_sizes[task] for task in tasks]
        checked_rows(self, rows, len(data))
        return [len(rows), *(len(self.training_rows(dataset.task_data(task))) for task in tasks[1:])]

    def begin_task(self, dataset) -> None:
        """Called before a task's first epoch."""

    def end_task(self, dataset) -> None:
        """Called after a task's last epoch, before evaluation."""

    def begin_epoch(self, epoch: int, dataset) -> None:
        """Called before each epoch."""

    def end_epoch(self, epoch: int, dataset) -> None:
        """Called after each epoch."""

    def end_eval(self, dataset, accs) -> None:
        """Called after the evaluation at a task's end with the accuracies (percent) per scenario."""

    def after_stream(self, dataset) -> bool:
        """Called after the evaluation at the last task's end; True where it changed the network, which is then
        evaluated once more.
        """
        return False

    def report(self, dataset, tasks: range) -> Report:
        """What there is to tell of this method, for the report: notes, numbers and pictures as plain data.

        Asked before training, `tasks` being empty, for the notes and the shares; and at the end of a run, in eval mode
        and without gradients, for numbers and panels about the `tasks` trained.
        """
        notes = {}
        told_the_task = "class-il" not in self.COMPATIBILITY and "task-il" in self.COMPATIBILITY
        if told_the_task and self.scores_class_il and self.dataset.SETTING == "class-il":
            notes["class-il"] = (
                f"not supported by {self.NAME}: it is told the task; the number is shown for reference only"
            )
        if self.dataset.tasks[0].branch:
            notes["parameters"] = self.net.describe()
        return Report(notes)

    @property
    def scores_class_il(self) -> bool:
        """Whether a class-IL figure can be computed at all: not when prediction cannot do without the task."""
        return not self._needs_task

    # ---- what a method uses

    current_task = Count(attrgetter("_current_task"))
    task_iteration = Count(attrgetter("_task_iteration"))
    epoch_iteration = Count(attrgetter("_epoch_iteration"))
    n_classes_current_task = Count(attrgetter("_n_classes_current_task"))
    n_past_classes = Count(attrgetter("_n_past_classes"))
    n_seen_classes = Count(lambda self: self._n_past_classes + self._n_classes_current_task)
    n_remaining_classes = Count(lambda self: self.num_classes - self.n_seen_classes)

    def step_on(self, loss: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """One step of the optimiser on a loss, or on the sum of weighted terms by name; what `observe` returns: the
        loss, or {'loss': the sum, **terms}.
        """
        total = reduce(add, loss.values()) if isinstance(loss, dict) else loss  # `sum` would begin with 0 + ...
        self.opt.zero_grad()
        total.backward()
        self.opt.step()
        return {"loss": total, **loss} if isinstance(loss, dict) else loss

    def backward_on(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The method's loss on a batch, 0-d; the parameters hold its gradients and no others."""
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        return loss

    def training_precision(self) -> AbstractContextManager:
        """Inside, the network's passes are as in `observe`, for what is trained in a hook: bfloat16 with
        `--precision bf16`.
        """
        return mixed_precision(self.device.type) if self._autocast else nullcontext()

    def get_parameters(self) -> Iterable[nn.Parameter]:
        """What the optimiser trains: the network's parameters."""
        return self.net.parameters()

    def get_optimizer(self, params=None, lr: float | None = None) -> torch.optim.Optimizer | None:
        """The optimiser that `--optimizer`, `--lr`, `--optim_wd`, `--optim_mom`, `--optim_args` describe, over
        `get_parameters()` by default.

        Raises:
            UserError: it cannot train these parameters.
        """
        params = list(self.get_parameters() if params is None else params)
        if not params:
            return None
        args = self.args
        optimizer = make_optimizer(args, params, args.lr if lr is None else lr)
        optimizer.made_by_runner = True
        if args.clip_grad:
            # Under a number that torch gives to no other hook, in this process or in one that reads a checkpoint.
            optimizer._optimizer_step_pre_hooks[-1] = GradientClipping(args.clip_grad)
        return optimizer

    def running_statistics(self) -> Iterable[Tensor]:
        """What a task's training accumulates besides parameters, and what goes back with them to the best epoch under
        early stopping: the network's buffers and the optimisers' moments. A method that follows its weights' path adds
        what it keeps of it.
        """
        optimizers = [value for value in vars(self).values() if isinstance(value, torch.optim.Optimizer)]
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self.net.buffers(), *moments]

    def reset_optimizers(self) -> None:
        """Make the optimisers afresh over the current parameters."""
        if self.opt is None or getattr(self.opt, "made_by_runner", False):
            self.opt = self.get_optimizer()
        else:  # one that the method chose itself keeps its kind and its settings
            self.opt = type(self.opt)(list(self.get_parameters()), **self.opt.defaults)

    def get_offsets(self, task: int) -> tuple[int, int]:
        """First class of a task, and one past its last."""
        return self.dataset.get_offsets(task)

    # ---- what the loop calls

    def meta_begin_task(self, dataset) -> None:
        self._task_iteration = self._epoch_iteration = 0
        if dataset.SETTING == "class-il":
            self._n_past_classes, end = dataset.get_offsets(self._current_task)
        else:
            self._n_past_classes, end = 0, dataset.N_CLASSES
        self._n_classes_current_task = end - self._n_past_classes
        dataset.begin_stage(self.net, self._current_task)
        self.begin_task(dataset)

    def meta_end_task(self, dataset) -> None:
        self.end_task(dataset)
        self._current_task += 1

    def meta_begin_epoch(self, epoch: int, dataset) -> None:
        self._epoch_iteration = 0
        self.begin_epoch(epoch, dataset)

    def meta_observe(self, inputs: Tensor, labels: Tensor, not_aug_inputs: Tensor, epoch: int):
        """`observe` with the keywords it names and no others; returns what it returns.

        Raises:
            UserError: that is no loss.
        """
        self.dataset.begin_batch(self.net)
        with self.training_precision():
            loss = self.observe(inputs, labels, not_aug_inputs, **({"epoch": epoch} if self._wants_epoch else {}))
        counts = vars(self)  # not by __setattr__, which looks at every name and type: this is done at each step
        counts["_task_iteration"] += 1
        counts["_epoch_iteration"] += 1
        return checked_loss(self, loss)


RESERVED = reserved_names(ContinualModel)


class GradientClipping:
    """A hook of an optimiser: before its step, scale the gradients to at most a norm.

    Args:
        norm: the largest L2 norm of all its gradients together.

    Attributes:
        factor: what the last gradients were multiplied by, 0-d.
    """

    def __init__(self, norm: float):
        self.norm, self.factor = norm, torch.ones(())

    def __call__(self, optimizer: torch.optim.Optimizer, *_) -> None:
        total = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.norm)
        self.factor = (self.norm / (total + 1e-6)).clamp(max=1)
