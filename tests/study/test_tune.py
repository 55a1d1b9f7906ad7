"""Options chosen by held-out data, and never by a test example."""

import csv
import json
import signal
from pathlib import Path

import pytest

import main as entry
from palimpsest.utils.run import experiment
from palimpsest.utils.run.config import resolve
from palimpsest.utils.study import one_run, tune
from palimpsest.utils.study.jobs import JobsStopped, Outcome
from palimpsest.utils.study.records import read_runs
from tests.study.runs import write_run

ER = ["--model", "er", "--dataset", "seq-digits", "--buffer_size", "50", "--debug_mode", "--report", "off"]
SMALL = ["--no_tensorboard", "--stop_after", "2", "--label_perc", "0.3", "--non_verbose"]


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """No training: a trial's score is `score(value of --lr)`, one that is None has failed; `pretend.jobs` are those
    asked for, `pretend.final` the command lines of runs.
    """

    def run_all(jobs, at_once, devices):
        outcomes = [Outcome(job) for job in jobs]
        for outcome in outcomes:
            pretend.jobs.append(outcome.job)
            if len(pretend.jobs) > pretend.stop_at:
                raise JobsStopped(signal.SIGTERM, outcomes)
            score = pretend.score(float(value_of("lr", outcome.job.argv)))
            if score is None:
                outcome.state, outcome.reason = "failed", "loss is nan"
                continue
            matrices = {"class-il": [[score, None], [score - 30, score]]}
            outcome.folder = write_run(tmp_path / f"runs{len(pretend.jobs)}", matrices=matrices)
            outcome.state = "finished"
        return outcomes

    pretend = type("Pretended", (), {"jobs": [], "final": [], "stop_at": 99, "score": staticmethod(lambda lr: 50.0)})
    monkeypatch.setattr(tune, "run_all", run_all)
    monkeypatch.setattr(tune, "run", lambda argv, chosen_on, tuned: pretend.final.append((argv, chosen_on, tuned)))
    return pretend


def value_of(name, argv):
    return argv[argv.index(f"--{name}") + 1]


def command(tmp_path, *argv, status=0):
    assert entry.main([*ER, "--results_path", str(tmp_path / "results"), *argv]) == status


def table(tmp_path) -> list[dict[str, str]]:
    (path,) = tmp_path.rglob("trials.csv")
    return list(csv.DictReader(path.open()))


def test_the_best_of_the_held_out_scores_is_fixed(pretend, tmp_path, capsys):
    pretend.score = lambda lr: None if lr > 0.2 else 100 - 1000 * abs(lr - 0.01)
    command(tmp_path, "--tune", "--trials", "9", "--seeds", "3", "4", "--stop_after", "3")
    rows = table(tmp_path)
    scores = {row["lr"]: float(row["score"]) for row in rows if row["score"]}
    best = max(scores, key=scores.get)
    assert len(rows) == 9 and all(row["reason"] == "loss is nan" for row in rows if not row["score"])
    ((final, chosen_on, tuned),) = pretend.final
    assert value_of("lr", final) == best and tuned == ["lr"] and "--validation" not in " ".join(final)
    assert value_of("stop_after", final) == "3" and chosen_on == "the first task, held out 10 %, 9 trials"
    for job in pretend.jobs:
        assert {"--stop_after=1", "--validation=10"} <= {*job.argv} and "--seeds" not in job.argv and job.seed == 3
        assert job.facts == {"chosen_on": f"a trial of tuning on {chosen_on}", "trial": True}
        assert Path(value_of("results_path", job.argv)).is_relative_to(tmp_path / "results" / "tuning")
    said = capsys.readouterr().out
    assert f"chosen: --lr {best}" in said and "have the best score" not in said
    assert all(0.003 <= float(row["lr"]) <= 0.3 for row in rows)  # a tenth to ten times the stream's 0.03


def test_the_same_command_goes_on_with_the_same_trials(pretend, tmp_path, capsys):
    command(tmp_path, "--tune", "--trials", "4")
    whole = [row["lr"] for row in table(tmp_path)]
    assert len(pretend.jobs) == 4 and len({*whole}) == 4
    command(tmp_path, "--tune", "--trials", "4")
    assert len(pretend.jobs) == 4 and pretend.final[0] == pretend.final[1]
    pretend.stop_at = 6
    command(tmp_path / "other", "--tune", "--trials", "4", status=143)
    assert "the same command goes on" in capsys.readouterr().err
    pretend.stop_at = 99
    command(tmp_path / "other", "--tune", "--trials", "4")
    assert [row["lr"] for row in table(tmp_path / "other")] == whole
    command(tmp_path / "other", "--tune", "--trials", "6")  # two more
    assert [row["lr"] for row in table(tmp_path / "other")][:4] == whole and len(table(tmp_path / "other")) == 6


def test_equal_scores_are_told(pretend, tmp_path, capsys):
    command(tmp_path, "--tune", "--trials", "3")
    assert "3 trials have the best score; the first of them counts" in capsys.readouterr().out
    assert value_of("lr", pretend.final[0][0]) == table(tmp_path)[0]["lr"]


