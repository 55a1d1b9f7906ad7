"""Leaks planted in small method files are found: in a run, and by `--check`. None of our own methods has one."""

from pathlib import Path

import pytest

from palimpsest.utils import registry
from palimpsest.utils.check import leaks
from palimpsest.utils.check.cases import Case, cases
from palimpsest.utils.check.conformance import problem_with
from palimpsest.utils.leaks import kinds
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import execute

PLANTED = Path(__file__).parent / "planted"
FILES = {path.stem: path for folder in ("planted", "hidden") for path in (PLANTED.parent / folder).glob("[a-z]*.py")}
# File -> kind of leak that a run names, and the check that fails.
METHODS = {
    "batch_vote": (kinds.BATCH, "predictions_stand_alone"),
    "batch_statistics": (kinds.BATCH, "predictions_stand_alone"),
    "batch_calibration": (kinds.BATCH, "predictions_stand_alone"),
    "early_stopping": (kinds.TEST, "test_and_past_data_are_unknown"),
    "best_weights": (kinds.TEST, "test_and_past_data_are_unknown"),
    "old_means": (kinds.EARLIER, "test_and_past_data_are_unknown"),
    "hidden_replay": (kinds.EARLIER, "test_and_past_data_are_unknown"),
    "kept_images": (kinds.KEPT, "no_images_are_kept"),
    "future_head": (kinds.UNSEEN, "predictions_stand_alone"),
    "label_counts": (kinds.LATER, "later_tasks_are_unknown"),
    "all_constants": (kinds.LATER, "later_tasks_are_unknown"),
    "told_task": (kinds.IDENTITY, "predictions_stand_alone"),
    "transposed_penalty": (kinds.UNBOUND, "every_term_moves_a_weight"),
    "rounded_penalty": (kinds.UNBOUND, "every_term_moves_a_weight"),
    "remembered_tests": (kinds.KEPT, "test_and_past_data_are_unknown"),
    "looked_up_labels": (kinds.TEST, "test_and_past_data_are_unknown"),
    "callers_labels": (kinds.IDENTITY, "predictions_stand_alone"),
    "next_images": (kinds.LATER, "later_tasks_are_unknown"),
    "tested_exemplars": (kinds.TEST, "test_and_past_data_are_unknown"),
    "parts_of_a_task": (kinds.TEST, "test_and_past_data_are_unknown"),
    "recalled_answers": (kinds.TEST, "predictions_stand_alone"),
    "large_batches": (kinds.BATCH, "predictions_stand_alone"),
    "hidden_exemplars": (kinds.KEPT, "no_images_are_kept"),
    "copied_stream": (kinds.LATER, "later_tasks_are_unknown"),
    "tested_rate": (kinds.TEST, "test_and_past_data_are_unknown"),
    "rows_of_the_test": (kinds.TEST, "test_and_past_data_are_unknown"),
}


def test_every_planted_file_is_tested():
    assert {*FILES} == {*METHODS}


def found_in_a_run(case: Case, *more: str) -> list[str]:
    """What the leak detector says of a short run."""
    run, _ = execute(case.config("--n_epochs", "2", *more))
    assert "leaks" not in run.notes
    return run.leaks


@pytest.mark.parametrize("name", METHODS)
def test_a_run_names_the_leak(name, capsys):
    found = found_in_a_run(Case(str(FILES[name]), "class-il"))
    assert found and any(leak.startswith(f"{METHODS[name][0]}: ") for leak in found)
    assert f"LEAK {found[0]}" in capsys.readouterr().out


def test_constants_measured_on_all_tasks_are_found():
    stream = ["--dataset", str(PLANTED.parent / "stream_constants.py"), "--stop_after", "1", "--device", "cpu"]
    run, _ = execute(resolve(["--model", "sgd", *stream, "--disable_log", "--non_verbose"]))
    assert [leak.split(":")[0] for leak in run.leaks] == [kinds.STATISTICS]


# One for each check, and those of which a run sees least; the others with `-m slow`.
CHECKED = {"batch_vote", "best_weights", "old_means", "kept_images", "label_counts", "transposed_penalty"}
CHECKED |= {"rounded_penalty", "remembered_tests", "callers_labels", "recalled_answers"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CHECKED else pytest.mark.slow) for name in METHODS]
)
def test_check_fails_on_the_leak(name):
    case, check = Case(str(FILES[name]), "class-il"), METHODS[name][1]
    problem = problem_with(case, getattr(leaks, check))
    assert problem and any(problem.startswith(meaning) for meaning in kinds.MEANING.values())


QUICK = {("er", "class-il"), ("lwf", "domain-il"), ("slda", "class-il"), ("mas", "class-il")}
OWN = [
    pytest.param(case, marks=[] if (model, case.setting) in QUICK else pytest.mark.slow, id=f"{model}-{case.setting}")
    for model in registry.names("model")
    for case in cases(model)
]


@pytest.mark.parametrize("case", OWN)
def test_no_method_of_ours_leaks(case):
    run, _ = execute(case.config("--n_epochs", "2"))
    assert not run.leaks and not run.marks and "leaks" not in run.notes
    assert [problem for check in leaks.LEAKS if (problem := problem_with(case, check))] == []
