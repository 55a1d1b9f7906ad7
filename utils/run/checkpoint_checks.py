"""What no run can have saved, in a checkpoint that is whole and signed: refused before anything uses it.

Each function raises ValueError, TypeError or LookupError, or UserError where the line is the user's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from palimpsest.utils.buffer import Buffer
from palimpsest.utils.errors import UserError
from palimpsest.utils.record import Experiment, Position
from palimpsest.utils.run.training import batches_per_epoch, enter_task


def check_tree(value: Any, seen: Iterator[int], most: int, depth: int = 0) -> None:
    """Plain values only, at most so many, and no tensor that claims more entries than the file holds."""
    if depth > 100:
        raise ValueError("nested too deeply")
    if next(seen) > most:
        raise ValueError("more entries than the file can hold")
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise ValueError("a tensor of an unknown kind")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor larger than its data")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_tree(key, seen, most, depth + 1)
            check_tree(item, seen, most, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_tree(item, seen, most, depth + 1)
    elif value is not None and type(value) not in (bool, int, float, str, bytes):
        raise ValueError(f"a {type(value).__name__}")


def check_shapes(saved: dict[str, list[int]], mine: dict[str, list[int]]) -> None:
    """The parameters and buffers of two freshly constructed methods have the same names and shapes."""
    for name in [*mine, *saved]:
        if saved.get(name) != mine.get(name):
            raise UserError(
                f"the checkpoint is of another network: its {name} is {saved.get(name, 'absent')}, "
                f"here it is {mine.get(name, 'absent')}"
            )


def check_scores(state: dict[str, Any], n_tasks: int) -> None:
    """Scores and losses are used long after the checkpoint was read, so that their form is looked at here."""
    for name, matrix in state["matrices"].items():
        if matrix.shape != (n_tasks, n_tasks) or matrix.dtype != torch.float64:
            raise ValueError(f"matrix {name} of shape {tuple(matrix.shape)}")
    for entry in state["history"]:
        measured = (entry["scores"], *entry["others"].values())
        scores = [score for values in measured for scores in values.values() for score in scores]
        numbers = [entry["step"], entry["task"], 0 if entry["epoch"] is None else entry["epoch"]]
        if not all(type(n) is int for n in numbers) or not all(type(s) is float for s in scores):
            raise TypeError("an evaluation that holds other things than numbers")
    for record in state["epochs"]:
        if not all(type(record[name]) is int for name in ("task", "epoch", "start", "steps")):
            raise TypeError("an epoch that is no number")
        if not 0 <= record["task"] < n_tasks:
            raise ValueError(f"an epoch of task {record['task']}")
        if not all(type(value) in (int, float, bool) for value in record.values()):
            raise TypeError("a record of an epoch that holds other things than numbers")
    for stage, said in state["pictures"]:
        if type(stage) is not int or not all(isinstance(t, Tensor) for task in said for t in task.values()):
            raise TypeError("a picture that holds other things than tensors")
        if not 0 <= stage < n_tasks or len(said) != n_tasks:
            raise ValueError(f"a picture of stage {stage} and {len(said)} tasks")
    rows = [*state["pending"], *(means for _, means, _ in state["losses"])]
    if not all(type(value) is float for row in rows for value in row.values()):
        raise TypeError("a loss that is no number")


def check_leaks(found: Any) -> list[str]:
    """What the leak detector had found: sentences."""
    if not isinstance(found, list) or not all(type(sentence) is str for sentence in found):
        raise TypeError("leaks that are no sentences")
    return found


def check_position(position: Position, exp: Experiment) -> None:
    """The position is one that the stream has, under these options."""
    numbers, n_tasks = (position.task, position.epoch, position.batch, position.step), exp.dataset.N_TASKS
    if not all(type(n) is int for n in numbers) or type(position.inside) is not bool:
        raise TypeError(f"position {position}")
    if min(numbers) < 0 or max(numbers) >= 1 << 63 or position.task > n_tasks - position.inside:
        raise ValueError(f"position {position}")
    if not position.inside:
        return
    enter_task(exp.model, exp.dataset, position.task)
    plan = batches_per_epoch(exp.args, exp.dataset.train_loader)
    if position.epoch >= len(plan) or position.batch > plan[position.epoch]:
        raise UserError(
            f"the checkpoint stands in epoch {position.epoch} of task {position.task} after {position.batch} batches, "
            f"this run's task has {len(plan)} epoch(s) of {max(plan)}: give the options it was saved with"
        )


def check_method(model, dataset) -> None:
    """Weights are finite, as when they were saved, and labels that are kept are ones of the stream."""
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise ValueError(f"weights {name} that are not finite")
    # A stream whose tasks are of unlike kinds says itself what a label is.
    ends = {"labels": model.num_classes if dataset.MIXED else None, "task_labels": dataset.EVAL_TASKS}
    for part in model.modules():
        if not isinstance(part, Buffer):
            continue
        _check_buffer(part)
        for name, end in ends.items():
            kept = getattr(part, name, None)
            if kept is None or end is None or kept.dim() != 1 or kept.is_floating_point() or not len(part):
                continue
            low, high = torch.stack([*kept[: len(part)].aminmax()]).tolist()
            least = -1 if name == "task_labels" else 0  # some methods mark rows of no task by -1
            if low < least or high >= end:
                raise ValueError(f"{name} {low} to {high} in the buffer, expected {least} to {end - 1}")


def _check_buffer(part: Buffer) -> None:
    """All fields have a row for each slot, and the counts are counts."""
    counts = (part.buffer_size, part.num_seen_examples)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in counts) or part.buffer_size < 1:
        raise ValueError(f"a buffer of {part.buffer_size} slots that saw {part.num_seen_examples} examples")
    for name in part.fields:
        if len(getattr(part, name)) != part.buffer_size:
            raise ValueError(f"{name} of a buffer for {len(getattr(part, name))} of {part.buffer_size} slots")
    if part.num_seen_examples and not part.fields:
        raise ValueError("a buffer without its examples")
