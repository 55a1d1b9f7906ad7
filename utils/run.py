"""One run as everything outside the training loop sees it: loggers, report, summary tables."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Run:
    """Facts of one run, filled in as it goes.

    Attributes:
        folder: where the run writes; None under `--disable_log`.
        config: every resolved option by name.
        origins: option name -> where its value came from ('command line', 'preset', 'best_args', 'dataset',
        'default').
        matrices: scenario -> score matrix R (T, T) in percent; R[i, j] is the score on task j after training task i,
            nan where nothing was evaluated. Higher is better.
        baselines: scenario -> scores (T,) of the untrained network, or None without `--enable_other_metrics`.
        history: every evaluation in order, those during tasks included.
        losses: (step, mean of each loss term since the last flush, learning rate).
        position: iteration at which this process took the run over from a checkpoint, or None.
        notes: what a reader of the numbers must know (evaluation mode, unsupported scenario, ...).
        environment: package versions, git commit, device, thread count.
        published: the best-args row in use, or None.
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
    notes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    published: dict[str, Any] | None = None
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    baselines: dict[str, np.ndarray | None] = field(default_factory=dict)
    history: list["Evaluation"] = field(default_factory=list)
    losses: list[tuple[int, dict[str, float], float]] = field(default_factory=list)
    position: int | None = None
    seconds: float | None = None


@dataclass
class Evaluation:
    """One evaluation of the network on several tasks.

    Attributes:
        step: training iterations so far, over all tasks.
        task: index of the task being trained (or just trained); -1 for the untrained network.
        epoch: epoch of an evaluation during a task, None at the task's end.
        scores: scenario -> percent on tasks 0..n-1, nan for tasks that were not evaluated.
    """

    step: int
    task: int
    epoch: int | None
    scores: dict[str, list[float]]
