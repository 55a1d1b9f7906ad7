"""A sweep on a real Slurm: an array of workers, and a run that is put back into the queue in its middle."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.study import slurm
from tests.study.sweeps import check_complete, finished, write_grid

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
model: er
dataset: seq-digits
options: {{buffer_size: 50, n_epochs: 12, report: "off", tensorboard: false, num_threads: 1, results_path: {results}}}
seeds: [0, 1, 2]
"""
PROFILE = "{cpus_per_task: 1, time: 10, setup: ['export PALIMPSEST_TEST=1']}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(slurm.missing()), reason=f"Slurm is not installed: no {', '.join(slurm.missing())}"),
]


def runs(results: Path) -> dict[int, Path]:
    """Seed -> the folder of its run."""
    found = [path.parent for path in results.glob("*/*/*/*/run.json")]
    assert len({seed(folder) for folder in found}) == len(found)
    return {seed(folder): folder for folder in found}


def seed(folder: Path) -> int:
    return int(re.search(r"_seed(\d+)_", folder.name)[1])


def tasks(folder: Path) -> int:
    """How many tasks a run has trained."""
    rows = json.loads((folder / "run.json").read_text())["matrices"].get("class-il", [])
    return sum(any(score is not None for score in row) for row in rows)


@pytest.mark.parametrize("how, workers", [("scontrol requeue", 2), ("signal before the time limit", 1)])
def test_a_requeued_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, how, workers):
    plain, swept = tmp_path / "plain", tmp_path / "swept"
    file, profile = tmp_path / "three.yaml", tmp_path / "profile.yaml"
    profile.write_text(PROFILE)
    file.write_text(SWEEP.format(results=swept))
    main = [sys.executable, str(ROOT / "main.py")]
    with slurm.one_node(tmp_path / "slurm") as environment:
        environment = os.environ | environment
        command = [
            *main,
            "--sweep",
            str(file),
            "--launcher",
            "slurm",
            "--workers",
            str(workers),
            "--profile",
            str(profile),
        ]
        sweep = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        slurm.wait_for(lambda: any(1 <= tasks(f) < 5 for f in runs(swept).values()), 120, lambda: said(swept))
        interrupted = next(s for s, folder in runs(swept).items() if 1 <= tasks(folder) < 5)
        task = (swept / "sweeps" / "three" / "submitted.txt").read_text().strip()
        task += f"_{worker_of(swept, interrupted)}" if workers > 1 else ""
        request = ["scontrol", "requeue"] if workers > 1 else ["scancel", "--signal=USR2"]
        subprocess.run([*request, task], env=environment, check=True)
        slurm.wait_for(lambda: "PENDING" in state(environment, task), 60, lambda: state(environment, task))
        folder = runs(swept)[interrupted]
        saved = list(folder.glob("*.pt"))
        assert saved and not (folder / "result.yaml").exists()
        # Slurm waits two minutes before it starts a job again.
        subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], env=environment, check=True)
        out, _ = sweep.communicate(timeout=240)
        assert sweep.returncode == 0, out + said(swept)
    assert "3 done" in out and sorted(runs(swept)) == [0, 1, 2]
    log = "".join(f.read_text() for f in (swept / "sweeps" / "three" / "jobs").glob("*.out"))
    assert re.search(rf"--resume: from iteration \d+ of {re.escape(str(folder))}", log), log
    options = ["--model", "er", "--dataset", "seq-digits", "--buffer_size", "50", "--n_epochs", "12", "--report", "off"]
    options += ["--no_tensorboard", "--num_threads", "1", "--results_path", str(plain), "--seed", str(interrupted)]
    subprocess.run([*main, *options, "--non_verbose"], check=True, stdout=subprocess.DEVNULL)
    undisturbed = (runs(plain)[interrupted] / "result.yaml").read_text()
    assert (folder / "result.yaml").read_text() == undisturbed
    for name in ("metrics.csv", "accuracy_matrix.csv"):
        assert (folder / name).read_bytes() == (runs(plain)[interrupted] / name).read_bytes()


def test_forty_runs_over_two_workers_that_are_requeued(tmp_path):
    file, results = write_grid(tmp_path, seeds=10), tmp_path / "results"
    with slurm.one_node(tmp_path / "slurm") as environment:
        environment = os.environ | environment
        command = [sys.executable, str(ROOT / "main.py"), "--sweep", str(file), "--launcher", "slurm", "--workers", "2"]
        sweep = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for worker, runs_before in ((0, 6), (1, 16)):
            slurm.wait_for(lambda n=runs_before: finished(results) >= n, 300, lambda: said(results))
            task = (results / "sweeps" / "many" / "submitted.txt").read_text().strip() + f"_{worker}"
            subprocess.run(["scontrol", "requeue", task], env=environment, check=True)
            slurm.wait_for(lambda t=task: "PENDING" in state(environment, t), 60)
            subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], env=environment, check=True)
        out, _ = sweep.communicate(timeout=600)
        assert sweep.returncode == 0, out + said(results)
    check_complete(file, 40)


def state(environment: dict[str, str], task: str) -> str:
    return slurm.ask(environment, "squeue", "-h", "--array", f"--jobs={task}", "-o", "%T")


def worker_of(results: Path, number: int) -> str:
    """The worker that runs a seed."""
    lines = [json.loads(line) for line in (results / "sweeps/three/journal.log").read_text().splitlines()]
    workers = {line["trial_id"]: line["user_attr"]["worker"] for line in lines if "worker" in line.get("user_attr", {})}
    return workers[number]  # the seeds 0, 1, 2 are the trials 0, 1, 2


def said(results: Path) -> str:
    """What the workers said."""
    return "\n".join(f.read_text()[-2000:] for f in results.glob("sweeps/*/jobs/*_log.*"))