def test_more_tasks_than_there_are_are_refused_by_the_name_that_was_given(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "run_all", lambda jobs, *_: experiment.build(resolve(jobs[0].argv)))
    command(tmp_path, "--tune", "first-k", "9", "--trials", "1", status=2)
    assert "--tune first-k 9: seq-digits has 5 task(s)" in capsys.readouterr().err


def test_first_k_scores_all_of_them_and_another_stream_all_of_its(pretend, tmp_path):
    command(tmp_path, "--tune", "first-k", "2", "--trials", "1", "--validation", "20")
    assert {"--stop_after=2", "--validation=20"} <= {*pretend.jobs[0].argv}
    assert table(tmp_path)[0]["score"] == "35.0000"  # of 20 and 50 after the second
    assert pretend.final[0][1] == "the first 2 tasks, held out 20 %, 1 trials"
    command(tmp_path / "b", "--tune", "other-stream", "seq-fmnist", "--trials", "1")
    argv = pretend.jobs[1].argv
    assert value_of("dataset", argv) == "seq-fmnist" and "stop_after" not in " ".join(argv)
    assert value_of("dataset", pretend.final[1][0]) == "seq-digits"
    assert pretend.final[1][1] == "the stream seq-fmnist, held out 10 %, 1 trials"


def test_a_space_of_ones_own_and_that_of_a_method(pretend, tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text("lr: [0.01, 0.1]\nn-epochs: {int: [1, 3]}\n")
    command(tmp_path, "--tune", "--space", str(space), "--trials", "2")
    assert {row["lr"] for row in table(tmp_path)} <= {"0.01", "0.1"} and {"n_epochs"} <= table(tmp_path)[0].keys()
    capsys.readouterr()
    argv = ["--model", "derpp", "--dataset", "seq-digits", "--buffer_size", "50", "--tune", "--trials", "1"]
    assert entry.main([*argv, "--results_path", str(tmp_path / "derpp")]) == 0  # --alpha and --beta are required
    assert "alpha  0.1 to 2, by the logarithm" in capsys.readouterr().out
    assert table(tmp_path / "derpp")[0].keys() == {"trial", "lr", "alpha", "beta", "score", "reason"}


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--tune", "--validation", "0"], "scores of the test set"),
        (["--tune", "last-task"], "expected first-task, first-k K, or other-stream NAME"),
        (["--tune", "first-k"], "expected first-task"),
        (["--tune", "first-k", "0"], "a number of tasks from 1"),
        (["--tune", "other-stream", "seq-digits"], "that is the stream of the run"),
        (["--tune", "other-stream", "perm-digits"], "it is domain-il, seq-digits is class-il"),
        (["--tune", "--lr", "0.1"], "--lr is given and searched"),
        (["--tune", "--start_from", "1"], "exclude each other"),
        (["--tune", "--disable_log"], "exclude each other"),
        (["--tune", "--trials", "0"], "--trials"),
        (["--tune", "--trails", "3"], "unknown option --trails"),
    ],
)
def test_refused_before_the_first_trial(argv, words, pretend, tmp_path, capsys):
    command(tmp_path, *argv, status=2)
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not pretend.jobs and not (tmp_path / "results").exists()


def test_the_run_itself_is_scored_on_the_test_set(pretend, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("validation: 10\n")
    command(tmp_path, "--tune", "--config", str(file), status=2)
    assert "drop validation from the file" in capsys.readouterr().err and not pretend.jobs


def test_all_trials_fail(pretend, tmp_path, capsys):
    pretend.score = lambda lr: None
    command(tmp_path, "--tune", "--trials", "2", status=1)
    assert "all 2 trials failed" in capsys.readouterr().err and not pretend.final


def test_a_run_says_what_chose_its_options_and_trials_are_no_results(monkeypatch, tmp_path, capsys):
    def run_all(jobs, at_once, devices):
        found = [experiment.execute(one_run.configured(job)) for job in jobs]
        return [Outcome(job, "finished", run.folder) for job, (run, _) in zip(jobs, found, strict=True)]

    monkeypatch.setattr(tune, "run_all", run_all)
    for _ in range(2):
        command(tmp_path, "--tune", "--trials", "2", *SMALL)
    assert "this run is finished" in capsys.readouterr().out
    trials = [record for record in read_runs(tmp_path) if record.trial]
    (final,) = [record for record in read_runs(tmp_path) if not record.trial]
    assert len(trials) == 2 and all(record.options["validation"] == 10 for record in trials)
    assert final.options["validation"] == 0 and final.facts["origins"]["lr"] == "tuned"
    assert final.chosen_on == "the first task, held out 10 %, 2 trials"
    assert final.facts["notes"]["options"] == f"chosen on {final.chosen_on}"
    scores = {record.options["lr"]: record.matrices["class-il"][0][0] for record in trials}
    assert scores[final.options["lr"]] == max(scores.values())
    tables = [path for path in tmp_path.rglob("mean_accs.csv") if path.parts[-4] == "class-il"]
    assert len(tables) == 1 and "tuning" not in tables[0].parts
    assert entry.main([*ER, *SMALL, "--results_path", str(tmp_path / "plain")]) == 0
    (plain,) = (tmp_path / "plain").rglob("run.json")
    assert json.loads(plain.read_text())["chosen_on"] == "command line"
