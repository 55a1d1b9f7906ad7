"""Sweeps: what a file may say, and that every run is there once, whoever was killed."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from palimpsest import main as entry
from palimpsest.utils.atomic import LockTaken
from palimpsest.utils.errors import UserError
from palimpsest.utils.study import launch, sweep, worker
from palimpsest.utils.study.plan import read_plan
from palimpsest.utils.study.records import read_runs
from palimpsest.utils.study.trials import Trials
from tests.study.sweeps import QUICK


@pytest.fixture
def write(tmp_path):
    """A sweep's file of quick runs with results below tmp_path; `options` are added to those that make it quick."""

    def write(name: str = "small", options: dict | list | None = None, **facts) -> Path:
        if not isinstance(options, list):
            options = QUICK | {"results_path": str(tmp_path / "results")} | (options or {})
        text = {"model": "sgd", "dataset": "seq-digits", "options": options} | facts
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in text.items() if value is not None}))
        return file

    return write


@pytest.fixture
def work():
    """Plans a sweep's file and works in this process until no trial is left."""
    before = signal.getsignal(signal.SIGTERM)

    def work(file: Path) -> Trials:
        trials = Trials(read_plan(file))
        trials.complete_plan()
        worker.Worker(file, "0")()
        return trials

    yield work
    signal.signal(signal.SIGTERM, before)


def rows(trials: Trials) -> list[dict[str, str]]:
    with open(sweep.write_table(trials), newline="") as f:
        return list(csv.DictReader(f))


SEARCH = {"search": "tpe", "trials": 2, "space": {"lr": {"log": [0.01, 0.1]}}}


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"models": "er"}, "unknown key 'models'; did you mean model?"),
        ({"lr": 0.1}, "unknown key 'lr'; an option of the runs stands below options"),
        ({"model": None}, "model is missing: give one of"),
        ({"model": ["sgd", "err"]}, "unknown model 'err'; did you mean er"),
        ({"model": ["sgd", "SGD"]}, "model names one twice"),
        ({"dataset": [3]}, "dataset '3' is no name"),
        ({"options": {"lrr": 1}}, "unknown option --lrr; did you mean --lr"),
        ({"options": {"seed": 1}}, "'seed' is given by the key 'seeds'"),
        ({"options": {"lr": -1}}, "argument --lr: -1: expected a number > 0"),
        ({"options": {"report": False}}, "report: expected no yes or no; YAML takes off and no for that"),
        ({"options": {"disable_log": True}}, "--resume needs the run's folder"),
        ({"options": {"optim-mom": 0.1, "optim_mom": 0.2}}, "options gives one twice"),
        ({"options": [1]}, "options holds lines of names and values"),
        ({"seeds": [0, 0]}, "seeds names a seed twice"),
        ({"seeds": [-1]}, "expected whole numbers from 0"),
        ({"search": "bayes"}, "search 'bayes': expected one of grid, random, tpe"),
        ({"objective": "accuracy"}, "objective 'accuracy': expected a metric"),
        ({"objective": "acc"}, "an objective chooses by scores, and those of the test set are not for choosing"),
        ({"trials": 3}, "trials has no effect on a grid"),
        ({"pruning": "median"}, "pruning has no effect on a grid"),
        ({"space": {"lr": {"log": [0.01, 0.1]}}}, "--lr has no list of values, which a grid needs"),
        ({"space": {"lr": [0.1]}, "options": {"lr": 0.1}}, "lr is among the options and in the space"),
        ({"model": "er"}, "--buffer_size is missing"),
        ({"space": {"validation": [5, 10]}}, "validation says what is held out and is no choice"),
        ({"space": {"n_epochs": {"int": [1, 10**30]}}}, "runs; a sweep has at most 10,000: give fewer values"),
        (SEARCH | {"trials": 6000, "seeds": [0, 1]}, "12,000 runs; a sweep has at most 10,000"),
        (SEARCH, "search tpe chooses by scores"),
        (SEARCH | {"trials": None}, "trials is missing"),
        (SEARCH | {"trials": 0}, "trials '0': expected a whole number from 1"),
        (SEARCH | {"space": {}}, "search tpe needs a space"),
        (SEARCH | {"pruning": "hyperband"}, "pruning 'hyperband': expected one of median, none"),
        (SEARCH | {"model": ["sgd", "er"], "space": {"buffer_size": [50]}}, "sgd seq-digits has none of the options"),
    ],
)
def test_what_is_refused(write, facts, message):
    with pytest.raises(UserError) as e:
        read_plan(write(**facts))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_an_option_that_two_methods_take_for_different_things_is_told(write, capsys):
    options = {"gamma": 0.9, "e_lambda": 1, "buffer_size": 50, "alpha": 0.5, "beta": 0.5}
    sweep.print_plan(read_plan(write(model=["ewc_on", "randumb", "er", "derpp"], options=options), check=False))
    told = [line for line in capsys.readouterr().out.splitlines() if "CAUTION" in line]
    assert len(told) == 1 and "--gamma is not the same to all" in told[0] and "(ewc_on); " in told[0]


