"""Scores of the current network on the tasks of a stream: one pass per task gives class-IL and task-IL together.

What is scored, and how, the stream says (`get_score`).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from models.utils.continual_model import ContinualModel
from utils.randomness import untouched

Scores = dict[str, list[float]]  # scenario -> one value per task


def scenarios(model: ContinualModel, dataset) -> list[str]:
    """The scenarios a run is scored in: two for a class-IL stream, else the stream's setting."""
    if dataset.SETTING == "domain-il" and getattr(model, "INFERS_TASK", False):
        return ["domain-il", "task-il"]
    if dataset.SETTING != "class-il":
        return [dataset.SETTING]
    return ["class-il", "task-il"] if model.scores_class_il else ["task-il"]


def evaluate(model: ContinualModel, dataset, tasks: Iterable[int], trained: int) -> dict[str, list[float]]:
    """The score in percent on each of `tasks`, per scenario: `measure` without what else it measures."""
    return measure(model, dataset, tasks, trained)[0]


@torch.no_grad()
def measure(model: ContinualModel, dataset, tasks: Iterable[int], trained: int) -> tuple[Scores, dict[str, Scores]]:
    """The score in percent on each of `tasks`, per scenario, and the same of each further metric.

    class-IL: argmax over the classes of all tasks up to `trained` (up to the task itself, where that is later).
    task-IL: argmax over the task's own classes. Otherwise: argmax over all classes. The network is in eval mode
    meanwhile; the device is waited for once.

    Args:
        model, dataset: as trained so far; the test loaders of `tasks` must exist.
        tasks: tasks to evaluate.
        trained: last task trained, -1 for none.
    """
    tasks, names = list(tasks), scenarios(model, dataset)
    if dataset.KIND == "vision":
        return _measure_vision(model, dataset, tasks, names)
    score = dataset.get_score()
    totals, besides = [], {}
    with looking_only(model):
        for task in tasks:
            loader = dataset.test_loaders[task]
            low, high = dataset.task_classes(task)
            seen = max(high, dataset.task_classes(max(trained, 0))[1])
            ranges = {"class-il": (0, seen), "task-il": (low, high)}
            total = torch.zeros(len(names), len(score.SUMS), device=model.device)
            sums: dict[tuple[str, str], torch.Tensor] = {}
            for inputs, labels in loader:
                outputs, more = model.examine(inputs, labels, task, names)
                total += torch.stack([score.sums(outputs[n], labels, *ranges.get(n, (low, high))) for n in names])
                for metric, (name, value) in more.items():
                    sums[metric, name] = sums.get((metric, name), 0) + value
            totals.append(total)
            for key, value in sums.items():
                besides.setdefault(key, []).append(value / len(loader.dataset))
    sizes = [len(dataset.test_loaders[task].dataset) for task in tasks]
    rows = [
        [score.metrics(sums, size) for sums in total]
        for total, size in zip(torch.stack(totals).cpu(), sizes, strict=True)
    ]
    metrics = {
        metric: {name: [row[i][metric] for row in rows] for i, name in enumerate(names)} for metric in rows[0][0]
    }
    besides = {key: row for key, row in besides.items() if len(row) == len(tasks)}  # defined for each of the tasks
    if besides:
        values = torch.stack([torch.stack([v.float() for v in row]) for row in besides.values()]).tolist()
        for (metric, name), row in zip(besides, values, strict=True):
            metrics.setdefault(metric, {})[name] = row
    return metrics.pop(next(iter(metrics))), metrics


def _measure_vision(model: ContinualModel, dataset, tasks: list[int], names: list[str]) -> tuple[Scores, dict]:
    """`measure` where each task has a score of its own: the first numbers of all, and the others by name, nan for the
    tasks that have no such number.
    """
    rows = []  # task -> scenario -> the numbers of its score
    with looking_only(model):
        for task in tasks:
            score = dataset.get_score(task)
            states = {name: score.start() for name in names}
            for inputs, labels in dataset.test_loaders[task]:
                outputs, _ = model.examine(inputs, labels, task, names)
                for name in names:
                    score.add(states[name], outputs[name], labels)
            rows.append({name: score.result(states[name]) | score.interval(states[name]) for name in names})
    firsts = [next(iter(row[names[0]])) for row in rows]
    scores = {name: [row[name][first] for row, first in zip(rows, firsts, strict=True)] for name in names}
    more = dict.fromkeys(m for row, first in zip(rows, firsts, strict=True) for m in row[names[0]] if m != first)
    others = {m: {name: [row[name].get(m, math.nan) for row in rows] for name in names} for m in more}
    return scores, others


@torch.no_grad()
def held_out_scores(model: ContinualModel, dataset, task: int) -> dict[str, float]:
    """Accuracy (percent) over the current task's classes, and mean loss, on the held-out data of the current task; of
    a vision task its own score.
    """
    if dataset.KIND == "vision":
        return vision_scores(model, dataset, task, dataset.held_out_loader)
    classes, score = dataset.get_offsets(task), dataset.get_score()
    totals = torch.zeros(len(score.SUMS) + 1, device=model.device)
    with looking_only(model):
        for inputs, labels in dataset.held_out_loader:
            logits = model.predict(inputs, task)
            loss = score.loss(logits, labels, *classes).unsqueeze(0)
            totals += torch.cat([score.sums(logits, labels, *classes), loss])
    n, totals = len(dataset.held_out_loader.dataset), totals.cpu()
    accuracy = next(iter(score.metrics(totals[:-1], n).values()))
    return {"accuracy": accuracy, "loss": (totals[-1] / n).item()}


@torch.no_grad()
def vision_scores(model: ContinualModel, dataset, task: int, batches: Iterable) -> dict[str, float]:
    """Score ('accuracy', percent) and mean loss of a vision task on batches (inputs, labels, ...)."""
    score, spec = dataset.get_score(task), dataset.tasks[task]
    state, loss, n = score.start(), 0.0, 0
    with looking_only(model):
        for inputs, labels, *_ in batches:
            outputs = model.predict(inputs, task)
            score.add(state, outputs, labels)
            loss, n = loss + spec.loss(outputs, labels) * len(inputs), n + len(inputs)
    return {"accuracy": next(iter(score.result(state).values())), "loss": float(loss) / max(n, 1)}


@torch.no_grad()
def predictions(model: ContinualModel, dataset) -> list[dict[str, torch.Tensor]]:
    """What is said of the test images that a vision stream shows, see `VisionTask.said`: of every task, those not
    trained yet too.
    """
    out, normalize = [], dataset.get_normalization_transform()
    with looking_only(model):
        for task, spec in enumerate(dataset.tasks):
            images, _ = dataset.shown(task)
            out.append(spec.said(model.predict(normalize(images.to(model.device)), task)))
    return out


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
