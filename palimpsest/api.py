"""What `main.py` does, for scripts and notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.utils.errors import UserError
from palimpsest.utils.record import Run
from palimpsest.utils.run.best_args import find_row
from palimpsest.utils.run.config import resolve


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: with all that it wrote, for `palimpsest.load`; None with `disable_log`.
        scores: scenario ('class-il', ...) -> metric ('acc', 'forgetting', ...) -> value, percent where the metric is.
        matrices: scenario -> score matrix R (T, T): row i after training task i, column j the score on task j; nan
            where nothing was evaluated.
        run: everything else that is known of it.
    """

    folder: Path | None
    scores: dict[str, dict[str, float]]
    matrices: dict[str, np.ndarray]
    run: Run


def run(model: str, dataset: str, **options: Any) -> Result | list[Result]:
    """Train a method over a stream, as the command line does.

    Args:
        model, dataset: names, or paths ending in `.py`.
        options: the command line's, by their names there: `buffer_size=200, lr=0.1, load_best_args=True`. A list stands
            for several values, None for an option that is not given.

    Returns:
        The result, or one for each seed where `seeds` are given.

    Raises:
        UserError: what the command line refuses with exit status 2.
        TrainingFailed: the run failed; what was saved before is kept.
    """
    from palimpsest.utils.run.experiment import execute
    from palimpsest.utils.study.seeds import execute_seeds, run_seeds

    argv = ["--model", model, "--dataset", dataset]
    for name, value in options.items():
        if value is None:
            continue
        several = isinstance(value, Sequence) and not isinstance(value, str)
        argv.append(f"--{name}")
        argv += [_word(part) for part in value] if several else [_word(value)]
    config = resolve(argv)
    if config.args.seeds:
        done = run_seeds(config, argv) if config.args.jobs else execute_seeds(config)
        return [_result(run, summary) for run, summary in done]
    return _result(*execute(config))


def load_best_args(model: str, dataset: str, buffer_size: int | None = None) -> dict[str, Any]:
    """The stored hyperparameters of a method on a stream, ready for `run(model, dataset, **these)`.

    Raises:
        UserError: there are none; the line says for what there are.
    """
    return dict(find_row(model, dataset, buffer_size)["args"])


def _word(value: Any) -> str:
    if not isinstance(value, bool | int | float | str | Path | np.generic):
        raise UserError(f"an option cannot be a {type(value).__name__}: give numbers, texts, True and False, or lists")
    return str(int(value)) if isinstance(value, bool | np.bool_) else str(value)


def _result(run: Run, summary: dict[str, dict[str, float]]) -> Result:
    return Result(run.folder, summary, run.matrices, run)
