"""Metrics where a bug would not show on a matrix that only falls."""

import numpy as np
import pytest

from utils.metrics import summarise, terms

NAN = float("nan")


def test_a_score_from_before_the_task_was_learned_is_no_best_score():
    R = np.array([[90, 70, 5], [70, 60, 80], [60, 55, 75.0]])  # task 1 was better before it was trained
    for name in ("forgetting", "forgetting_chaudhry"):
        assert terms(R)[name] == pytest.approx([30, 5])


def test_a_run_that_began_at_a_later_task_is_summed_up_over_its_last_row():
    R = np.array([[NAN, NAN, NAN], [10, 80, NAN], [20, 70, 90.0]])
    assert summarise(R) == {"acc": pytest.approx(60)}
