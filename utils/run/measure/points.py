"""Any-time evaluation: every so many iterations the score on a fixed part of the test data of each task so far.

De Lange et al. 2023, arXiv 2205.13452: between the ends of tasks a network can be far worse than at them. These points
are no part of the score matrix and of no curve with whole evaluations: they have a list of their own.
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import EvalLoader, Split
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import Scores, eval_mode, evaluate, scenarios
from palimpsest.utils.randomness import permutation
from palimpsest.utils.record import Evaluation, Experiment, Position
from palimpsest.utils.run.measure.flops import FlopCounter
from palimpsest.utils.run.measure.meter import COMPILED

SHARE = 0.05  # of the operations of training, what the points of `--eval_every auto` may take
KEPT = 1 << 26  # bytes of network inputs that are kept from one point to the next


class Points:
    """Takes the points of a run: during tasks, and one at the end of each.

    Args:
        args: resolved options, None for no points.

    Attributes:
        on: whether there are any.
        every: iterations between two points; 0 for none during tasks, None before it was chosen.
    """

    def __init__(self, args: Any = None):
        asked = getattr(args, "eval_every", None)
        if asked == "auto" and args.compile:
            raise UserError(f"--eval_every without a number: {COMPILED}: give a number of iterations")
        self.on = asked is not None
        self.every: int | None = None if asked == "auto" else asked
        self.subsets: list[EvalLoader] = []
        self.inputs: list[Tensor] = []  # those of the subsets, where all are small
        self.labels: list[Tensor] = []

    def due(self, exp: Experiment, at: Position) -> bool:
        """Whether a point is taken after this iteration. Where one has to find out what it costs, the first is taken
        after the first step whose operations were counted.
        """
        if not self.on:
            return False
        if self.every is None:
            return exp.meter.spent["per_step"] is not None
        return self.every > 0 and at.step % self.every == 0

    def evaluate(self, exp: Experiment, at: Position, epoch: int | None = None) -> None:
        """Take a point: score the tasks so far; note it in the run, tell the log.

        Args:
            epoch: None at a task's end.
        """
        trained = exp.dataset.stages[at.task][-1]
        with exp.meter.clock("points"):
            self._extend(exp, trained)
            if self.every is None and epoch is not None:
                with FlopCounter() as counter:
                    scores = self._scores(exp, trained)
                self.every = self._interval(exp, counter.total, trained + 1)
            else:
                scores = self._scores(exp, trained)
        point = Evaluation(at.step, trained, epoch, scores)
        exp.run.points.append(point)
        exp.log.point_taken(point)

    def _interval(self, exp: Experiment, flops: int, n_tasks: int) -> int:
        """Iterations between two points, when one over so many tasks takes so many operations: at the last task of the
        stream they take `SHARE` of the training.
        """
        most = flops * exp.dataset.EVAL_TASKS / n_tasks
        per_step = exp.meter.spent["per_step"]
        return math.ceil(most / (SHARE * per_step)) if per_step else 0

    def _scores(self, exp: Experiment, trained: int) -> Scores:
        """Scenario -> the score on the subset of each task up to the one trained last; in one pass where the prediction
        does not ask for the task.
        """
        model, stream = exp.model, exp.dataset
        if not self.inputs:
            view = SimpleNamespace(SETTING=stream.SETTING, tasks=stream.tasks, test_loaders=self.subsets)
            return evaluate(model, view, range(trained + 1), trained)[0]
        names, last, out = scenarios(model, stream), stream.tasks[trained], {}
        sizes = [len(labels) for labels in self.labels]
        with eval_mode(model), torch.no_grad():
            parts = torch.cat(self.inputs).split(exp.args.eval_batch_size)
            outputs = torch.cat([model.predict(part, trained) for part in parts]).split(sizes)
        for name in names:
            scores = [task.score(last if name == "class-il" else None) for task in stream.tasks[: trained + 1]]
            for score, logits, labels in zip(scores, outputs, self.labels, strict=True):
                score.add(logits, labels)
            out[name] = [next(iter(score.result().values())) for score in scores]
        return out

    def _extend(self, exp: Experiment, trained: int) -> None:
        """Choose the subsets of the tasks up to the one trained last."""
        stream, model, size = exp.dataset, exp.model, exp.args.eval_subset
        small = 4 * math.prod(stream.SIZE) * size * stream.EVAL_TASKS <= KEPT
        kept = small and stream.MIXED and asks_for_no_task(model)
        for task in range(len(self.subsets), trained + 1):
            loader = subset_of(stream.test_loaders[task], size, stream.seed, task)
            self.subsets.append(loader)
            batches = [*loader] if kept else []
            if batches:
                self.inputs.append(torch.cat([inputs for inputs, _ in batches]))
                self.labels.append(torch.cat([labels for _, labels in batches]))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the subsets are functions of the seed."""
        return {"every": self.every}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            TypeError: it is not what `state_dict` returns.
        """
        every = state["every"]
        if every is not None and (type(every) is not int or every < 0):
            raise TypeError(f"points every {every!r} iterations")
        if self.on:
            self.every = self.every if every is None else every


def asks_for_no_task(model: ContinualModel) -> bool:
    """Whether examples of several tasks can be predicted together: the method does it as methods do by default, and the
    network has one answer for all tasks.
    """
    own = any(getattr(type(model), name) is not getattr(ContinualModel, name) for name in ("predict", "evaluate_batch"))
    return not (own or model._wants_task or model.dataset.tasks[0].branch)


def subset_of(loader: EvalLoader, size: int, seed: int, task: int) -> EvalLoader:
    """A loader of `size` of a loader's examples, all where there are no more: of every class its share, to one example,
    drawn by the seed; equally spaced where labels are not one number per example, or lie on the disk.

    Raises:
        UserError: a stream's own loader, of which no part can be taken.
    """
    if not isinstance(loader, EvalLoader):
        raise UserError(f"--eval_every: no part can be taken of a {type(loader).__name__}: drop the option")
    data = loader.dataset
    n, rows = len(data), data.rows
    if n > size:
        targets = data.targets if isinstance(data.source, Split) else None
        order = torch.arange(n)
        if targets is not None and targets.dim() == 1 and not targets.is_floating_point():
            order = permutation(n, seed, "points", task)
            order = order[targets.cpu()[order].argsort(stable=True)]
        rows = rows[order[torch.arange(size) * n // size].sort().values.to(rows.device)]
    return EvalLoader(data.source, rows, loader.batch_size, data.transform, loader.device)
