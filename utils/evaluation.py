"""Scores of the current network on the tasks of a stream: one pass per task gives class-IL and task-IL together.

What is scored, and how, a task says (`Task.score`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from palimpsest.utils.randomness import preserve_rng
from palimpsest.utils.record import Counts

Scores = dict[str, list[float]]  # scenario -> one value per task
KEPT = "_kept_in_evaluation"  # attribute of a method that is evaluated


def scenarios(model, dataset) -> list[str]:
    """The scenarios a run is scored in: two for a class-IL stream, else the stream's setting."""
    if dataset.SETTING == "domain-il" and getattr(model, "INFERS_TASK", False):
        return ["domain-il", "task-il"]
    if dataset.SETTING != "class-il":
        return [dataset.SETTING]
    return ["class-il", "task-il"] if model.scores_class_il else ["task-il"]


@torch.no_grad()
def evaluate(
    model,
    dataset,
    tasks: Iterable[int],
    trained: int,
    counts: dict[str, Counts] | None = None,
    around: Callable[[int], AbstractContextManager] = lambda n: nullcontext(),
) -> tuple[Scores, dict[str, Scores]]:
    """The score on each of `tasks`, per scenario, and every further number by name: nan where a task has none.

    class-IL: the outputs of all tasks up to `trained` compete (up to the task itself, where that is later). task-IL:
    those of the task. A task without test examples has no score: nan. The network is in eval mode meanwhile; the
    device is waited for at the end.

    Args:
        model, dataset: as trained so far; the test loaders of `tasks` must exist.
        tasks: tasks to evaluate.
        trained: last task trained, -1 for none.
        counts: filled with the answers by true class in each scenario, over the tasks up to `trained`, where scores
            count them.
        around: number of examples -> what is entered around a batch of so many.
    """
    names, last = scenarios(model, dataset), dataset.tasks[max(trained, 0)]
    running, extra, tallies = [], [], {name: _Tally() for name in names}
    with eval_mode(model):
        for task in tasks:
            scores = {name: dataset.tasks[task].score(last if name == "class-il" else None) for name in names}
            sums: dict[tuple[str, str], torch.Tensor] = {}
            for inputs, labels in dataset.test_loaders[task]:
                with around(len(inputs)):
                    outputs, more = model.evaluate_batch(inputs, labels, task, names)
                for name, score in scores.items():
                    score.add(outputs[name], labels)
                for metric, (name, value) in more.items():
                    sums[metric, name] = sums.get((metric, name), 0) + value.double()
            running.append(scores)
            for name, score in scores.items() if counts is not None and task <= trained else ():
                tallies[name].take(task, score)
            extra.append({key: value / len(dataset.test_loaders[task].dataset) for key, value in sums.items()})
    if counts is not None:
        counts.update({name: tally.result() for name, tally in tallies.items() if tally.tasks})
    rows = [{name: score.result() for name, score in scores.items()} for scores in running]
    firsts = [next(iter(row[names[0]])) for row in rows]
    scores = {name: [row[name][first] for row, first in zip(rows, firsts, strict=True)] for name in names}
    more = dict.fromkeys(m for row, first in zip(rows, firsts, strict=True) for m in row[names[0]] if m != first)
    others = {m: {name: [row[name].get(m, math.nan) for row in rows] for name in names} for m in more}
    shown = [row for row in extra if row]  # without test examples there is nothing at all
    for metric, name in shown[0] if shown else ():
        if all((metric, name) in row for row in shown):  # defined for each of the tasks
            others.setdefault(metric, {})[name] = [float(row.get((metric, name), math.nan)) for row in extra]
    return scores, others


class _Tally:
    """Sums on the device of what the scores of several tasks counted."""

    def __init__(self):
        self.total, self.tasks = torch.zeros(0, 0, dtype=torch.int64), {}

    def take(self, task: int, score) -> None:
        """Take a task's counts out of its score: those of many tasks and classes would not fit beside each other."""
        if (counts := getattr(score, "counts", None)) is None:
            return
        grown = max(len(counts) - len(self.total), 0)  # the network may have grown
        self.total = torch.nn.functional.pad(self.total.to(counts.device), (0, grown, 0, grown))
        self.total[: len(counts), : len(counts)] += counts
        self.tasks[task] = torch.stack((counts.diagonal(), counts.sum(1)))
        score.counts = None

    def result(self) -> Counts:
        total = self.total.cpu().numpy()
        used = max((int(part.nonzero()[0].max()) for part in (total.sum(0), total.sum(1)) if part.any()), default=-1)
        tasks = {task: tuple(part.cpu().numpy()) for task, part in self.tasks.items()}
        return Counts(total[: used + 1, : used + 1], tasks)


@torch.no_grad()
def held_out_scores(model, dataset, task: int, batches: Iterable | None = None) -> dict[str, float]:
    """Score ('accuracy', percent) and mean loss of the task in training, on its held-out data by default.

    Args:
        task: the stage of training, whose outputs compete.
        batches: (inputs, labels, ...).
    """
    spec, n = dataset.heads(task + 1)[-1], 0
    score, loss = spec.score(), torch.zeros((), dtype=torch.float64, device=model.device)
    with eval_mode(model):
        for inputs, labels, *_ in dataset.held_out_loader if batches is None else batches:
            outputs = model.predict(inputs, task)
            score.add(outputs, labels)
            loss, n = loss + spec.loss(spec.part(outputs), labels) * len(inputs), n + len(inputs)
    return {"accuracy": next(iter(score.result().values())), "loss": float(loss) / n if n else math.nan}


@torch.no_grad()
def predictions(model, dataset) -> list[dict[str, torch.Tensor]]:
    """What the network answers on the test images that a stream shows, see `Task.decode`: of every task, those not
    trained yet too; nothing on a stream that shows none.
    """
    out, normalize = [], dataset.get_normalization_transform()
    with eval_mode(model):
        for task, spec in enumerate(dataset.tasks):
            if (shown := dataset.shown(task)) is not None:
                out.append(spec.decode(model.predict(normalize(shown[0].to(model.device)), task)))
    return out


@contextmanager
def eval_mode(model) -> Iterator[None]:
    """Eval mode inside; afterwards every part is in the mode it was in (a frozen teacher stays in its own), and the
    random generators are where they were, so that how often one looks does not change what is learned.

    Inside, nothing is learned: `kept_in_evaluation(model)` is a dict for what need not be computed for each batch.
    """
    training, outer = [part for part in model.modules() if part.training], kept_in_evaluation(model)
    model.eval()
    vars(model)[KEPT] = {} if outer is None else outer
    try:
        with preserve_rng():
            yield
    finally:
        if outer is None:
            del vars(model)[KEPT]
        for part in training:
            part.training = True


def kept_in_evaluation(model) -> dict | None:
    """Where a method may keep what stays the same during an evaluation; None outside of one."""
    return vars(model).get(KEPT)
