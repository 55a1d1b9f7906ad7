"""A stream as method files written for Mammoth know it: loaders whose `dataset` can be read and changed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.datasets.utils.loaders import Split, TrainLoader
from palimpsest.datasets.utils.transforms import to_float
from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import evaluate


class NotHere(AttributeError):
    """A name that Mammoth has and this program has not."""


class Stream:
    """A stream with the further names of Mammoth's: a network instead of a network's name, the size of the images as
    (H, W), and loaders of `TaskRows`. All else is the stream's own.

    Args:
        stream: the run's stream.
        args: the run's options.
    """

    def __init__(self, stream: Any, args: Any):
        self._stream, self._loaders, self.args = stream, {}, args

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_stream":
            raise AttributeError(name)
        try:
            return getattr(self._stream, name)
        except AttributeError:
            raise NotHere(f"the stream {self._stream.NAME} has no '{name}'") from None

    def __deepcopy__(self, memo: dict) -> "Stream":
        return self  # the data of a run are there once

    @property
    def SIZE(self) -> tuple[int, ...]:
        size = tuple(self._stream.SIZE)
        return size[1:] if len(size) == 3 else size

    @property
    def TRANSFORM(self) -> Any:
        return self._stream.get_transform()

    @property
    def TEST_TRANSFORM(self) -> Any:
        return self._stream.get_normalization_transform()

    @property
    def i(self) -> int:
        """Index of the first class after the current task."""
        return self._stream.get_offsets(max(self._stream.c_task, 0))[1]

    @property
    def train_loader(self) -> Any:
        return self._stream.train_loader

    @train_loader.setter
    def train_loader(self, loader: Any) -> None:
        raise UserError("the method sets dataset.train_loader, which a checkpoint cannot keep: change its dataset")

    @property
    def test_loaders(self) -> list:
        return self._stream.test_loaders[: self._stream.c_task + 1]

    def get_data_loaders(self) -> tuple[Any, Any]:
        """Train and test loader of the current task; the run's own place in the stream stays."""
        task = max(self._stream.c_task, 0)
        return TaskLoader(TaskRows(self, task)), self._stream.test_loaders[task]

    def evaluate(self, model: nn.Module, *_, last: bool = False, **__) -> tuple[list[float], list[float]]:
        """Class-IL and task-IL accuracy (percent) on each task so far, or on the last one; twice the same where there
        is only one.
        """
        now = self._stream.c_task
        scores, _ = evaluate(model, self._stream, [now] if last else range(now + 1), now)
        first, *others = scores.values()
        return first, others[0] if others else first

    def not_aug_dataloader(self, batch_size: int) -> "TaskLoader":
        """Batches of the current task without augmentation, always in one shuffled order."""
        return TaskLoader(TaskRows(self, self._stream.c_task), batch_size, augmented=False)

    def get_backbone(self) -> nn.Module:
        """A fresh network of the run's kind, on its device."""
        return fresh_network(self)

    def get_scheduler(self, model: nn.Module, args: Any, **_) -> None:
        """No schedule of its own: the runner's is set at each epoch."""

    def own_loader(self, task: int) -> TrainLoader:
        """The stream's loader of a task: its rows, their order, the transform."""
        if task not in self._loaders:
            stream = self._stream
            current = getattr(stream, "train_loader", None)
            same = task == stream.c_task and isinstance(current, TrainLoader)
            self._loaders = {task: current if same else stream._make_train_loader(*stream._stage_part(task), task)}
            if not isinstance(self._loaders[task].dataset.source, Split):
                raise UserError(f"the method reads all images of {stream.NAME} at once: give more --resident_mb")
        return self._loaders[task]


def fresh_network(stream: Stream) -> nn.Module:
    """A network as the run's first one, its weights from torch's global generator."""
    args, cls = stream.args, registry.load("backbone", stream.args.backbone)
    net = cls.from_args(args, stream._stream.SIZE, stream._stream.N_CLASSES)
    stream._stream.shape_network(net)
    return with_names(net.to(getattr(stream._stream, "train_device", "cpu")))


def with_names(net: nn.Module) -> nn.Module:
    """A network with three more names that Mammoth's have: `nf` is the width of the features."""
    net.output_size, net.nf, net.device = net.num_classes, net.feature_dim, next(net.parameters()).device
    return net


