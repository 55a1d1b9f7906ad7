"""The base class that method files written for Mammoth find as `ContinualModel`."""

import argparse
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.datasets.utils.loaders import TrainLoader
from palimpsest.datasets.utils.transforms import to_float
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.mammoth.stream import NotHere, Stream, TaskLoader, TaskRows, with_names
from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.optimise import OWN_OPTIMIZERS


class Arguments(argparse.Namespace):
    """The run's options, and the values of those that Mammoth has besides. Setting one sets the run's."""

    nowand, distributed, num_workers, dataset_config, ignore_other_metrics = True, "no", 0, None, False
    class_order, permute_classes, label_perc_by_class = None, False, 1
    scheduler_mode, validation_mode, eval_future, savecheck = "epoch", "current", False, None

    def __init__(self, args: argparse.Namespace):
        self.__dict__ = args.__dict__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotHere(f"there is no option --{name}")


class Given:
    """What the method in construction, or at work, was given: files ask for it by `get_dataset(args)` and the like."""

    def __init__(self):
        self.backbone: nn.Module | None = None
        self.loss = self.transform = self.args = self.stream = None

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        return next(iter(self.backbone.parameters())).device


given = Given()


class OldSignature(type):
    """Constructs a method with four arguments, or with the stream as the fifth where it takes one."""

    def __call__(cls, backbone, loss, args, transform, dataset=None):
        view = Arguments(args)
        stream = Stream(dataset, view)
        given.backbone, given.loss, given.args = with_names(backbone), loss, view
        given.transform, given.stream = transform, stream
        with explained(cls, UserError):
            parameters = inspect.signature(cls.__init__).parameters.values()
            several = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
            fifth = {"dataset": stream} if several or any(p.name == "dataset" for p in parameters) else {}
            return super().__call__(backbone, loss, view, transform, **fifth)


@contextmanager
def explained(cls: type, refusal: type[Exception] = TrainingFailed) -> Iterator[None]:
    """What the file asks for and does not find, what it asserts, and its errors, in one line."""
    name = Path(inspect.getfile(cls)).name
    try:
        yield
    except (NotHere, ImportError, NotImplementedError) as e:
        raise UserError(f"{name} cannot run: {missing(e)}") from None
    except AssertionError as e:
        place, line = _place(e, name)
        raise refusal(f"an assertion of the method does not hold ({place}: {str(e) or line})") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as e:
        if isinstance(e, UserError | TrainingFailed | torch.OutOfMemoryError) or "memory" in str(e).lower():
            raise
        reason = " ".join(str(e).split())[:300]
        raise refusal(f"the method fails ({_place(e, name)[0]}: {type(e).__name__}: {reason})") from e


def _place(error: Exception, name: str) -> tuple[str, str]:
    """Where in the file of that name an error was raised or passed last, and what stands there."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if Path(f.filename).name == name), frames[-1])
    return f"{Path(frame.filename).name}, line {frame.lineno}", frame.line or ""


def missing(error: Exception) -> str:
    """What the file cannot do without, for a message."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package '{error.name}' is not installed"
    return str(error) or "a part that it leaves out is called"


def guarded(hook: Callable) -> Callable:
    """A method of `MammothModel` in which the run is the one at work and `explained` holds."""

    @functools.wraps(hook)
    def call(self, *args, **kwargs):
        given.args, given.stream, given.backbone = self.args, self._facade, self.net
        given.transform, given.loss = self.transform, self.loss
        with explained(type(self)), without_waits(), with_pairs():
            return hook(self, *args, **kwargs)

    return call


@contextmanager
def without_waits() -> Iterator[None]:
    """Inside, a file may wait for a GPU where there is none."""
    own = torch.cuda.synchronize
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None
    try:
        yield
    finally:
        torch.cuda.synchronize = own


@contextmanager
def with_pairs() -> Iterator[None]:
    """Inside, a ranking loss takes a flat target (N,) for inputs (N, 1), as PyTorch did until 1.10."""
    own = F.margin_ranking_loss

    @functools.wraps(own)
    def paired(input1: Tensor, input2: Tensor, target: Tensor, *args, **kwargs) -> Tensor:
        return own(
            input1, input2, target.view_as(input1) if target.numel() == input1.numel() else target, *args, **kwargs
        )

    F.margin_ranking_loss = paired
    try:
        yield
    finally:
        F.margin_ranking_loss = own


