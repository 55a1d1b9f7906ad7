"""`--seeds --jobs` killed with all its processes, and begun again."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(argv: list[str], results: Path) -> subprocess.Popen:
    """The command as a process in a session of its own, as a terminal would have it."""
    command = [sys.executable, str(ROOT / "main.py"), *argv, "--results_path", str(results)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and theirs."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, todo = [], [pid]
    while todo:
        mine = [child for child, parent in parents.items() if parent == todo[0]]
        todo = todo[1:] + mine
        found += mine
    return found


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for it and everything that it has started."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_for(results: Path, pattern: str, n: int, seconds: float = 120) -> None:
    """Until so many files are there."""
    end = time.monotonic() + seconds
    while len(list(results.rglob(pattern))) < n:
        assert time.monotonic() < end, f"no {n} files {pattern}"
        time.sleep(0.05)


def finished(results: Path) -> Counter:
    """seed -> runs of it that are finished."""
    return Counter(path.parent.name.partition("_seed")[2].partition("_")[0] for path in results.rglob("result.yaml"))


def weights(results: Path) -> dict[str, str]:
    """seed -> fingerprint of the final state and scores."""
    return {p.parent.name.partition("_seed")[2].partition("_")[0]: p.read_text() for p in results.rglob("result.yaml")}


def problems(results: Path, seeds: int) -> list[str]:
    """What is missing or there twice."""
    out, runs = [], list(results.rglob("run.json"))
    if finished(results) != {str(seed): 1 for seed in range(seeds)}:
        out.append(f"finished: {finished(results)}")
    if len(runs) != seeds:
        out.append(f"{len(runs)} folders of {seeds} runs")
    for table in results.rglob("mean_accs.csv"):
        with open(table, newline="") as f:
            rows = [row["run_id"] for row in csv.DictReader(f)]
        if len(rows) != seeds or len({*rows}) != seeds:
            out.append(f"{table.parts[-4]}: {len(rows)} rows about {len({*rows})} of {seeds} runs")
    return out


def torture(argv: list[str], results: Path, seeds: int, kills: int, rng: random.Random) -> str:
    """Kill the command so often, each time somewhere after another part of the runs; what its last life printed."""
    for kill in range(kills):
        process = start(argv, results)
        wait_for(results, "result.yaml", max(1, (kill + 1) * seeds // (kills + 2)))
        time.sleep(rng.uniform(0, 0.5))
        kill_all(process)
        assert len(list(results.rglob("result.yaml"))) < seeds, "killed too late"
    last = start(argv, results)
    said, _ = last.communicate()
    assert last.returncode == 0, said
    return said
