"""Metrics, measured beside published, and a task's target, where a wrong sign would pass the usual cases."""

import numpy as np
import pytest

from palimpsest.utils.criterion import of_run
from palimpsest.utils.log.mean_accs import summary_row
from palimpsest.utils.metrics import summarise, terms
from palimpsest.utils.record import Evaluation
from tests.utils.test_report import STOPPED, R, a_run, page


def published(tmp_path, matrix=R, **entry):
    return page(a_run(tmp_path, matrix, published={"published": {"class-il": entry}}))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("acc, cells", [(80.0, ["-6.67", "no"]), (70.0, ["+3.33", "no"]), (74.0, ["-0.67", "yes"])])
def test_far_below_is_as_far_as_far_above(tmp_path, acc, cells):
    assert published(tmp_path, acc=acc, std=1.0).row("class-il", "Average")[-2:] == cells


@pytest.mark.usefixtures("undrawn")
def test_forgetting_is_judged_by_its_own_spread(tmp_path):
    entry = {"acc": 75.0, "std": 1.0, "forgetting_chaudhry": 15.0, "forgetting_chaudhry_std": 6.0}
    assert published(tmp_path, **entry).row("class-il", "Forgetting (Chaudhry)")[2:] == [
        "15.00 ± 6.00", "20.00", "+5.00", "yes",
    ]  # fmt: skip
    stopped = published(tmp_path, STOPPED, **entry).row("class-il", "Forgetting (Chaudhry)")
    assert stopped[-1] == "not comparable: not all tasks were trained"


def test_a_baseline_is_the_score_before_any_fine_tuning(tmp_path):
    run = a_run(tmp_path, np.zeros((2, 2)), scenarios=("task-il",), tasks={"seg": "mIoU", "cls": "top-1"})
    others = {"floor": {"task-il": [10.0, 20.0]}}
    rows = [(0, None, [80.0]), (1, 0, [1.0, 2.0]), (1, None, [70.0, 60.0]), (1, None, [78.0, 58.0])]
    run.history = [
        Evaluation(step, task, epoch, {"task-il": scores}, others) for step, (task, epoch, scores) in enumerate(rows)
    ]
    run.config["tolerance"] = 2.5
    seg, cls = of_run(run)
    assert (seg.baseline, seg.achieved, seg.delta) == (80, 78, -2) and (cls.baseline, cls.achieved) == (60, 58)
    assert seg.targets == {"absolute": 77.5, "relative": pytest.approx(78)}
    assert seg.passed == {"absolute": True, "relative": True}
    assert cls.passed == {"absolute": True, "relative": False}  # 58.5 would be enough
    assert seg.kept == pytest.approx(100 * 68 / 70) and cls.kept == pytest.approx(95)


# ---- metrics


def test_a_score_from_before_the_task_was_learned_is_no_best_score():
    R = np.array([[90, 70, 5], [70, 60, 80], [60, 55, 75.0]])  # task 1 was better before it was trained
    for name in ("forgetting", "forgetting_chaudhry"):
        assert terms(R)[name] == pytest.approx([30, 5])


def test_a_run_that_began_at_a_later_task_is_summed_up_over_its_last_row():
    R = np.array([[np.nan, np.nan, np.nan], [10, 80, np.nan], [20, 70, 90.0]])
    assert summarise(R) == {"acc": pytest.approx(60)}


def test_the_row_of_a_run_has_means_over_the_tasks_so_far(tmp_path):
    full = np.array([[90.0, 10, 20], [60, 80, 30], [70, 60, 90]])  # tasks to come were scored too
    row = summary_row(a_run(tmp_path, full), "class-il", {})
    assert [row[f"task{t}"] for t in (1, 2, 3)] == [90, 70, pytest.approx(220 / 3)]