def test_files_and_commands_that_are_refused(write, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("[1]")
    profile = tmp_path / "profile.yaml"
    profile.write_text("partitoin: gpu")
    small = str(write())
    for argv, message in [
        ([], "--sweep needs the sweep's file"),
        ([str(tmp_path / "absent.yaml")], "cannot be read: No such file"),
        ([str(tmp_path / "list.yaml")], "is no sweep: expected lines as 'model: er'"),
        ([small, "--workers", "0"], "argument --workers"),
        ([small, "--worker", "1"], "unrecognized arguments: --worker"),
        ([small, "--final"], "--final is for a sweep that chooses"),
        ([small, "--profile", str(profile)], "--profile is for --launcher slurm"),
        ([small, "--profile", str(profile), "--launcher", "slurm"], "'partitoin'; did you mean partition?"),
    ]:
        assert entry.main(["--sweep", *argv]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert not (tmp_path / "results").exists()


def test_a_dry_run_prints_commands_and_the_script_and_writes_nothing(write, tmp_path, capsys):
    facts = {"model": ["sgd", "er"], "seeds": [0, 1], "space": {"buffer_size": [50, 80]}}
    file = write(**facts, slurm={"partition": "gpu", "gpus_per_node": 1, "setup": ["module load cuda"]})
    assert entry.main(["--sweep", str(file), "--dry_run", "--launcher", "slurm", "--workers", "3"]) == 0
    out = capsys.readouterr().out
    commands = [line for line in out.splitlines() if line.startswith("python main.py")]
    assert len(commands) == len(set(commands)) == 2 + 4  # sgd has no buffer
    assert "sgd seq-digits has no --buffer_size: left out" in out
    assert sum("--model er" in c and "--buffer_size 80" in c for c in commands) == 2
    for line in ("--array=0-2%3", "--partition=gpu", "--requeue", "--signal=USR2@90", "--gpus-per-node=1"):
        assert f"#SBATCH {line}" in out
    assert "module load cuda" in out and "srun" in out
    assert not (tmp_path / "results").exists()


def test_a_random_search_is_the_same_for_any_number_of_workers(write, capsys):
    search = {"search": "random", "trials": 3, "space": {"lr": {"log": [0.01, 0.1]}}, "options": {"validation": 10}}
    entry.main(["--sweep", str(write(**search)), "--dry_run"])
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    entry.main(["--sweep", str(write(**search | {"trials": 4})), "--dry_run"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("python")][:3] == first
    assert len(set(first)) == 3


def test_every_point_once_and_the_same_command_goes_on(write, work, tmp_path):
    facts = {"model": ["sgd", "er"], "space": {"buffer_size": [50]}, "seeds": [0]}
    trials = work(write(**facts))
    assert [(row["model"], row["seeds"], row["state"]) for row in rows(trials)] == [
        ("sgd", "0", "done"),
        ("er", "0", "done"),
    ]
    before = {record.folder: record for record in read_runs(tmp_path / "results")}
    assert len(before) == 2 and all(record.state == "finished" for record in before.values())
    assert {float(row["value"]) for row in rows(trials)} == {
        record.metrics["class-il"]["acc"] for record in before.values()
    }
    trials = work(write(**facts | {"seeds": [0, 1]}))  # a grid may grow
    after = {record.folder: record for record in read_runs(tmp_path / "results")}
    assert len(after) == 4 and before.keys() < after.keys()
    assert [row["state"] for row in rows(trials)] == ["done"] * 4
    assert not list((trials.plan.folder / "locks").iterdir())
    with pytest.raises(UserError, match="lacks 2 trial.s. of sgd seq-digits"):
        Trials(read_plan(write(**facts | {"seeds": [2]}))).complete_plan()


def test_a_failed_run_is_a_row_with_its_reason_and_the_others_go_on(write, work, capsys):
    file = write(space={"lr": [1e30, 0.1]})
    trials = work(file)
    failed, done = rows(trials)
    assert failed["state"] == "failed" and "at step" in failed["reason"] and done["state"] == "done"
    sweep.print_end(trials, Path("table.csv"))
    out = capsys.readouterr().out
    assert "1 done, 1 failed" in out and failed["reason"] in out and "no best: these are scores of the test" in out
    worker.Worker(file, "0")()
    assert rows(trials)[0]["reason"] == failed["reason"] and len(trials.all()) == 2  # not again by itself
    assert trials.retry_failed() == 1 and trials.unfinished() == 1
    worker.Worker(file, "0")()
    assert [row["state"] for row in rows(trials)] == ["done", "failed"] and trials.unfinished() == 0


def test_tpe_prunes_at_the_end_of_tasks_and_names_the_best_and_its_command(write, work, capsys):
    search = {"search": "tpe", "trials": 7, "space": {"lr": {"log": [1e-4, 0.1]}}, "pruning": "median"}
    trials = work(write(**search, options={"validation": 10}))
    states = [row["state"] for row in rows(trials)]
    assert states.count("pruned") + states.count("done") == 7 and states[:5] == ["done"] * 5 and "pruned" in states
    pruned = next(row for row in rows(trials) if row["state"] == "pruned")
    assert "pruned after task" in pruned["reason"]
    assert len({row["lr"] for row in rows(trials)}) == 7
    done = {float(row["lr"]): float(row["value"]) for row in rows(trials) if row["state"] == "done"}
    values, value, _ = sweep.best(trials, trials.plan.cases[0])
    assert value == max(done.values()) == done[values["lr"]]
    sweep.print_end(trials, Path("table.csv"))
    command = next(line for line in capsys.readouterr().out.splitlines() if "python main.py" in line)
    assert f"--lr {values['lr']}" in command and "--validation" not in command and "--seed 0" in command


def test_the_mean_over_seeds_is_what_a_search_looks_at(write, work, tmp_path):
    search = {"search": "random", "trials": 1, "space": {"lr": {"log": [0.01, 0.1]}}, "seeds": [0, 1]}
    (row,) = rows(work(write(**search, options={"validation": 10})))
    scores = [record.metrics["class-il"]["acc"] for record in read_runs(tmp_path / "results")]
    assert len(scores) == 2 and float(row["value"]) == pytest.approx(sum(scores) / 2, abs=1e-12)


def test_a_trial_is_the_run_of_its_command(write, work, tmp_path):
    (row,) = rows(work(write(space={"lr": [0.05]})))
    argv = row["command"].removeprefix("python main.py ").replace(str(tmp_path / "results"), str(tmp_path / "alone"))
    assert entry.main(argv.split()) == 0
    (alone,), (swept,) = ((tmp_path / name).glob("*/*/*/*/result.yaml") for name in ("alone", "results"))
    assert alone.read_text() == swept.read_text()


def test_a_search_may_get_more_trials_and_methods_and_nothing_else(write):
    facts = SEARCH | {"model": "er", "options": {"validation": 10, "buffer_size": 50}}
    Trials(read_plan(write(**facts))).complete_plan()
    more = read_plan(write(**facts | {"trials": 3, "model": ["er", "sgd"]}))
    trials = Trials(more)
    trials.complete_plan()
    assert [case.name for case, _ in trials.all()] == ["er seq-digits"] * 3 + ["sgd seq-digits"] * 3
    for change in ({"space": {"lr": [0.1, 0.2]}}, {"seeds": [1]}, {"options": {"validation": 20, "buffer_size": 50}}):
        with pytest.raises(UserError, match="begun with another search"):
            Trials(read_plan(write(**facts | change))).complete_plan()
    with pytest.raises(UserError, match="lacks 2 trial"):
        Trials(read_plan(write(**facts | {"trials": 1}))).complete_plan()
    options = {"validation": 10, "buffer_size": 50, "base_path": "elsewhere"}  # without influence on the numbers
    Trials(read_plan(write(**facts | {"trials": 3, "options": options}))).complete_plan()


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"time": "4:00:00"}, "time '4:00:00': expected whole minutes"),
        ({"setup": {"a": 1}}, "setup is a list of lines"),
        ({"additional_parameters": [1]}, "additional_parameters holds lines"),
        ({"gpus": 1}, "unknown parameter 'gpus'"),
    ],
)
def test_parameters_of_a_job_that_are_refused(write, tmp_path, parameters, message):
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({"partition": "cpu", "time": 60}))
    plan = read_plan(write(slurm={"time": 30, "setup": "module load cuda"}))
    known = launch.read_profile(plan, str(profile))
    assert (known["partition"], known["time"], known["setup"]) == ("cpu", 30, ["module load cuda"])
    with pytest.raises(UserError, match=message):
        launch.read_profile(read_plan(write(slurm=parameters)), str(profile))


