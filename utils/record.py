"""What a run is made of, where it stands, and what is known of it so far."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.utils.panels import Panel

Summary = dict[str, dict[str, float]]  # scenario -> metric -> value


@dataclass
class Run:
    """Facts of one run, filled in as it goes.

    Attributes:
        folder: where the run writes; None under `--disable_log`.
        config: every resolved option by name.
        origins: option name -> where its value came from ('command line', 'config file', 'preset',
        'best_args', 'dataset', 'default').
        matrices: scenario -> score matrix R (T, T) in percent; R[i, j] is the score on task j after training task i,
            nan where nothing was evaluated. Higher is better.
        baselines: scenario -> scores (T,) of the untrained network, or None without `--enable_other_metrics`.
        history: every evaluation in order, those during tasks included.
        points: every any-time evaluation in order: scores on a fixed subset of each task so far, no part of `history`.
        losses: (step, mean of each loss term since the last flush, learning rate).
        shares: names of the terms that are shares, not losses, and drawn apart.
        task_names: how the tasks are called in pictures; by their numbers where there are none.
        tasks: of a vision stream, name of each task -> of its score, in order; empty elsewhere.
        epochs: of a vision stream, a record per epoch: task, epoch, start (steps before it), steps, loss (mean over
            them), kept (early stopping went back to it), and held_out_loss, held_out_score and training_loss (that of
            the task, measured as the held-out one) where there is such a part.
        pictures: of a vision stream, (last task trained, what was said then of the images shown, for each task).
        position: iteration at which this process took the run over from a checkpoint, or None.
        notes: what a reader of the numbers must know (evaluation mode, unsupported scenario, ...).
        environment: package versions, git commit, device, thread count.
        score: name of what R holds: 'accuracy', or 'r2' of a regression stream.
        published: the best-args row in use, or None.
        analysis: a look at the network at the end of the run, None before and under `--disable_log`.
        counts: scenario -> answers by true class at the latest end of a task, empty where tasks have no classes.
        classes: original label and name of every class, by its label in the stream.
        costs: what the run has cost so far; at the end all that timing.yaml has.
        chosen_on: what was seen to choose the options: 'published row', 'command line', 'the first task, held out 10 %,
            8 trials'; 'unknown' of a run that does not say.
        trial: whether the run is there only to choose options, and no result.
        leaks: what the leak detector found, one sentence each beginning with its kind, see `utils.leaks.kinds`.
        marks: exceptions that the method or the stream declares ('batch statistics at test'); in every table.
        group: name shared by the runs of one `--seeds`, None for a single run and under `--disable_log`.
    """

    model_name: str
    dataset_name: str
    setting: str
    n_tasks: int
    seed: int
    config: dict[str, Any]
    origins: dict[str, str]
    results_path: Path
    folder: Path | None = None
    parameters: int = 0
    score: str = "accuracy"
    shares: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    published: dict[str, Any] | None = None
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    baselines: dict[str, np.ndarray | None] = field(default_factory=dict)
    history: list["Evaluation"] = field(default_factory=list)
    points: list["Evaluation"] = field(default_factory=list)
    losses: list[tuple[int, dict[str, float], float]] = field(default_factory=list)
    task_names: list[str] = field(default_factory=list)
    tasks: dict[str, str] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    position: int | None = None
    seconds: float | None = None
    analysis: "Analysis | None" = None
    counts: dict[str, "Counts"] = field(default_factory=dict)
    classes: list[tuple[int, str]] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)
    chosen_on: str = "unknown"
    trial: bool = False
    leaks: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    group: str | None = None


@dataclass
class Position:
    """A place in the stream: `batch` batches of `epoch` of `task` are done, `step` iterations in all; `inside` a task
    that began.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    inside: bool = False

    def move(self) -> None:
        """One batch further."""
        self.batch += 1
        self.step += 1
        self.inside = True

    def leave_task(self) -> None:
        """Before the next task."""
        self.task, self.epoch, self.batch, self.inside = self.task + 1, 0, 0, False


@dataclass
class Experiment:
    """Everything a run is made of, built and not yet started.

    Attributes:
        model: the method, a `ContinualModel`.
        dataset: the stream.
        args: resolved options.
        log: who listens, a `utils.log.events.Log`; `run` is its record.
        stopper: who may end a task before its last epoch, a `utils.run.stopping.Stopper`.
        meter: what the run spends, a `utils.run.measure.meter.Meter`.
        points: the any-time evaluation, a `utils.run.measure.points.Points`.
    """

    model: Any
    dataset: Any
    args: Any
    log: Any
    stopper: Any
    meter: Any
    points: Any

    @property
    def run(self) -> Run:
        return self.log.run


@dataclass
class Evaluation:
    """One evaluation of the network on several tasks.

    Attributes:
        step: training iterations so far, over all tasks.
        task: index of the task being trained (or just trained); -1 for the untrained network.
        epoch: epoch of an evaluation during a task, None at the task's end.
        scores: scenario -> percent on tasks 0..n-1, nan for tasks that were not evaluated.
        others: metric -> scenario -> values on the same tasks, for what a stream measures besides (perplexity).
    """

    step: int
    task: int
    epoch: int | None
    scores: dict[str, list[float]]
    others: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def seen_mean(self, scores: list[float]) -> float:
        """Mean score over the tasks up to the one being trained, or over all where none is; nan without any score."""
        seen = np.asarray(scores[: self.task + 1] if self.task >= 0 else scores, dtype=np.float64)
        return float(np.nanmean(seen)) if not np.isnan(seen).all() else nan

    def values(self, score: str) -> Iterator[tuple[str, str, int, float]]:
        """(metric, scenario, task, value) of everything that is defined; `score` is the name of what `scores` holds."""
        for metric, scenarios in {score: self.scores, **self.others}.items():
            for scenario, values in scenarios.items():
                for task, value in enumerate(values):
                    if not isnan(value):
                        yield metric, scenario, task, float(value)


@dataclass
class Counts:
    """Test examples by true class and answer, of one evaluation in one scenario.

    Attributes:
        confusion: (C, C), row the true class, column the answer.
        tasks: task -> (right answers (N,), examples (N,)) by true class.
    """

    confusion: np.ndarray
    tasks: dict[int, tuple[np.ndarray, np.ndarray]]


@dataclass
class Analysis:
    """What became of the network, as far as it can be told of this method and this stream; None otherwise.

    Attributes:
        costs: what does not depend on a clock: parameters, bytes by what they are for, floating-point operations.
        confusion: (C, C) counts, row the true class, column the predicted one, over the classes of the tasks trained.
        numbers, panels: those of `ContinualModel.report`.
        figures: (file name, what it shows, matplotlib Figure, whether it is wide) of the stream's pictures.
    """

    costs: dict[str, int]
    confusion: np.ndarray | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    figures: list[tuple[str, str, Any, bool]] = field(default_factory=list)
