"""Who listens to the training loop: the record of the run, the loggers, the progress bar, the checkpoints."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from palimpsest.utils.errors import TrainingFailed
from palimpsest.utils.record import Evaluation, Experiment, Position, Run, Summary

FLUSH_EVERY = 50  # iterations between two looks at the losses; only then does the loop wait for the device


class Logger:
    """Ignores every event; a logger overrides those it writes down."""

    def run_started(self, run: Run) -> None:
        """Called once before training; a resumed run comes with its history."""

    def task_started(self, exp: Experiment, at: Position, done: int, steps: int | None) -> None:
        """Called before a task's batches: `steps` of them, None where that is not known, of which `done` were
        trained on before the run was taken up again.
        """

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Called every few iterations with the means of the loss terms since the last call."""

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """Called after every evaluation; `run.matrices` and `run.history` hold it already."""

    def point_taken(self, run: Run, point: Evaluation) -> None:
        """Called after every any-time evaluation; `run.points` holds it already."""

    def saving(self, run: Run) -> None:
        """Called before a checkpoint is written: what was logged so far must be on its way to the disk."""

    def run_ended(self, run: Run, summary: Summary) -> None:
        """Called once, with the metrics of each scenario."""

    def run_stopped(self, run: Run, error: BaseException) -> None:
        """Called in place of `run_ended` when training ends before its end."""


class Log:
    """What the training loop tells, in the order of its events, handed on to those who want to know.

    Losses stay on the device and are looked at every `FLUSH_EVERY` steps: means go to `run.losses`, the loggers and the
    bar. On a stream with `RECORDS_EPOCHS` the mean loss of every epoch goes to `run.epochs`, complete once its last
    step was looked at.

    Args:
        run: the record that is filled in.
        bar: whether a progress bar is shown, where stderr is a terminal.

    Attributes:
        loggers: see `Logger`.
        after_step, after_task: called with the position reached (checkpoints).
    """

    def __init__(self, run: Run, bar: bool = False):
        self.run, self.loggers, self.pending, self.bar = run, [], [], bar
        self.after_step: Callable[[Position], None] | None = None
        self.after_task: Callable[[Position], None] | None = None

    @contextmanager
    def progress(self, exp: Experiment, at: Position, plan: list[int]) -> Iterator[None]:
        """Within: a task is trained, of `plan` batches in each epoch."""
        self._model, self._records = exp.model, exp.dataset.RECORDS_EPOCHS
        total = sum(plan) if plan[0] < sys.maxsize else None
        done = sum(plan[: at.epoch]) + at.batch
        for logger in self.loggers:
            logger.task_started(exp, at, done, total)
        name = f"task {at.task + 1}/{exp.dataset.N_TASKS}"
        hidden = None if self.bar else True  # None: hidden where stderr is no terminal
        self._bar = tqdm(total=total, initial=done, desc=name, disable=hidden, unit="it", leave=False)
        try:
            yield
            self.flush(at)
        finally:
            self._bar.close()

    def begin_epoch(self, at: Position) -> None:
        """Start the record of an epoch."""
        if self._records:
            record = {"task": at.task, "epoch": at.epoch, "start": at.step, "steps": 0, "loss": 0.0, "kept": False}
            self.run.epochs.append(record)

    def step(self, losses: Any, at: Position) -> None:
        """Note the result of one `observe`: tensor, float or dict with 'loss'."""
        losses = losses if isinstance(losses, dict) else {"loss": losses}
        losses = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in losses.items()}
        self.pending.append(losses)
        if len(self.pending) == FLUSH_EVERY:
            self.flush(at)
        if self.after_step:
            self.after_step(at)

    def end_epoch(self, at: Position, held_out: dict[str, float], kept: bool = False) -> None:
        """Note the held-out scores after the latest epoch, and whether its weights are the best so far."""
        records = [record for record in self.run.epochs if record["task"] == at.task]
        if records:
            records[-1] |= {"held_out_loss": held_out["loss"], "held_out_score": held_out["accuracy"]}
            records[-1] |= {"training_loss": held_out["training_loss"]}
        if records and kept:
            for record in records:
                record["kept"] = record is records[-1]

    def evaluated(self, evaluation: Evaluation) -> None:
        """An evaluation is in the run's history and matrices."""
        for logger in self.loggers:
            logger.task_evaluated(self.run, evaluation)

    def point_taken(self, point: Evaluation) -> None:
        """An any-time evaluation is in the run's points."""
        for logger in self.loggers:
            logger.point_taken(self.run, point)

    def end_task(self, at: Position) -> None:
        """A task is trained and evaluated; `at` is before the next one."""
        if self.after_task:
            self.after_task(at)

    def on_host(self, at: Position) -> list[dict[str, float]]:
        """The losses since the last flush as numbers; waits for the device.

        Raises:
            TrainingFailed: one of them is not finite; names the step, the task and the terms.
        """
        rows = [{name: v for name, v in row.items() if v is not None} for row in self.pending]
        tensors = [v for row in rows for v in row.values() if isinstance(v, torch.Tensor)]
        values = iter(torch.stack([v.float() for v in tensors]).tolist() if tensors else ())
        rows = [{n: next(values) if isinstance(v, torch.Tensor) else float(v) for n, v in row.items()} for row in rows]
        for step, row in enumerate(rows, at.step - len(rows) + 1):
            if not all(map(math.isfinite, row.values())):
                first = next(name for name, value in row.items() if not math.isfinite(value))
                terms = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                raise TrainingFailed(
                    f"{first} is {row[first]} at step {step} (task {at.task}; {terms}): try a smaller learning rate"
                )
        return rows

    def flush(self, at: Position) -> None:
        """Bring the losses to the host; the only place where training waits for the device."""
        rows = self.on_host(at)
        if not rows:
            return
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
        self._bar.update(len(rows))
        self._bar.set_postfix(loss=f"{means.get('loss', float('nan')):.3f}", refresh=False)
        self.pending = []
        if self._records:
            self._note(rows, at.step - len(rows))
        lr = self._model.opt.param_groups[0]["lr"] if self._model.opt is not None else 0.0
        self.run.losses.append((at.step, means, lr))
        for logger in self.loggers:
            logger.step(at.step, means, lr)

    def _note(self, rows: list[dict[str, float]], start: int) -> None:
        """Take the losses of the latest steps into the mean of each one's epoch, one by one: the mean does not depend
        on when they are looked at.
        """
        for step, row in enumerate(rows, start):
            record = next((e for e in reversed(self.run.epochs) if e["start"] <= step), None)
            if record and "loss" in row:
                record["steps"] += 1
                record["loss"] += (row["loss"] - record["loss"]) / record["steps"]