def test_the_best_is_run_for_the_test_set_and_says_what_it_was_chosen_on(write, work, tmp_path, capsys):
    file = write(objective="acc", space={"lr": [0.01, 0.1]}, options={"validation": 10})
    trials = work(file)
    assert all(record.facts["trial"] for record in read_runs(tmp_path / "results"))
    assert entry.main(["--sweep", str(file), "--final"]) == 0
    (final,) = (record for record in read_runs(tmp_path / "results") if not record.facts["trial"])
    assert final.options["lr"] == sweep.best(trials, trials.plan.cases[0])[0]["lr"]
    assert final.options["validation"] == 0 and final.facts["origins"]["lr"] == "tuned"
    assert final.chosen_on == "the sweep small, held out 10 %, 2 trials"
    assert entry.main(["--sweep", str(file), "--final"]) == 0
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="in a job of its own"):
        sweep.command(["--sweep", str(file), "--final", "--launcher", "slurm"])


def test_an_interrupted_trial_comes_first_and_one_that_runs_is_left_alone(write):
    trials = Trials(read_plan(write(seeds=[0, 1])))
    trials.complete_plan()
    (case,) = trials.plan.cases
    assert trials.candidate() == (case, 0)
    with trials.take(case, 0) as trial:
        assert trial.number == 0
        assert trials.candidate() == (case, 1)
        with pytest.raises(LockTaken), trials.take(case, 0):
            pass
        with trials.take(case, 1):
            assert trials.candidate() is None and trials.unfinished() == 2
            trials.tell(case, 1, 1.0, TrialState.COMPLETE)
    assert trials.candidate() == (case, 0)  # it was never told
    with trials.take(case, 1) as trial:
        assert trial is None
    assert trials.unfinished() == 1
    for number in (0, 1):
        trials.lock(trials.all()[number][1]).touch()
    trials.remove_locks()  # of the one that is finished, made again by a look at it
    assert len(list((trials.plan.folder / "locks").iterdir())) == 1


