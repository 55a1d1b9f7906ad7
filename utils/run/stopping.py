"""Who may end a task before its last epoch."""

import math
from typing import Any

import torch

from palimpsest.utils.evaluation import held_out_scores
from palimpsest.utils.record import Experiment, Position


class Stopper:
    """Never ends a task before its time."""

    def begin_task(self) -> None:
        """Called when a task is begun, not where one is entered again."""

    def end_epoch(self, exp: Experiment, at: Position) -> bool:
        """Whether the task ends after this epoch. A stream that wants its curves has the held-out data scored here."""
        if exp.dataset.RECORDS_EPOCHS and exp.dataset.held_out_loader is not None:
            exp.log.end_epoch(at, _held_out(exp, at))
        return False

    def end_task(self, model) -> None:
        """Called after a task's last epoch."""

    def state_dict(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from there."""


class EarlyStopping(Stopper):
    """Ends a task when the held-out score of the current task has not improved for a while, and goes back to the
    weights of the best score, with all that was accumulated up to there (`running_statistics`).

    Args:
        args: `--early_stopping_freq`, `_metric`, `_epsilon`, `_patience`.
    """

    def __init__(self, args):
        self.args = args
        self.begin_task()

    def begin_task(self) -> None:
        self.best, self.waited, self.weights = -math.inf, 0, None

    def end_epoch(self, exp: Experiment, at: Position) -> bool:
        args = self.args
        if (at.epoch + 1) % args.early_stopping_freq:
            return super().end_epoch(exp, at)
        held_out = _held_out(exp, at)
        value = held_out["accuracy"] if args.early_stopping_metric == "accuracy" else -held_out["loss"]
        if value > self.best + args.early_stopping_epsilon:
            self.best, self.waited = value, 0
            self.weights = [tensor.detach().clone() for tensor in _learned(exp.model)]
        else:
            self.waited += 1
        exp.log.end_epoch(at, held_out, kept=self.waited == 0)
        return self.waited >= args.early_stopping_patience

    @torch.no_grad()
    def end_task(self, model) -> None:
        for tensor, best in zip(_learned(model), self.weights or [], strict=False):
            tensor.copy_(best)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state:
            self.best, self.waited, self.weights = state["best"], state["waited"], state["weights"]


def _held_out(exp: Experiment, at: Position) -> dict[str, float]:
    """Held-out score and loss; for a stream that wants its curves also 'training_loss', the same loss of the same
    network on as many training images.
    """
    model, stream = exp.model, exp.dataset
    found = held_out_scores(model, stream, at.task)
    if stream.RECORDS_EPOCHS:
        images = stream.examples(len(stream.held_out_loader.dataset), at.task)
        found["training_loss"] = held_out_scores(model, stream, at.task, images)["loss"]
    return found


def _learned(model) -> list[torch.Tensor]:
    return [*model.parameters(), *model.running_statistics()]


def make_stopper(args) -> Stopper:
    """The stopper that `--fitting_mode` asks for."""
    return EarlyStopping(args) if args.fitting_mode == "early_stopping" else Stopper()
