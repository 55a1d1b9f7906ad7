"""Every metric on matrices worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import metrics

NAN = float("nan")
R3 = np.array([[90, NAN, NAN], [95, 60, NAN], [80, 70, 90.0]])


def test_three_tasks_by_hand():
    assert metrics.average_accuracy(R3) == pytest.approx(80)
    assert metrics.average_incremental_accuracy(R3) == pytest.approx((90 + 77.5 + 80) / 3)
    assert metrics.backward_transfer(R3) == pytest.approx(0)  # (80 - 90 + 70 - 60) / 2
    assert metrics.forgetting(R3) == pytest.approx(7.5)  # (95 - 80 + 70 - 70) / 2
    assert metrics.forgetting_chaudhry(R3) == pytest.approx(2.5)  # (95 - 80 + 60 - 70) / 2
    assert metrics.learning_accuracy(R3) == pytest.approx(80)


def test_forward_transfer_by_hand():
    r = np.array([[90, 30, 20], [80, 85, 45], [70, 75, 95.0]])
    assert metrics.forward_transfer(r, np.array([10, 20, 25.0])) == pytest.approx((30 - 20 + 45 - 25) / 2)


def test_min_and_worst_case_accuracy_by_hand():
    history = [(0, [90]), (1, [50, 40]), (1, [70, 80]), (2, [60, 65, 30]), (2, [75, 72, 88])]
    assert metrics.min_accuracy(history) == pytest.approx((50 + 65) / 2)
    assert metrics.worst_case_accuracy(history) == pytest.approx(88 / 3 + 2 / 3 * 57.5)


def test_one_task_has_no_forgetting():
    summary = metrics.summarise(np.array([[87.0]]))
    assert summary == {"acc": 87, "aaa": 87, "la": 87}


def test_a_stopped_run_is_summarised_over_its_tasks():
    r = np.full((5, 5), np.nan)
    r[:3, :3] = R3
    assert metrics.summarise(r)["forgetting"] == pytest.approx(7.5)


def test_a_joint_run_has_accuracy_only():
    r = np.full((3, 3), np.nan)
    r[2] = [90, 80, 70]
    assert metrics.summarise(r) == {"acc": 80}


def test_forward_transfer_needs_a_baseline():
    r = np.array([[90, 30], [80, 85.0]])
    assert "fwt" not in metrics.summarise(r)
    assert metrics.summarise(r, np.array([50, 40.0]))["fwt"] == pytest.approx(-10)


@given(st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), min_size=4, max_size=4))
def test_relations_that_hold_for_every_matrix(rows):
    r = np.array(rows)
    assert metrics.forgetting(r) >= 0
    assert metrics.forgetting(r) >= metrics.forgetting_chaudhry(r) - 1e-9
    assert metrics.forgetting_chaudhry(r) >= -metrics.backward_transfer(r) - 1e-9