def test_of_forgetting_the_lowest_is_best_and_without_any_a_trial_fails(write, work):
    facts = {"objective": "forgetting", "space": {"lr": [0.01, 0.1]}}
    trials = work(write(options={"validation": 10}, **facts))
    scores = {float(row["lr"]): float(row["value"]) for row in rows(trials)}
    values, value, seeds = sweep.best(trials, trials.plan.cases[0])
    assert value == min(scores.values()) == scores[values["lr"]] < max(scores.values()) and seeds == 1
    facts["space"] = {"stop_after": [1]}
    (row,) = rows(work(write("one_task", options={"validation": 10}, **facts)))
    assert row["state"] == "failed" and "forgetting is not defined" in row["reason"]
    facts |= {"objective": "domain-il acc", "space": {}}
    (row,) = rows(work(write("no_scenario", options={"validation": 10, "stop_after": 1}, **facts)))
    assert row["state"] == "failed" and "scored as class-il, task-il" in row["reason"]


def test_a_line_that_was_cut_off_does_not_hide_the_others(write):
    plan = read_plan(write(seeds=[0, 1]))
    Trials(plan).complete_plan()
    with open(plan.folder / "journal.log", "a") as f:
        f.write('{"op_code": 6, "wor')
    assert len(Trials(plan).all()) == 2
    trials = Trials(plan)
    trials.complete_plan()
    assert len(trials.all()) == 2


def test_a_trial_that_is_killed_again_and_again_is_a_failed_one(write, work, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (row,) = rows(work(write()))
    assert row["state"] == "failed" and "killed 3 times" in row["reason"]


def test_the_command_runs_a_sweep_to_its_end_and_knows_it_the_next_time(write, capfd):
    argv = ["--sweep", str(write())]
    assert entry.main(argv) == 0
    out = capfd.readouterr().out
    assert "1 done" in out and "1/1 sgd seq-digits: seed 0: acc" in out
    assert entry.main([*argv, "--workers", "2"]) == 0
    assert "1 done" in capfd.readouterr().out
