"""Runs side by side: none twice, none missing, whatever fails and whatever is killed."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

import main as entry
from palimpsest.utils.errors import UserError
from palimpsest.utils.study import jobs
from palimpsest.utils.study.jobs import Job, JobsStopped, run_all
from palimpsest.utils.study.progress import Progress, duration
from tests.study import jobs_killed

SGD = ["--model", "sgd", "--dataset", "seq-digits", "--debug_mode", "--report", "off", "--no_tensorboard"]


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Jobs of processes that only pretend; `lines()` are those that were begun."""
    monkeypatch.setattr(jobs, "WORKER", "tests.study.pretended")
    monkeypatch.setattr(jobs, "LOADED", ("tests.study.pretended", "palimpsest.utils.study.jobs"))
    notes = tmp_path / "notes"

    def make(*what, seconds=0.1):
        return [Job(f"job {i}", [word, str(seconds), str(notes)]) for i, word in enumerate(what)]

    make.lines = lambda: notes.read_text().splitlines() if notes.exists() else []
    return make


def test_one_that_fails_or_is_killed_does_not_keep_the_others(pretend, capfd):
    outcomes = run_all(pretend("finish", "fail", "die", "finish", "refuse"), 2)
    assert [o.state for o in outcomes] == ["finished", "failed", "failed", "finished", "refused"]
    assert [o.reason.partition(":")[0] for o in outcomes[1:3]] == ["loss is nan", "its process was ended (SIGKILL)"]
    assert str(outcomes[3].folder) == "folder of job 3" and outcomes[3].metrics == {"class-il": {"acc": 50.0}}
    said = capfd.readouterr().out
    assert "job 1  failed: loss is nan" in said and "job 3  finished in 0 s, class-il 50.00" in said
    assert "5 of 5 runs ended, 3 of them not finished" in said
    cores = len(os.sched_getaffinity(0))
    assert sorted(pretend.lines()) == [f"job {i} {max(1, cores // 2)}" for i in range(5)]


def test_runs_take_the_gpus_in_turn(pretend, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert jobs.gpus("auto") == ["3", "5"] and jobs.gpus("cuda:1") == jobs.gpus("cpu") == []
    run_all(pretend("finish", "finish", seconds=0.5), 2, jobs.gpus("auto"))
    assert sorted(line.split()[-1] for line in pretend.lines()) == ["3", "5"]


def test_what_is_wrong_with_all_is_told_once(pretend, capfd):
    with pytest.raises(UserError, match="^no such data$"):
        run_all(pretend("refuse", "refuse", "refuse", "refuse"), 2)
    assert len(pretend.lines()) == 2 and capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_once_stops_all_and_each_has_saved(name, pretend):
    number = getattr(signal, name)

    def press():
        while len(pretend.lines()) < 2:
            time.sleep(0.05)
        time.sleep(0.2)  # they note their start just after they have begun to listen
        os.kill(os.getpid(), number)

    threading.Thread(target=press, daemon=True).start()
    before = signal.getsignal(number)
    with pytest.raises(JobsStopped, match=f"stopped by {name}: 0 of 3 runs are finished; the same command") as e:
        run_all(pretend("finish", "finish", "finish", seconds=20), 2)
    assert e.value.status == 128 + number and signal.getsignal(number) is before
    assert sorted(line for line in pretend.lines() if "saved" in line) == ["job 0 saved 1", "job 1 saved 1"]
    assert [outcome.state for outcome in e.value.outcomes] == ["stopped", "stopped", "not begun"]


EARLY = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
from palimpsest.utils.study import jobs
jobs.LOADED = ("slow_to_import",)
signal.signal(signal.SIGINT, lambda *_: None)
context = jobs._context()
time.sleep(0.5)
os.killpg(0, signal.SIGINT)
process = context.Process(target=print, args=("it runs",))
with jobs._no_main():
    process.start()
process.join()
"""


def test_a_signal_while_the_server_imports_leaves_it_alive(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1)\n")
    command = [sys.executable, "-c", EARLY.format(folder=str(tmp_path))]
    done = subprocess.run(command, cwd=jobs_killed.ROOT, capture_output=True, text=True, start_new_session=True)
    assert done.stdout == "it runs\n" and not done.stderr


@dataclass
class Ended:
    state: str = "finished"
    trained: bool = True
    seconds: float = 0.0
    reason: str = ""
    metrics: dict = field(default_factory=dict)


def test_the_time_to_the_end(capfd):
    now = [0.0]
    with Progress(["a", "b", "c", "d"], 2, clock=lambda: now[0]) as progress:
        progress.begin(0), progress.begin(1)
        assert progress.rest() is None
        progress.update(0, 0.0, "task 1/2"), progress.update(1, 0.5, "task 2/2")  # the second goes on where it was
        now[0] = 10.0
        progress.update(0, 0.25, "task 1/2"), progress.update(1, 0.75, "task 2/2")
        # 30 s and 10 s are left of these, and two more of 40 s each wait for two places.
        assert progress.rest() == pytest.approx((30 + 10 + 2 * 40) / 2)
        now[0] = 70.0
        progress.update(0, 0.5, "task 2/2")
        assert "a  50 %, task 2/2, 70 s left" in capfd.readouterr().out
        progress.end(1, Ended(seconds=40.0)), progress.end(0, Ended("failed", reason="why"))
        assert progress.summary() == "2 of 4 runs ended, 1 of them not finished, 40 s to the end"
    assert [duration(s) for s in (4.4, 200, 7500)] == ["4 s", "3 min", "2 h 05 min"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--jobs", "2"], "give them, as --seeds 0 1 2"),
        (["--seeds", "0", "1", "--jobs", "0"], "--jobs"),
        (["--seeds", "0", "1", "--jobs", "2", "--disable_log"], "needs the run's folder"),
        (["--seeds", "0", "1", "--jobs", "2", "--buffer_size", "5", "--model", "er"], "smaller than --minibatch_size"),
    ],
)
def test_refused_before_anything_is_started(argv, words, capsys):
    model = [] if "er" in argv else ["--model", "sgd"]
    assert entry.main([*model, "--dataset", "seq-digits", *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("n, kills", [(6, 2), (40, 2)])
def test_killed_with_all_processes_and_begun_again(n, kills, tmp_path):
    argv = [*SGD, "--seeds", *map(str, range(n))]
    killed, plain = tmp_path / "killed", tmp_path / "plain"
    said = jobs_killed.torture([*argv, "--jobs", "2"], killed, n, kills, random.Random(n))
    assert not jobs_killed.problems(killed, n)
    assert "was finished before" in said and f"{n} seeds: mean" in said
    assert entry.main([*argv, "--results_path", str(plain)]) == 0
    assert jobs_killed.weights(killed) == jobs_killed.weights(plain)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_command_alone(number, status, tmp_path):
    argv = ["--model", "sgd", "--dataset", "seq-digits", "--report", "off", "--seeds", "0", "1", "2", "--jobs", "2"]
    process = jobs_killed.start(argv, tmp_path)
    jobs_killed.wait_for(tmp_path, "metrics.csv", 2)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == status and "0 of 3 runs are finished; the same command goes on" in said
    assert not jobs_killed.descendants(process.pid) and len([*tmp_path.rglob("checkpoint.pt")]) == 2
    last = jobs_killed.start(argv, tmp_path)
    assert last.communicate() and last.returncode == 0
    assert not jobs_killed.problems(tmp_path, 3)
    assert sum("--resume: from iteration" in path.read_text() for path in tmp_path.rglob("output.txt")) == 2
