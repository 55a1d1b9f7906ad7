"""What is said of several seeds, some of which failed."""

import csv
import json

import pytest

import main as entry
import palimpsest
from palimpsest.utils.errors import TrainingFailed
from palimpsest.utils.run.experiment import execute
from palimpsest.utils.study import one_run, seeds
from palimpsest.utils.study.jobs import Outcome

pytestmark = pytest.mark.usefixtures("undrawn")
SGD = ["--model", "sgd", "--dataset", "seq-digits", "--debug_mode", "--stop_after", "2", "--no_tensorboard"]
SGD += ["--non_verbose", "--seeds", "0", "1", "2"]


@pytest.fixture
def failing(monkeypatch):
    """Seed 1 fails; with --jobs, too, the runs are done in this process. Returns the seeds that were trained."""
    trained = []

    def perform(config, *args, **more):
        if config.args.seed == 1:
            raise TrainingFailed("loss is nan at step 3")
        trained.append(config.args.seed)
        return execute(config, *args, **more)

    def run_all(jobs, at_once, devices):
        out = []
        for job in jobs:
            try:
                run, summary = perform(one_run.configured(job), group=job.group)
                out.append(Outcome(job, "finished", run.folder, summary))
            except TrainingFailed as e:
                out.append(Outcome(job, "failed", reason=str(e)))
        return out

    monkeypatch.setattr(seeds, "execute", perform)
    monkeypatch.setattr(seeds, "run_all", run_all)
    return trained


@pytest.mark.parametrize("jobs", [[], ["--jobs", "2"]])
def test_one_that_failed_is_a_row_with_its_reason(jobs, failing, tmp_path, capsys):
    argv = [*SGD, *jobs, "--results_path", str(tmp_path)]
    assert entry.main(argv) == 1 and failing == [0, 2]
    said = capsys.readouterr()
    assert "2 seeds: mean" in said.out and "1 of 3 runs failed: seed 1: loss is nan at step 3" in said.err
    (folder,) = tmp_path.glob("class-il/seq-digits/sgd/seeds_*")
    with open(folder / "runs.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(row["seed"], row["state"], row["reason"]) for row in rows] == [
        ("0", "finished", ""), ("1", "failed", "loss is nan at step 3"), ("2", "finished", "")
    ]  # fmt: skip
    assert all((folder.parent / row["run"] / "result.yaml").is_file() for row in rows if row["run"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [0, 2] and summary["failed"] == [{"seed": 1, "reason": "loss is nan at step 3"}]
    page = (folder / "report.html").read_text()
    assert "failed: loss is nan at step 3" in page
    assert entry.main(["--report", str(folder)]) == 0  # drawn again, it is the same
    assert (folder / "report.html").read_text() == page


def test_side_by_side_the_summary_is_that_of_one_process(failing, tmp_path):
    for name, jobs in (("one", []), ("two", ["--jobs", "2"]), ("two", ["--jobs", "2"])):
        assert entry.main([*SGD, *jobs, "--report", "off", "--results_path", str(tmp_path / name)]) == 1
    first, second = (next((tmp_path / name).rglob("summary.csv")).read_text() for name in ("one", "two"))
    assert first == second
    assert len([*(tmp_path / "two").rglob("run.json")]) == 2  # the second time they were found
    assert len([*(tmp_path / "two").rglob("summary.csv")]) == 1


def test_from_python(failing, tmp_path):
    given = {"debug_mode": True, "stop_after": 1, "report": "off", "results_path": tmp_path, "non_verbose": True}
    results = palimpsest.run("sgd", "seq-digits", seeds=[0, 2], jobs=2, **given)
    assert [result.run.seed for result in results] == [0, 2] and results[0].scores["class-il"]["acc"] > 0
    with pytest.raises(TrainingFailed, match="1 of 2 runs failed: seed 1: loss is nan"):
        palimpsest.run("sgd", "seq-digits", seeds=[0, 1], **given)
