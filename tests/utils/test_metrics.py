"""Every metric on matrices worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import metrics

ROOT = Path(__file__).parents[2]
NAN = float("nan")
R3 = np.array([[90, NAN, NAN], [95, 60, NAN], [80, 70, 90.0]])


def test_three_tasks_by_hand():
    assert metrics.compute("acc", R3) == pytest.approx(80)
    assert metrics.compute("aaa", R3) == pytest.approx((90 + 77.5 + 80) / 3)
    assert metrics.compute("bwt", R3) == pytest.approx(0)  # (80 - 90 + 70 - 60) / 2
    assert metrics.compute("forgetting", R3) == pytest.approx(7.5)  # (95 - 80 + 70 - 70) / 2
    assert metrics.compute("forgetting_chaudhry", R3) == pytest.approx(2.5)  # (95 - 80 + 60 - 70) / 2
    assert metrics.compute("la", R3) == pytest.approx(80)


def test_forward_transfer_by_hand():
    r = np.array([[90, 30, 20], [80, 85, 45], [70, 75, 95.0]])
    assert metrics.compute("fwt", r, np.array([10, 20, 25.0])) == pytest.approx((30 - 20 + 45 - 25) / 2)


def test_min_and_worst_case_accuracy_by_hand():
    history = [(0, [90]), (1, [50, 40]), (1, [70, 80]), (2, [60, 65, 30]), (2, [75, 72, 88])]
    assert metrics.compute("min_acc", EX1, history=history) == pytest.approx((50 + 65) / 2)
    assert metrics.compute("wc_acc", R3, history=history) == pytest.approx(88 / 3 + 2 / 3 * 57.5)


# Three worked examples, scores in percent.
EX1 = np.array([[90, 10, 5], [70, 80, 15], [60, 75, 85.0]])
EX2 = np.array([[90, 10, 5], [95, 80, 15], [97, 75, 85.0]])
EX3 = [(0, [90]), (1, [40, 50]), (1, [70, 80]), (2, [50, 60, 60]), (2, [60, 75, 85])]


def test_a_run_that_forgets():
    summary = metrics.summarise(EX1, np.array([10, 8, 7.0]))
    assert summary == pytest.approx({
        "acc": 73.33333333, "bwt": -17.5, "fwt": 5, "forgetting": 17.5, "forgetting_chaudhry": 17.5,
        "stability": 82.5, "la": 85, "aaa": 79.44444444,
    })  # fmt: skip
    assert metrics.intransigence(EX1, np.array([91, 86, 90.0])) == pytest.approx((1 + 6 + 5) / 3)
    assert metrics.compute("stability", EX1) == pytest.approx(82.5)


def test_a_run_in_which_a_task_gains_later():
    assert metrics.terms(EX2)["forgetting_chaudhry"] == pytest.approx([-2, 5])
    assert metrics.compute("forgetting_chaudhry", EX2) == pytest.approx(1.5)
    assert metrics.terms(EX2)["forgetting"] == pytest.approx([0, 5])
    assert metrics.compute("forgetting", EX2) == pytest.approx(2.5)
    assert metrics.compute("bwt", EX2) == pytest.approx(1)


def test_evaluations_during_tasks():
    assert metrics.compute("min_acc", EX1, history=EX3) == pytest.approx((40 + 60) / 2)
    assert metrics.compute("wc_acc", EX1, history=EX3) == pytest.approx(61.6666667)
    assert metrics.compute("anytime", EX1, history=EX3) == pytest.approx((90 + 45 + 75 + 56.666667 + 73.333333) / 5)
    ends = np.array([[90, 10, 5], [70, 80, 15], [60, 75, 85.0]])
    summary = metrics.summarise(ends, history=EX3)
    assert summary["anytime"] == pytest.approx(68) and summary["aaa"] == pytest.approx(79.4444444)
    assert summary["min_acc"] == pytest.approx(50) and summary["wc_acc"] == pytest.approx(61.6666667)


def test_windows_by_hand():
    # Task 0: 90 40 70 50 60; task 1: 50 80 60 75; task 2: 60 85.
    assert metrics.windowed_terms(EX3, 2, falling=True).tolist() == [50, 20, 0]
    assert metrics.windowed_terms(EX3, 2, falling=False).tolist() == [30, 30, 25]
    assert metrics.windowed_terms(EX3, 5, falling=False).tolist() == [30, 30, 25]
    assert metrics.compute("wf10", EX1, history=EX3) == pytest.approx((50 + 20 + 0) / 3)
    slow = [(0, [100.0 - 10 * k]) for k in range(5)]
    assert [metrics.windowed_terms(slow, w, falling=True).item() for w in (1, 2, 3, 10)] == [0, 10, 20, 40]


def test_undefined_terms_are_left_out_and_counted():
    r = EX1.copy()
    r[0, 1] = np.nan  # task 1 cannot be scored before it is trained, nor is there a head for it untrained
    baseline = np.array([10, np.nan, 7])
    assert metrics.summarise(r, baseline)["fwt"] == pytest.approx(15 - 7)
    assert metrics.excluded(r, baseline) == {"fwt": 1}
    r[2, 0] = np.nan  # task 0 is not scored at the end
    summary = metrics.summarise(r, baseline)
    assert summary["acc"] == pytest.approx(80) and summary["bwt"] == pytest.approx(-5)
    assert summary["aaa"] == pytest.approx((90 + 75) / 2)
    left_out = {"acc": 1, "aaa": 1, "bwt": 1, "forgetting": 1, "forgetting_chaudhry": 1, "stability": 1, "fwt": 1}
    assert metrics.excluded(r, baseline) == left_out
    assert "fwt" not in metrics.summarise(r, np.full(3, np.nan))
    assert metrics.excluded(EX1, np.array([10, 8, 7.0])) == metrics.excluded(np.full((2, 2), np.nan)) == {}


def test_one_task_has_neither_transfer_nor_forgetting():
    summary = metrics.summarise(np.array([[87.0]]), np.array([50.0]))
    assert summary == {"acc": 87, "aaa": 87, "la": 87}
    assert np.isnan([metrics.compute("bwt", EX1[:1, :1]), metrics.compute("forgetting", EX1[:1, :1])]).all()


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
    assert metrics.compute("forgetting", r) >= 0
    assert metrics.compute("forgetting", r) >= metrics.compute("forgetting_chaudhry", r) - 1e-9
    assert metrics.compute("forgetting_chaudhry", r) >= -metrics.compute("bwt", r) - 1e-9


def test_the_page_shows_the_table():
    assert metrics.markdown_table() in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
