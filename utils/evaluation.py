"""Scores of the current network on the tasks of a stream: one pass per task gives class-IL and task-IL together."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from models.utils.continual_model import ContinualModel
from utils.randomness import untouched


def scenarios(model: ContinualModel, dataset) -> list[str]:
    """The scenarios a run is scored in: two for a class-IL stream, else the stream's setting."""
    if dataset.SETTING != "class-il":
        return [dataset.SETTING]
    return ["class-il", "task-il"] if model.scores_class_il else ["task-il"]


@torch.no_grad()
def evaluate(model: ContinualModel, dataset, tasks: Iterable[int], trained: int) -> dict[str, list[float]]:
    """Accuracy in percent on each of `tasks`, per scenario.

    class-IL: argmax over the classes of all tasks up to `trained` (up to the task itself, where that is later).
    task-IL: argmax over the task's own classes. Otherwise: argmax over all classes. The network is in eval mode
    meanwhile; the device is waited for once.

    Args:
        model, dataset: as trained so far; the test loaders of `tasks` must exist.
        tasks: tasks to evaluate.
        trained: last task trained, -1 for none.
    """
    tasks, names = list(tasks), scenarios(model, dataset)
    shares = []
    with looking_only(model):
        for task in tasks:
            loader = dataset.test_loaders[task]
            low, high = dataset.task_classes(task)
            seen = max(high, dataset.task_classes(max(trained, 0))[1])
            ranges = {"class-il": (0, seen), "task-il": (low, high)}
            correct = torch.zeros(len(names), device=model.device)
            for inputs, labels in loader:
                logits = model.predict(inputs, task)
                correct += torch.stack([_correct(logits, labels, *ranges.get(name, (low, high))) for name in names])
            shares.append(correct / max(len(loader.dataset), 1))
    percent = 100 * torch.stack(shares).cpu().double()
    return {name: percent[:, i].tolist() for i, name in enumerate(names)}


@torch.no_grad()
def held_out_scores(model: ContinualModel, dataset, task: int) -> dict[str, float]:
    """Accuracy (percent) over the current task's classes, and mean loss, on the held-out data of the current task."""
    low, high = dataset.get_offsets(task)
    totals = torch.zeros(2, device=model.device)
    with looking_only(model):
        for inputs, labels in dataset.held_out_loader:
            logits = model.predict(inputs, task)[:, low:high]
            loss = torch.nn.functional.cross_entropy(logits, labels - low, reduction="sum")
            totals += torch.stack([_correct(logits, labels - low, 0, high - low), loss])
    accuracy, loss = (totals / len(dataset.held_out_loader.dataset)).tolist()
    return {"accuracy": 100 * accuracy, "loss": loss}


@contextmanager
def looking_only(model: ContinualModel) -> Iterator[None]:
    """Eval mode inside; afterwards every part is in the mode it was in (a frozen teacher stays in its own), and the
    random generators are where they were, so that how often one looks does not change what is learned.
    """
    training = [part for part in model.modules() if part.training]
    model.eval()
    with untouched():
        yield
    for part in training:
        part.training = True


def empty_matrix(n_tasks: int) -> np.ndarray:
    """A score matrix (T, T) in which nothing is evaluated yet."""
    return np.full((n_tasks, n_tasks), np.nan)


def _correct(logits: Tensor, labels: Tensor, low: int, high: int) -> Tensor:
    return (logits[:, low:high].argmax(1) + low == labels).sum().float()
