"""What a `Trainer` learns of the training loop: the means of an epoch's losses, its held-out scores, when to stop."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.log.events import Log
from palimpsest.utils.record import Experiment, Position, Run
from palimpsest.utils.run.stopping import EarlyStopping


class MeanLosses(Log):
    """The mean of each loss term over an epoch, added up on the device.

    Args:
        run: as the log's.
        bar: whether a progress bar is shown, where stderr is a terminal.
        store: called after each step.
    """

    def __init__(self, run: Run, bar: bool, store: Callable[[], None]):
        super().__init__(run, bar)
        self.store = store

    def begin_epoch(self, at: Position) -> None:
        self.totals: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.held_out: dict[str, Any] = {}

    def step(self, losses: Any, at: Position) -> None:
        for name, value in (losses if isinstance(losses, dict) else {"loss": losses}).items():
            value = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            self.totals[name] = self.totals.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self._bar.update()
        self.store()

    def end_epoch(self, at: Position, held_out: dict[str, float], kept: bool = False) -> None:
        self.held_out = {"val_loss": held_out["loss"], "kept": kept}

    def means(self, at: Position) -> dict[str, float]:
        """Term -> mean.

        Raises:
            UserError: there was no batch.
            TrainingFailed: a mean is not finite.
        """
        if not self.totals:
            raise UserError(f"the loader of task {at.task} gives no batch in epoch {at.epoch}: is it read only once?")
        means = {name: float(total) / self.counts[name] for name, total in self.totals.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise TrainingFailed(f"{bad[0]} is {means[bad[0]]} in epoch {at.epoch} of task {at.task}: try a smaller lr")
        self._bar.set_postfix(loss=f"{means.get('loss', math.nan):.3f}")
        return means


class Epochs(EarlyStopping):
    """Notes what is known of each epoch and calls back; stops a task early where the configuration says so.

    Args:
        args: those of `EarlyStopping`, and `fitting_mode`.
        score: task -> {scenario: percent} on the validation data; None where there are none.
        callback: is told the epoch's facts.

    Attributes:
        facts: of each epoch.
    """

    def __init__(self, args, score: Callable[[int], dict[str, float]] | None, callback: Callable[[dict], None]):
        super().__init__(args)
        self.score, self.callback = score, callback
        self.facts: list[dict[str, Any]] = []

    def end_epoch(self, exp: Experiment, at: Position) -> bool:
        facts = {"epoch": at.epoch, **exp.log.means(at)}
        stop = self.args.fitting_mode == "early_stopping" and super().end_epoch(exp, at)
        if self.score is not None:
            facts |= {"val": self.score(at.task), **exp.log.held_out}
        self.facts.append(facts)
        self.callback(facts)
        return stop
