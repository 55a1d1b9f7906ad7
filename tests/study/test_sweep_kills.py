"""Many runs over two workers that are killed: in the end each is there once. Slow: some minutes."""

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from palimpsest.utils.study.plan import read_plan
from palimpsest.utils.study.records import read_runs
from palimpsest.utils.study.trials import Trials

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"debug_mode": True, "report": "off", "tensorboard": False, "num_threads": 1, "device": "cpu"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def write(tmp_path: Path, seeds: int) -> Path:
    """A grid of two methods x 2 learning rates x `seeds`."""
    options = OPTIONS | {"results_path": str(tmp_path / "results")}
    space = {"lr": [0.05, 0.1], "buffer_size": [50]}
    facts = {"model": ["sgd", "er"], "dataset": "seq-digits", "options": options, "space": space}
    file = tmp_path / "many.yaml"
    file.write_text(yaml.safe_dump(facts | {"seeds": list(range(seeds))}))
    return file


def start(file: Path, log: Path) -> subprocess.Popen:
    argv = [sys.executable, str(ROOT / "main.py"), "--sweep", str(file), "--workers", "2"]
    return subprocess.Popen(argv, stdout=open(log, "a"), stderr=subprocess.STDOUT)


def descendants(pid: int) -> list[int]:
    """All processes below one, the nearest first."""
    below = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return below + [deeper for child in below for deeper in descendants(child)]


def wait_for_runs(results: Path, n: int, process: subprocess.Popen) -> None:
    """Wait until so many runs are finished."""
    while len(list(results.glob("*/*/*/*/result.yaml"))) < n:
        assert process.poll() is None, "the sweep ended early"
        time.sleep(0.05)


def check_complete(file: Path, n: int) -> None:
    """Every run is there, finished, once; no lock is left."""
    trials = Trials(read_plan(file))
    assert [trial.state.name for _, trial in trials.all()] == ["COMPLETE"] * n
    records = read_runs(file.parent / "results")
    once = collections.Counter((r.model, r.options["lr"], r.seed) for r in records)
    assert len(once) == n and set(once.values()) == {1}
    assert all(record.state == "finished" for record in records)
    tables = list((file.parent / "results").glob("class-il/*/*/mean_accs.csv"))
    assert sum(len(table.read_text().splitlines()) - 1 for table in tables) == n
    assert not list((trials.plan.folder / "locks").iterdir())
    scores = {(r.model, r.options["lr"], r.seed): r.metrics["class-il"]["acc"] for r in records}
    for case, trial in trials.all():
        key = (case.names["model"], trial.user_attrs["values"]["lr"], trial.user_attrs["seeds"][0])
        assert trial.value == scores[key]


def test_forty_runs_over_two_workers_that_are_killed_twice(tmp_path):
    file, log = write(tmp_path, seeds=10), tmp_path / "log.txt"
    # All processes at once, as at a power cut.
    process = start(file, log)
    wait_for_runs(tmp_path / "results", 6, process)
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    # The command alone: its workers notice, save and end, while the next command begins already.
    process = start(file, log)
    wait_for_runs(tmp_path / "results", 16, process)
    process.kill()
    process.wait()
    process = start(file, log)
    assert process.wait() == 0, log.read_text()[-3000:]
    check_complete(file, 40)


def test_a_signal_to_the_command_stops_every_run_with_its_state_saved(tmp_path):
    file, log = write(tmp_path, seeds=2), tmp_path / "log.txt"
    process = start(file, log)
    wait_for_runs(tmp_path / "results", 2, process)
    workers = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert "the same command goes on" in log.read_text()
    process = start(file, log)
    assert process.wait() == 0, log.read_text()[-3000:]
    check_complete(file, 8)


def test_two_hundred_runs(tmp_path, capsys):
    """What a sweep of this size costs; the numbers are in docs/cluster.md."""
    file, log = write(tmp_path, seeds=50), tmp_path / "log.txt"
    begin = time.perf_counter()
    assert start(file, log).wait() == 0, log.read_text()[-3000:]
    wall = time.perf_counter() - begin
    check_complete(file, 200)
    results = tmp_path / "results"
    files = [path for path in results.rglob("*") if path.is_file()]
    journal = results / "sweeps" / "many" / "journal.log"
    table = results / "class-il" / "seq-digits" / "er" / "mean_accs.csv"
    with capsys.disabled():
        print(f"\n200 runs, 2 workers: {wall:.0f} s; {len(files)} files, {sum(f.stat().st_size for f in files)} bytes")
        print(f"journal: {journal.stat().st_size} bytes, {len(journal.read_text().splitlines())} lines")
        print(
            f"locks: {sum(f.name.endswith('.lock') for f in files)} files; mean_accs.csv {table.stat().st_size} bytes"
        )