class MammothModel(ContinualModel, metaclass=OldSignature):
    """`ContinualModel` with the names, the argument orders and the hooks of Mammoth's.

    Args: as `ContinualModel`; what is left out is what the run gives.

    Attributes:
        N_CLASSES, N_TASKS, SETTING: of the stream.
        original_transform, weak_transform: `transform`.
    """

    AVAIL_OPTIMS = list(OWN_OPTIMIZERS)

    def __init__(self, backbone=None, loss=None, args=None, transform=None, dataset=None):
        backbone = given.backbone if backbone is None else backbone
        transform = given.transform if transform is None else transform
        stream = given.stream
        super().__init__(backbone, given.loss if loss is None else loss, given.args, transform, stream)
        self._facade = stream
        self._rows: TaskRows | None = None
        self.original_transform = self.weak_transform = transform
        self.N_CLASSES, self.N_TASKS, self.SETTING = stream.N_CLASSES, stream.N_TASKS, stream.SETTING
        parameters = inspect.signature(self.observe).parameters.values()
        self._named = [p.name for p in parameters]
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        # MER's file adds the batch dimension itself.
        self._single = given.args.batch_size == 1 and "inputs.unsqueeze(0)" in inspect.getsource(type(self).observe)
        if "true_labels" in self._named and given.args.noise_rate:
            raise UserError(f"{self.NAME} reads the true labels, which a run with --noise_rate does not hand out")

    # ---- what a file uses

    classes_per_task = _cpt = property(attrgetter("cpt"))

    def compute_offsets(self, task: int) -> tuple[int, int]:
        """First class of a task, and one past its last."""
        return self._facade.get_offsets(task)

    _compute_offsets = compute_offsets

    def get_debug_iters(self) -> int:
        """Batches of an epoch under `--debug_mode`."""
        return 5

    def load_buffer(self, buffer: nn.Module) -> None:
        self.buffer = buffer

    # ---- what the runner calls

    def training_rows(self, data: Any) -> None:
        """Put a loader whose data the file may change in the place of the stream's; on a resumed run with what had
        been changed.
        """
        stream, task = self._facade._stream, self._current_task
        if isinstance(stream.train_loader, TrainLoader):
            self._facade._loaders.clear()
            if self._rows is None or self._rows.task != task:
                self._rows = TaskRows(self._facade, task)
            loader = TaskLoader(self._rows)  # reads the stream's own loader once more, before it is replaced
            stream.train_loader = loader

    @guarded
    def meta_begin_task(self, dataset: Any) -> None:
        super().meta_begin_task(self._facade)

    @guarded
    def meta_end_task(self, dataset: Any) -> None:
        super().meta_end_task(self._facade)

    @guarded
    def meta_begin_epoch(self, epoch: int, dataset: Any) -> None:
        self._epoch_iteration = 0
        self._at_epoch(self.begin_epoch, epoch)

    @guarded
    def meta_end_epoch(self, epoch: int, dataset: Any) -> None:
        self._at_epoch(self.end_epoch, epoch)

    def _at_epoch(self, hook: Callable, epoch: int) -> None:
        """Until 2023 the hooks of an epoch took the stream alone."""
        both = len(inspect.signature(hook).parameters) > 1
        hook(epoch, self._facade) if both else hook(self._facade)

    @guarded
    def meta_observe(self, inputs: Tensor, labels: Tensor, not_aug_inputs: Tensor, epoch: int):
        loader = self._facade._stream.train_loader
        further = {"epoch": epoch, "true_labels": labels} | getattr(loader, "extras", {})
        if not self._takes_all:
            further = {name: value for name, value in further.items() if name in self._named}
        raw = to_float(not_aug_inputs) if isinstance(not_aug_inputs, Tensor) else not_aug_inputs
        if self._single:
            inputs, labels, raw = inputs[0], labels[0], raw[0]
        self._facade._stream.begin_batch(self.net)
        with self.training_precision():
            loss = self.observe(inputs, labels, raw, **further)
        self._task_iteration += 1
        self._epoch_iteration += 1
        return float(loss) if isinstance(loss, int) else loss

    @guarded
    def evaluate_batch(self, *args):
        return super().evaluate_batch(*args)
