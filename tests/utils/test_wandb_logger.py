"""Tracking with Weights & Biases: against a fake (always), and in its offline mode (if installed)."""

import argparse
import importlib.util
import os
import random
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

import main as entry
from palimpsest.utils.errors import Stopped
from palimpsest.utils.log.wandb_logger import WandbLogger
from palimpsest.utils.registry import ROOT
from tests.utils.test_loggers import SUMMARY, a_run, go

pytestmark = pytest.mark.usefixtures("undrawn")
DIGITS = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--stop_after", "2", "--num_threads", "1",
          "--non_verbose", "--no_tensorboard"]  # fmt: skip
installed = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


class Fake(ModuleType):
    """`wandb` in memory; `down`: which call of a run fails, True for all and for `init`."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.down, self.mode, self.key = [], False, "online", True
        self.Settings = SimpleNamespace

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, prompt, verify):
        return self.key

    def init(self, **about):
        random.random()
        if self.down is True:
            raise ConnectionError("no\nanswer")
        self.runs.append(FakeRun(self, about))
        return self.runs[-1]


class FakeRun:
    url, dir = "https://wandb.example/run", "x"

    def __init__(self, module, about):
        self.module, self.about, self.summary = module, about, {}
        self.points, self.files, self.metrics, self.ended, self.preempted = [], [], [], None, False

    def __getattribute__(self, name):
        if not name.startswith("_") and name != "module" and self.module.down in (True, name):
            raise ConnectionError("no\nanswer")
        return super().__getattribute__(name)

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, points):
        self.points.append(points)

    def save(self, path, base_path, policy):
        self.files.append(path.removeprefix(f"{base_path}/"))

    def mark_preempting(self):
        self.preempted = True

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake())
    monkeypatch.setenv("WANDB_SILENT", "true")
    return fake


def logger_of():
    return WandbLogger(argparse.Namespace(wandb="study"))


def test_a_whole_run(wandb, tmp_path):
    run = a_run(tmp_path)
    run.group = "seeds_x"
    (tmp_path / "metrics.csv").write_text("step\n")
    logger = logger_of()
    go(run, logger, end=False)
    logger.step(250, {"loss": 0.5}, 0.1)
    logger.run_ended(run, SUMMARY)
    (tracked,) = wandb.runs
    assert tracked.about["project"] == "study" and tracked.about["group"] == "seeds_x"
    assert tracked.about["config"]["lr"] == 0.1 and tracked.about["config"]["environment"] == {"torch": "2"}
    assert ("*", "iteration") in tracked.metrics
    assert tracked.points[0] == {"iteration": 100, "class-il/acc_task01": 90.0, "task-il/acc_task01": 95.0,
                                 "class-il/acc_mean": 90.0, "task-il/acc_mean": 95.0}  # fmt: skip
    assert tracked.points[-1] == {"iteration": 250, "loss/loss": 0.5, "lr": 0.1}
    assert tracked.summary == {"class-il/acc": 70.0, "class-il/forgetting": 30.0, "task-il/acc": 93.75}
    assert tracked.files == ["metrics.csv"] and tracked.ended == 0


def test_a_resumed_run_goes_on_in_its_own(wandb, tmp_path):
    for _ in range(2):
        logger_of().run_started(a_run(tmp_path))
    first, second = (tracked.about for tracked in wandb.runs)
    assert first["id"] == second["id"] and second["resume"] == "allow" and len(first["id"]) == 16


@pytest.mark.parametrize("error, status, preempted", [(Stopped(15, None, 3), 143, True), (ValueError("x"), 1, False)])
def test_a_stopped_run(wandb, tmp_path, error, status, preempted):
    run = a_run(tmp_path)
    logger = logger_of()
    logger.run_started(run)
    logger.run_stopped(run, error)
    assert (wandb.runs[0].ended, wandb.runs[0].preempted) == (status, preempted)


@pytest.mark.parametrize("down", [True, "log", "define_metric", "save", "finish", "summary"])
def test_what_fails_is_one_warning_and_no_end(wandb, tmp_path, capsys, down):
    wandb.down = down
    run = a_run(tmp_path)
    (tmp_path / "metrics.csv").write_text("step\n")
    go(run, logger_of())
    assert capsys.readouterr().err == "main.py: W&B: no answer; the run goes on, and its folder has all numbers\n"


def test_it_has_no_influence(wandb, tmp_path):
    folders = []
    for more in ([], ["--wandb"]):
        results = tmp_path / str(len(more))
        assert entry.main([*DIGITS, *more, "--results_path", str(results)]) == 0
        folders += results.glob("class-il/seq-digits/sgd/*_seed0*")
    plain, tracked = [(folder / "result.yaml").read_text() for folder in folders]
    assert plain == tracked and wandb.runs[0].about["project"] == "palimpsest" and wandb.runs[0].ended == 0
    assert folders[0].name.split("_")[2:] == folders[1].name.split("_")[2:]  # the same run by its digests


def test_seeds_are_a_group(wandb, tmp_path):
    assert entry.main([*DIGITS, "--wandb", "--seeds", "0", "1", "--results_path", str(tmp_path)]) == 0
    groups = {tracked.about["group"] for tracked in wandb.runs}
    assert len(wandb.runs) == 2 and len(groups) == 1 and groups.pop().startswith("seeds_")


def test_what_cannot_be_used_is_refused_at_the_start(wandb, tmp_path, monkeypatch, capsys):
    argv = [*DIGITS, "--wandb", "--results_path", str(tmp_path)]
    wandb.key = False
    assert entry.main(argv) == 2
    assert "nobody is logged in" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert entry.main(argv) == 2
    error = capsys.readouterr().err
    assert "--wandb needs the package wandb" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@installed
@pytest.mark.slow
def test_offline_mode(tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), *DIGITS, "--wandb", "study", "--results_path", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"WANDB_MODE": "offline"}
    )
    assert done.stderr == "" and "W&B: " in done.stdout
    (data,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = data.read_bytes()
    assert b"class-il/acc_task02" in content and b"loss/loss" in content and b"study" in content
    assert (data.parent / "files/metrics.csv").is_file() and (data.parent / "files/config.yaml").is_file()
