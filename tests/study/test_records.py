"""Runs as their folders tell them."""

import time

import pytest

from palimpsest.utils.errors import UserError
from palimpsest.utils.study.records import read_runs
from tests.study.runs import write_run


def test_states_and_facts(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, finished=False)
    write_run(tmp_path, seed=2, finished=False, reason="loss is nan at step 3")
    records = read_runs(tmp_path)
    assert [record.state for record in records] == ["finished", "unfinished", "failed"]
    assert records[2].reason == "loss is nan at step 3" and records[0].metrics["class-il"]["acc"] == 70.0
    assert [record.seed for record in records] == [0, 1, 2] and records[0].options["dataset"] == "seq-digits"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_name": 3}', "{" * 5000])
def test_what_is_no_run_is_left_out(tmp_path, text):
    folder = write_run(tmp_path)
    (folder / "run.json").write_text(text)
    assert read_runs(tmp_path) == []
    with pytest.raises(UserError, match="no such folder"):
        read_runs(tmp_path / "absent")


def test_a_thousand_runs_are_read_in_a_second(tmp_path):
    for seed in range(1000):
        write_run(tmp_path, seed=seed)
    begin = time.process_time()
    assert len(read_runs(tmp_path)) == 1000
    assert time.process_time() - begin < 1.0
