"""Runs side by side: none twice, none missing, whatever is killed."""

import random
import signal

import pytest

import main as entry
from tests.study import jobs_killed

SGD = ["--model", "sgd", "--dataset", "seq-digits", "--debug_mode", "--report", "off", "--no_tensorboard"]
SEEDS = ["--seeds", *map(str, range(6))]


def test_killed_twice_six_runs_are_complete_and_those_of_one_process(tmp_path, capsys):
    argv = [*SGD, *SEEDS, "--jobs", "2"]
    said = jobs_killed.torture(argv, tmp_path / "killed", 6, 2, random.Random(0))
    assert not jobs_killed.problems(tmp_path / "killed", 6)
    assert said.count("was finished before") >= 2 and "6 seeds: mean" in said
    assert entry.main([*SGD, *SEEDS, "--results_path", str(tmp_path / "plain")]) == 0
    assert jobs_killed.weights(tmp_path / "killed") == jobs_killed.weights(tmp_path / "plain")
