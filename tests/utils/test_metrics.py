"""Every metric on matrices worked by hand, scores in percent."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.utils import metrics
from palimpsest.utils.metrics import summarise

NAN = float("nan")
R3 = np.array([[90, NAN, NAN], [95, 60, NAN], [80, 70, 90.0]])
EX1 = np.array([[90, 10, 5], [70, 80, 15], [60, 75, 85.0]])  # forgets
EX2 = np.array([[90, 10, 5], [95, 80, 15], [97, 75, 85.0]])  # the first task gains later
EX3 = [(0, [90]), (1, [40, 50]), (1, [70, 80]), (2, [50, 60, 60]), (2, [60, 75, 85])]  # ends as EX1


def placed(rows, n):
    """Rows in the matrix of a stream of n tasks: those that were trained."""
    R = np.full((n, n), NAN)
    for t, row in rows.items():
        R[t, : len(row)] = row
    return R


@pytest.mark.parametrize("R, baseline, history, expected", [
    (R3, None, (), {"acc": 80, "aaa": (90 + 77.5 + 80) / 3, "bwt": 0, "forgetting": (15 + 0) / 2,
                    "forgetting_chaudhry": (15 - 10) / 2, "stability": 97.5, "la": 80}),
    (EX1, np.array([10, 8, 7.0]), (), {
        "acc": 73.33333333, "bwt": -17.5, "fwt": 5, "forgetting": 17.5, "forgetting_chaudhry": 17.5,
        "stability": 82.5, "la": 85, "aaa": 79.44444444}),
    (EX1, None, EX3, {
        "acc": 73.33333333, "bwt": -17.5, "forgetting": 17.5, "forgetting_chaudhry": 17.5, "stability": 82.5, "la": 85,
        "aaa": 79.44444444, "anytime": (90 + 45 + 75 + 56.666667 + 73.333333) / 5, "min_acc": (40 + 60) / 2,
        "wc_acc": 85 / 3 + 2 / 3 * 50, "wf10": (50 + 20 + 0) / 3, "wp10": (30 + 30 + 25) / 3}),
    (np.array([[87.0]]), np.array([50.0]), (), {"acc": 87, "aaa": 87, "la": 87}),  # neither transfer nor forgetting
    (placed({2: [90, 80, 70]}, 3), None, (), {"acc": 80}),  # joint training
    (placed(dict(enumerate(R3)), 5), None, (), summarise(R3)),  # stopped after three tasks
])  # fmt: skip
def test_a_whole_run_by_hand(R, baseline, history, expected):
    assert summarise(R, baseline, history) == pytest.approx(expected)


def test_a_task_that_gains_later_has_a_negative_term_in_one_kind_of_forgetting():
    terms = metrics.terms(EX2)
    assert terms["forgetting_chaudhry"] == pytest.approx([-2, 5]) and terms["forgetting"] == pytest.approx([0, 5])
    assert summarise(EX2)["bwt"] == pytest.approx(1)


def test_intransigence_by_hand():
    assert metrics.intransigence(EX1, np.array([91, 86, 90.0])) == pytest.approx((1 + 6 + 5) / 3)


def test_windows_by_hand():
    # Task 0: 90 40 70 50 60; task 1: 50 80 60 75; task 2: 60 85.
    assert metrics.windowed_terms(EX3, 2, falling=True).tolist() == [50, 20, 0]
    assert metrics.windowed_terms(EX3, 2, falling=False).tolist() == [30, 30, 25]
    assert metrics.windowed_terms(EX3, 5, falling=False).tolist() == [30, 30, 25]
    slow = [(0, [100.0 - 10 * k]) for k in range(5)]
    assert [metrics.windowed_terms(slow, w, falling=True).item() for w in (1, 2, 3, 10)] == [0, 10, 20, 40]


def test_undefined_terms_are_left_out_and_counted():
    r = EX1.copy()
    r[0, 1] = np.nan  # task 1 cannot be scored before it is trained, nor is there a head for it untrained
    baseline = np.array([10, np.nan, 7])
    assert summarise(r, baseline)["fwt"] == pytest.approx(15 - 7)
    assert metrics.excluded(r, baseline) == {"fwt": 1}
    r[2, 0] = np.nan  # task 0 is not scored at the end
    summary = summarise(r, baseline)
    assert summary["acc"] == pytest.approx(80) and summary["bwt"] == pytest.approx(-5)
    assert summary["aaa"] == pytest.approx((90 + 75) / 2)
    left_out = {"acc": 1, "aaa": 1, "bwt": 1, "forgetting": 1, "forgetting_chaudhry": 1, "stability": 1, "fwt": 1}
    assert metrics.excluded(r, baseline) == left_out
    assert "fwt" not in summarise(r, np.full(3, np.nan))
    assert metrics.excluded(EX1, np.array([10, 8, 7.0])) == metrics.excluded(np.full((2, 2), np.nan)) == {}


@given(st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), min_size=4, max_size=4))
def test_relations_that_hold_for_every_matrix(rows):
    found = summarise(np.array(rows))
    assert found["forgetting"] >= 0
    assert found["forgetting"] >= found["forgetting_chaudhry"] - 1e-9
    assert found["forgetting_chaudhry"] >= -found["bwt"] - 1e-9


def test_the_page_shows_the_table():
    page = Path(__file__).parents[2] / "docs" / "results.md"
    assert metrics.markdown_table() in page.read_text(encoding="utf-8")


def test_the_points_of_a_switch_by_hand():
    """The example of De Lange et al. 2023 in two tasks: 90 before the switch, 40, 60 and 85 after it, 80 on task 2."""
    history, steps = [(0, [50]), (0, [90]), (1, [40, 10]), (1, [60, 50]), (1, [85, 80])], [5, 10, 15, 20, 25]
    R = placed({0: [90], 1: [85, 80]}, 2)
    found = summarise(R, None, history, steps)
    assert (found["min_acc"], found["wc_acc"], found["stability_gap"]) == (40, 60, 50)
    assert found["recovery"] == 15  # 0.95 * 85 is reached at 25, the switch was at 10
    assert found["anytime"] == pytest.approx((50 + 90 + 25 + 55 + 82.5) / 5)
    # Without scores after every task, what needs R is undefined, and what follows from the points is not.
    missing = placed({1: [85, 80]}, 2)
    found = summarise(missing, None, history, steps)
    assert found.keys() == {"acc", "anytime", "wf10", "wp10", "min_acc", "wc_acc", "stability_gap", "recovery"}
    assert metrics.reason("la", missing, None, history, steps) == "needs a score after every task"
    assert metrics.reason("recovery", R, None, history) == "needs --eval_every"


def test_a_gap_at_each_switch():
    # Task 0: 80 before, 70 at once, 60, then 75; 76 would be 95 % of 80. Task 1: 50 before, never lower afterwards.
    history = [(0, [80]), (1, [70, 0]), (1, [60, 20]), (1, [75, 50]), (2, [10, 55, 0]), (2, [NAN, 60, 90])]
    steps = [100, 110, 120, 130, 140, 150]
    found = metrics.terms(placed({}, 3), None, history, steps)
    assert found["stability_gap"].tolist() == [20, -5]
    assert found["recovery"].tolist() == [30, 20]  # 0.95 * 75 = 71.25; 0.95 * 60 = 57
    assert metrics.terms(placed({}, 2), None, [(0, [80])], [10])["anytime"] == 80
