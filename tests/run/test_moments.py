"""When a network is scored: each moment once, whatever ends a task."""

from collections import Counter

import pytest

from palimpsest.utils.log.report import summarise_run
from tests.models.helpers import finished


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ("--eval_epochs 2 --n_epochs 4", [1, None]),
        ("--eval_epochs 1 --n_epochs 1", [None]),
        ("--eval_epochs 1 --fitting_mode iters --n_iters 12", [0, None]),  # the second epoch is cut short
        ("--eval_epochs 1 --n_epochs 9 --fitting_mode early_stopping --holdout 9 --early_stopping_patience 1 --lr 1e-9",
         [0, None]),
    ],
)  # fmt: skip
def test_a_task_is_scored_once_at_its_end(options, epochs):
    run = finished("sgd", *options.split(), "--stop_after", "2", "--enable_other_metrics").run
    assert [e.epoch for e in run.history] == epochs * 2
    rows = Counter((e.step, *key) for e in run.history for *key, _ in e.values("accuracy"))
    assert set(rows.values()) == {1}
    assert "anytime" in summarise_run(run)["class-il"]  # which was asked for, if only by the tasks' ends
