"""Stored rows once more: which, how judged, what the page keeps."""

import math

import pytest
from scipy.stats import ttest_1samp, ttest_ind

from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import execute
from palimpsest.utils.study import reproduce
from palimpsest.utils.study.jobs import Outcome
from palimpsest.utils.study.records import read_runs
from tests.study.runs import write_run


def test_the_interval_is_welchs_where_the_published_runs_are_known():
    ours, theirs = [44.1, 45.9, 43.2, 46.0, 44.4], [45.0, 47.5, 43.0, 46.1, 48.2, 44.7]
    mean, std = sum(theirs) / 6, (sum((x - sum(theirs) / 6) ** 2 for x in theirs) / 5) ** 0.5
    expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    verdict, low, high = reproduce.judge(ours, mean, std, 6)
    assert (low, high) == pytest.approx((expected.low, expected.high)) and verdict == "agrees"
    around = ttest_1samp(ours, 45.0).confidence_interval(0.95)
    verdict, low, high = reproduce.judge(ours, 45.0, None, None)
    assert (low, high) == pytest.approx((around.low - 45.0, around.high - 45.0)) and verdict == "agrees"


@pytest.mark.parametrize(
    "measured, published, verdict",
    [
        ([70.0, 70.1, 69.9], 70.0, "agrees"),
        ([70.0, 70.1, 69.9], 60.0, "higher"),
        ([70.0, 70.1, 69.9], 80.0, "lower"),
        ([70.04, 70.04, 70.04], 70.0, "agrees"),  # what is printed with one digit says no more
        ([70.06, 70.06, 70.06], 70.0, "higher"),
        ([70.0, 70.1], 60.0, "too few seeds"),
    ],
)
def test_verdicts(measured, published, verdict):
    found, low, high = reproduce.judge(measured, published, None, None)
    assert found == verdict and math.isnan(low) == (verdict == "too few seeds")


def test_rows_are_chosen_by_method_or_by_size():
    rows = reproduce.choose("seq-cifar10", ["er:200", "derpp"], None, [])
    assert [row.name for row in rows] == ["derpp:200", "derpp:500", "derpp:5120", "er:200"]
    words = " ".join(rows[-1].command)
    assert words == "--model er --dataset seq-cifar10 --buffer_size 200 --load_best_args"
    assert all(row.stored["runs"] == 10 for row in rows)
    (row,) = reproduce.choose("seq-cifar10", ["er:500"], "seq-svhn", ["--holdout", "5"])
    options = "--lr 0.1 --minibatch_size 32 --batch_size 32 --n_epochs 50 --holdout 5"
    assert row.command == f"--model er --dataset seq-svhn --buffer_size 500 {options}".split()


@pytest.mark.parametrize(
    "table, names, more, said",
    [
        ("seq-nothing", None, [], "tables are .*seq-cifar10"),
        ("seq-digits", ["er:7"], [], "no published row of seq-digits; those are .*er:200"),
        ("seq-vision-mini", None, [], "none of its rows has a published score"),
        ("seq-digits", ["er"], ["--foo", "1"], "--foo"),
    ],
)
def test_refusals(table, names, more, said):
    with pytest.raises(UserError, match=said):
        reproduce.choose(table, names, None, more)


def test_a_section_has_every_row_and_what_failed(tmp_path):
    rows = reproduce.choose("seq-digits", ["er", "sgd"], None, [])
    for seed in range(3):
        write_run(tmp_path, seed=seed, metrics={"class-il": {"acc": 93.0 + seed}, "task-il": {"acc": 99.6}})
    rows[0].runs = read_runs(tmp_path)
    rows[1].problems = ["seed 0: loss is nan at step 3"]
    text = reproduce.section("seq-digits", None, rows, [0, 1, 2], 90.0, [])
    assert "| er:200 | class-il | 94.00 ± 1.00 | 3 | 93.60 ± 0.60 | +0.40 |" in text and "| agrees |" in text
    assert text.count("| sgd | ") == 3 and "| failed |" in text and "- sgd, seed 0: loss is nan at step 3" in text
    assert "commit abcdef0, 1.5 minutes, seeds 0 1 2" in text


def test_a_page_keeps_other_sections():
    page = reproduce.with_section(reproduce.TITLE, "## one\n\nold\n")
    page = reproduce.with_section(page, "## two\n\nother\n")
    page = reproduce.with_section(page, "## one\n\nnew\n")
    assert page.count("## one") == 1 and "old" not in page and "new" in page and "other" in page
    assert page.startswith(reproduce.TITLE) and page.index("## one") < page.index("## two")


def run_here(jobs, at_once):
    """What `run_all` does, in this process."""
    outcomes = []
    for job in jobs:
        try:
            run, metrics = execute(resolve(job.argv))
            outcomes.append(Outcome(job, "finished", run.folder, metrics))
        except TrainingFailed as e:
            outcomes.append(Outcome(job, "failed", reason=str(e)))
    return outcomes


def test_a_table_is_run_and_written(tmp_path, capsys, monkeypatch):
    """Two rows; then one that diverges: the page says so, and so does the status."""
    monkeypatch.setattr(reproduce, "run_all", run_here)
    page = tmp_path / "page.md"
    argv = f"--reproduce seq-digits --rows sgd er --seeds 0 --results_path {tmp_path} --out {page}"
    more = ["--debug_mode", "--non_verbose", "--no_tensorboard"]
    assert reproduce.command([*argv.split(), *more]) == 0
    assert "at least" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("too few seeds") == 4 and "--load_best_args --debug_mode" in text
    assert reproduce.command([*argv.replace("sgd er", "sgd").split(), *more, "--lr", "1e30"]) == 1
    assert "Failed:" in page.read_text() and "sgd, seed 0: failed, loss is nan" in page.read_text()


def test_a_seed_that_is_named_twice_is_refused():
    with pytest.raises(UserError, match="--seeds names a seed twice"):
        reproduce.command(["--reproduce", "seq-digits", "--rows", "er", "--seeds", "0", "1", "0"])
