"""What every logger is: the events of a run that it may write down."""

import numpy as np

from utils.record import Evaluation, Run

Summary = dict[str, dict[str, float]]


class Logger:
    """Ignores every event; a logger overrides those it writes down."""

    def run_started(self, run: Run) -> None:
        """Called once before training; a resumed run comes with its history."""

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Called every few iterations with the means of the loss terms since the last call."""

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """Called after every evaluation; `run.matrices` and `run.history` hold it already."""

    def saving(self, run: Run) -> None:
        """Called before a checkpoint is written: what was logged so far must be on its way to the disk."""

    def run_ended(self, run: Run, summary: Summary) -> None:
        """Called once, with the metrics of each scenario."""

    def run_stopped(self, run: Run, error: BaseException) -> None:
        """Called in place of `run_ended` when training ends before its end."""


def seen_mean(scores: list[float], trained: int) -> float:
    """Mean score over the tasks up to the one being trained, or over all where none is; nan without any score."""
    seen = np.asarray(scores[: trained + 1] if trained >= 0 else scores, dtype=np.float64)
    return float(np.nanmean(seen)) if not np.isnan(seen).all() else float("nan")
