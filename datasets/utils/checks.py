"""What a source of data or a stream of somebody's own gives, looked at once, where it enters."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.source_files import RawData
from palimpsest.datasets.utils.task import ClassTask, RegressionTask, Task, TokenTask
from palimpsest.utils.errors import UserError

PARTS = ("train_x", "train_y", "test_x", "test_y")


def checked_data(where: str, raw: Any, size: tuple[int, ...], classes: int, complete: bool = True) -> RawData:
    """Both splits of a source, as the stream needs them.

    Args:
        where: what gave the data, for messages.
        raw: has train_x, train_y, test_x, test_y, tensors or numpy arrays, see `checked`.
        size: (C, H, W) that the stream declares.
        classes: number of classes that the stream declares.
        complete: every class must be in both splits.

    Returns:
        `raw` itself where nothing had to be converted.

    Raises:
        UserError: anything is not as declared; the message says what was given and what is expected.
    """
    if not all(hasattr(raw, name) for name in PARTS):
        raise UserError(f"{where}: SOURCE returned {type(raw).__name__}: expected RawData, with {', '.join(PARTS)}")
    parts = []
    for split in ("train", "test"):
        parts += checked(f"{where}, {split}", *(getattr(raw, f"{split}_{x}") for x in "xy"), size, classes)
    if (top := int(parts[0].max())) <= 1:
        raise UserError(f"{where}, train: images are uint8 from 0 to {top}, expected 0 to 255: give images * 255")
    if complete:
        refuse_missing(where, parts[1], parts[3], classes)
    same = isinstance(raw, RawData) and all(getattr(raw, name) is part for name, part in zip(PARTS, parts, strict=True))
    return raw if same else RawData(*parts)


def checked(
    where: Path | str, images: Any, labels: Any, size: tuple[int, ...], classes: int, advice: str = ""
) -> tuple[Tensor, Tensor]:
    """One split as tensors (N, *size) uint8 and (N,) int64, after checking that the two belong together.

    Args:
        where: the file or stream, for messages.
        images: (N, *size) uint8, a tensor or a numpy array.
        labels: (N,) whole numbers in [0, classes), a tensor, an array or a list.
        size: (C, H, W).
        classes: number of classes.
        advice: what to do about it, for messages.

    Raises:
        UserError: they are not so.
    """
    x = tensor_of(where, "images", images)
    if not x.numel() or tuple(x.shape[1:]) != tuple(size) or x.dtype != torch.uint8:
        raise UserError(
            f"{where}: images are {_kind(x)}{_range(x)}, expected (N, {', '.join(map(str, size))}) uint8 from 0 to 255 "
            f"with N >= 1: {advice or _hint_images(x, size)}"
        )
    return x.contiguous(), checked_labels(where, labels, len(x), classes, advice)


def checked_labels(where: Path | str, labels: Any, n: int, classes: int, advice: str = "") -> Tensor:
    """Labels (n,) int64 in [0, classes); arguments as in `checked`."""
    end = f": {advice}" if advice else ""
    y = tensor_of(where, "labels", labels)
    expected = f"expected (N,) whole numbers from 0 to {classes - 1}"
    if y.dim() != 1 or y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise UserError(f"{where}: labels are {_kind(y)}, {expected}{end or _hint_labels(y, classes)}")
    if len(y) != n:
        raise UserError(f"{where}: {n} images but {len(y)} labels, the two do not belong together{end}")
    y = y.long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        found = f"{len(y.unique())} classes found and {classes} declared"
        hint = ": labels count from 0, subtract 1" if low == 1 and high == classes else ""
        raise UserError(f"{where}: labels from {low} to {high}, {found}: {expected}{end or hint}")
    return y


def refuse_missing(where: str, train: Tensor, test: Tensor, classes: int) -> None:
    """Refuse data in which a class has no example; labels (N,) of both splits."""
    for split, labels in (("training", train), ("test", test)):
        absent = (torch.bincount(labels, minlength=classes) == 0).nonzero().squeeze(1).tolist()
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise UserError(
                f"{where}: no {split} image of class {', '.join(map(str, absent[:5]))}{more}, "
                f"{classes - len(absent)} classes found and {classes} declared: add images, or declare fewer classes "
                "and count labels without gaps"
            )


def checked_split(where: str, split: Any, task: type[Task], kind: str, size: tuple[int, ...], classes: int) -> Split:
    """A set of examples of a task that is not cut out of one collection.

    Args:
        where: the stream and its task, for messages.
        split: has `images` (N, *size) and `targets`, tensors or numpy arrays.
        task: the kind of task: of a class (N,) whole numbers in [0, classes); of tokens (N, L) the same, or -100
            where none is scored; of regression (N, classes) numbers. Of any other kind N is looked at alone.
        kind: 'vectors' are float32, 'tokens' uint8 below the vocabulary's size; other inputs are as they are.
        size: of an example; of tokens (L, V).
        classes: outputs of the task.

    Raises:
        UserError: they are not so.
    """
    if not hasattr(split, "images") or not hasattr(split, "targets"):
        raise UserError(f"{where}: _splits gave {type(split).__name__}: expected a training and a test Split")
    x, y = tensor_of(where, "inputs", split.images), tensor_of(where, "labels", split.targets)
    shape, wanted = (size[:1], "uint8") if kind == "tokens" else (size, "float32" if kind == "vectors" else _dtype(x))
    if kind == "vectors" and x.dtype == torch.float64:
        x = x.float()
    if not x.numel() or tuple(x.shape[1:]) != tuple(shape) or _dtype(x) != wanted:
        expected = f"(N, {', '.join(map(str, shape))}) {wanted} with N >= 1"
        raise UserError(f"{where}: inputs are {_kind(x)}, expected {expected}")
    if kind == "tokens" and int(x.max()) >= size[1]:
        raise UserError(f"{where}: tokens up to {int(x.max())}, expected 0 to {size[1] - 1}")
    _refuse_not_finite(where, "inputs", x)
    if y.dim() == 0 or len(x) != len(y):
        raise UserError(f"{where}: {len(x)} inputs but labels are {tuple(y.shape)}, the two do not belong together")
    if issubclass(task, TokenTask):
        if y.shape != x.shape or y.dtype != torch.int64:
            raise UserError(f"{where}: labels are {_kind(y)}, expected {tuple(x.shape)} int64")
        scored = y[y != -100]
        if len(scored) and not 0 <= int(scored.min()) <= int(scored.max()) < classes:
            found = f"{int(scored.min())} to {int(scored.max())}"
            raise UserError(f"{where}: labels from {found}, expected 0 to {classes - 1}, or -100")
    elif issubclass(task, ClassTask):
        y = checked_labels(where, y, len(x), classes)
    elif issubclass(task, RegressionTask):
        y = y.float() if y.dtype == torch.float64 else y
        if tuple(y.shape) != (len(x), classes) or y.dtype != torch.float32:
            raise UserError(f"{where}: labels are {_kind(y)}, expected ({len(x)}, {classes}) float32")
        _refuse_not_finite(where, "labels", y)
    return Split(x.contiguous(), y)


def refuse_declared(stream: Any) -> None:
    """Refuse a stream whose class attributes are not what they should be, or whose numbers of tasks and classes do not
    fit together, before its data are read.

    Args:
        stream: its class, or an object of it that is being made.
    """
    name = stream.NAME
    absent = [n for n in ("N_TASKS", "N_CLASSES", "N_CLASSES_PER_TASK") if not hasattr(stream, n)]
    if absent == ["N_CLASSES_PER_TASK"]:
        raise UserError(
            f"{name}: {stream.N_CLASSES} classes are not {stream.N_TASKS} equal shares: set N_CLASSES_PER_TASK, a list "
            "with a number for each task"
        )
    if absent:
        raise UserError(f"{name}: the class does not set {', '.join(absent)}, see docs/add_a_dataset.md")
    per_task, n = stream.N_CLASSES_PER_TASK, stream.N_TASKS
    for what, value in (("N_TASKS", n), ("N_CLASSES", stream.N_CLASSES)):
        if not _is_count(value):
            raise UserError(f"{name}: {what} is {value!r}: expected a whole number above 0")
    sizes = [per_task] * n if type(per_task) is int else per_task
    if isinstance(sizes, str) or not np.iterable(sizes) or len(sizes) != n or not all(map(_is_count, sizes)):
        raise UserError(
            f"{name}: N_CLASSES_PER_TASK is {per_task!r}: expected a whole number above 0, or a list of {n} "
            "numbers above 0, one for each task"
        )
    size = getattr(stream, "SIZE", None)  # a stream may learn it with its data
    if size is not None and not (isinstance(size, tuple | list) and size and all(map(_is_count, size))):
        raise UserError(f"{name}: SIZE is {size!r}: expected the shape of an example, as (C, H, W) of an image")
    for what in ("MEAN", "STD"):
        _refuse_statistics(f"{name}: {what}", getattr(stream, what, None), positive=what == "STD")
    if stream.SETTING == "class-il" and sum(sizes) != stream.N_CLASSES:
        raise UserError(
            f"{name}: the sum of N_CLASSES_PER_TASK over {n} tasks is {sum(sizes)} and N_CLASSES {stream.N_CLASSES}: "
            "the two must be equal"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def _refuse_statistics(where: str, values: Any, positive: bool) -> None:
    if values is None:
        return
    numbers = isinstance(values, Sequence) and all(isinstance(v, Real) and math.isfinite(v) for v in values)
    if not numbers or not len(values) or (positive and min(values) <= 0):
        kind = "numbers above 0" if positive else "numbers"
        raise UserError(f"{where} is {values!r}: expected a tuple of {kind}, one for each channel")


def tensor_of(where: Path | str, what: str, values: Any) -> Tensor:
    """A tensor on the host of a tensor, a numpy array or a list of numbers."""
    if isinstance(values, Tensor) and values.layout == torch.strided:
        return (values.detach() if values.requires_grad else values).cpu()
    try:
        array = np.asarray(values) if isinstance(values, np.ndarray | Sequence) else None
        if array is not None and array.dtype != object:
            return torch.from_numpy(np.require(array, requirements="CW"))
    except (TypeError, ValueError):
        pass  # of unequal lengths, or of a dtype that torch does not have
    given = f"a {values.layout} tensor" if isinstance(values, Tensor) else type(values).__name__
    raise UserError(f"{where}: {what} are {given}: expected a torch tensor or a numpy array of numbers")


def _refuse_not_finite(where: str, what: str, x: Tensor) -> None:
    if x.dtype.is_floating_point and not bool(x.isfinite().all()):
        raise UserError(f"{where}: {what} hold nan or inf in {int((~x.isfinite()).sum())} places: repair or drop them")


def _hint_images(x: Tensor, size: tuple[int, ...]) -> str:
    shape = tuple(x.shape[1:])
    if x.numel() and x.dtype != torch.uint8 and not x.dtype.is_complex:
        low, high = float(x.double().min()), float(x.double().max())
        if not 0 <= low <= high <= 255:
            return "scale them to 0 to 255 and give uint8"
        unit = x.dtype.is_floating_point and high <= 1
        return f"give {'(images * 255).round()' if unit else 'images'}.to(torch.uint8)"
    if shape == (*size[1:], size[0]):
        return "channels come first, give images.permute(0, 3, 1, 2)"
    if shape == size[1:] and size[0] == 1:
        return "give images.unsqueeze(1)"
    return "correct the images, or SIZE"


def _hint_labels(y: Tensor, classes: int) -> str:
    if y.dim() == 2 and y.shape[1] == 1:
        return ": give labels.squeeze(1)"
    if y.dim() == 2 and y.shape[1] == classes:
        return ": they look one-hot, give labels.argmax(1)"
    return ": give labels.long()" if y.dim() == 1 else ""


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} {_dtype(x)}"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _range(x: Tensor) -> str:
    if x.dtype == torch.uint8 or not x.numel() or x.dtype.is_complex or x.dtype == torch.bool:
        return ""
    x = x.double()
    return f" from {float(x.min()):g} to {float(x.max()):g}"
