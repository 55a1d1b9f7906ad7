"""Many runs over two workers that are killed: in the end each is there once. Slow: some minutes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.study.sweeps import check_complete, finished, write_grid

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def start(file: Path, log: Path) -> subprocess.Popen:
    argv = [sys.executable, str(ROOT / "main.py"), "--sweep", str(file), "--workers", "2"]
    return subprocess.Popen(argv, stdout=open(log, "a"), stderr=subprocess.STDOUT)


def descendants(pid: int) -> list[int]:
    """All processes below one, the nearest first."""
    below = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return below + [deeper for child in below for deeper in descendants(child)]


def wait_for_runs(results: Path, n: int, process: subprocess.Popen) -> None:
    """Wait until so many runs are finished."""
    while finished(results) < n:
        assert process.poll() is None, "the sweep ended early"
        time.sleep(0.05)


def test_forty_runs_over_two_workers_that_are_killed_twice(tmp_path):
    file, log = write_grid(tmp_path, seeds=10), tmp_path / "log.txt"
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
    file, log = write_grid(tmp_path, seeds=2), tmp_path / "log.txt"
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
    file, log = write_grid(tmp_path, seeds=50), tmp_path / "log.txt"
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