class TaskRows:
    """The training examples of a task as a data set: `data` uint8, (n, H, W) as torch's MNIST or (n, H, W, C) as its
    CIFAR, `targets` (n,) as numpy integers. Both can be set; an attribute whose name is in `extra_return_fields`, and
    `logits`, is handed to `observe` under its name.

    What was set is kept here, and with a method in its checkpoint; the rest is read from the stream.

    Args:
        stream: the stream.
        task: index of the task.
    """

    def __init__(self, stream: Stream, task: int):
        self.stream, self.task = stream, task
        self.extra_return_fields: tuple[str, ...] = ()
        self._images: Tensor | None = None
        self._targets: Tensor | None = None

    @property
    def data(self) -> Tensor | np.ndarray:
        """A copy of the images: a tensor where they are grey, else an array."""
        split, rows = self.stored()
        images = split.images_of(rows).cpu()
        if images.dim() == 4 and images.shape[1] == 1:
            return images.squeeze(1)
        return images.permute(0, 2, 3, 1).numpy().copy() if images.dim() == 4 else images

    @data.setter
    def data(self, images: Tensor | np.ndarray) -> None:
        own = self.stream.own_loader(self.task).dataset.first()[0]
        self._images = as_stored(images, own).to(own.device)

    @property
    def targets(self) -> np.ndarray:
        """A copy of the labels."""
        return self._labels().cpu().numpy().copy()

    @targets.setter
    def targets(self, labels: Any) -> None:
        own = self.stream.own_loader(self.task).dataset.first()[1]
        self._targets = torch.as_tensor(labels).long().to(own.device, copy=True)

    @property
    def transform(self) -> Any:
        return self.stream.get_transform()

    @property
    def not_aug_transform(self) -> Any:
        return to_float

    def stored(self) -> tuple[Split, Tensor]:
        """All examples, and which rows of them are this task's."""
        own = self.stream.own_loader(self.task).dataset
        own.count_read()
        if self._images is None and self._targets is None:
            return own.source, own.rows
        images = own.data if self._images is None else self._images
        return Split(images, self._labels()), torch.arange(len(images), device=images.device)

    def _labels(self) -> Tensor:
        own = self.stream.own_loader(self.task).dataset
        return own.targets if self._targets is None else self._targets

    def fields(self) -> dict[str, Any]:
        """What is handed to `observe` besides, by name: one value for each example."""
        names = dict.fromkeys((*self.extra_return_fields, *(("logits",) if hasattr(self, "logits") else ())))
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return len(self._labels())

    def __getitem__(self, i: int) -> tuple:
        split, rows = self.stored()
        raw, label = split.images_of(rows[i]), split.targets_of(rows[i])
        return (self.transform(raw), label, to_float(raw), *(value[i] for value in self.fields().values()))


def as_stored(images: Tensor | np.ndarray, like: Tensor) -> Tensor:
    """Images in any of the forms that `TaskRows.data` has, or (n, C, H, W), as the stream stores them; floats are in
    [0, 1].
    """
    images = torch.as_tensor(images)
    if images.is_floating_point() and like.dtype == torch.uint8:
        images = (images * 255).round().clamp(0, 255).byte()
    shape = tuple(like.shape[1:])
    if len(shape) == 3 and images.dim() == 4 and tuple(images.shape[1:]) == (*shape[1:], shape[0]):
        images = images.permute(0, 3, 1, 2).contiguous()
    if len(images) and images[0].numel() != like[0].numel():
        raise UserError(f"the method sets images of shape {tuple(images.shape[1:])}, those of the stream are {shape}")
    return images.reshape(-1, *shape).to(like.dtype, copy=True)


class TaskLoader:
    """Batches (inputs, labels, not_aug_inputs) of `TaskRows`: not_aug_inputs are floats in [0, 1].

    Args:
        dataset: the examples.
        batch_size: examples per batch, the run's by default.
        augmented: whether inputs are augmented.

    Attributes:
        extras: the further fields of the batch that was yielded last, name -> (B, ...).
    """

    num_workers = 0

    def __init__(self, dataset: TaskRows, batch_size: int | None = None, augmented: bool = True):
        self.dataset, self.augmented = dataset, augmented
        self.batch_size = batch_size or dataset.stream.own_loader(dataset.task).batch_size
        self.extras: dict[str, Tensor] = {}

    def __len__(self) -> int:
        own, n = self.dataset.stream.own_loader(self.dataset.task), len(self.dataset)
        batches = n // self.batch_size if own.drop_last else -(-n // self.batch_size)
        return batches if own.max_batches is None else min(batches, own.max_batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A pass of a method's own: always in the same shuffled order."""
        return self.epoch("extra")

    def epoch(self, epoch: int | str, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of one epoch, from batch `start` on."""
        stream, fields, (split, rows) = self.dataset.stream, self.dataset.fields(), self.dataset.stored()
        transform = stream.get_transform() if self.augmented else stream.get_normalization_transform()
        own = stream.own_loader(self.dataset.task)
        order = own.order(len(rows), epoch)
        for places in order.split(self.batch_size)[start : len(self)]:
            index = rows[places.to(rows.device)]
            raw, labels = next(split.batches([index], epoch, own.device))
            if fields:
                self.extras = {k: torch.as_tensor(v)[places].to(own.device) for k, v in fields.items()}
            yield transform(raw), labels, to_float(raw)
