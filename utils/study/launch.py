"""How the workers of a sweep are started, by submitit: processes of this machine, or the tasks of a Slurm array."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import environment_variables

from palimpsest import ROOT
from palimpsest.utils.config_file import plain_yaml
from palimpsest.utils.errors import UserError, one_line, signals_handled
from palimpsest.utils.registry import nearest
from palimpsest.utils.study.plan import Plan
from palimpsest.utils.study.worker import Worker

LONG = 10**6  # minutes, or times: no limit
SUBMITTED = "submitted.txt"  # the Slurm jobs of a sweep, a number a line
PASSED_ON = (signal.SIGINT, signal.SIGHUP)  # which this process passes on to workers as it sees fit
POLL = 10.0  # seconds between two questions to Slurm


def read_profile(plan: Plan, file: str | None) -> dict[str, Any]:
    """The parameters of a Slurm job: those of the file of `--profile`, over them those of the sweep's file.

    They are submitit's, which are sbatch's long options with `_` for `-`, and `python`, the command that starts Python.

    Raises:
        UserError: the file is no such mapping, or a parameter is unknown.
    """
    profile = plain_yaml(Path(file)) if file else {}
    if not isinstance(profile, dict) or not all(isinstance(name, str) for name in profile):
        raise UserError(f"{file} is no profile: expected lines as 'partition: gpu' and 'time: 240'")
    profile = {"job_name": plan.name, "time": 240, "setup": [], "additional_parameters": {}} | profile | plan.slurm
    setup, more = profile["setup"], profile["additional_parameters"]
    profile["setup"] = setup = [setup] if isinstance(setup, str) else setup
    if not isinstance(setup, list) or not all(isinstance(line, str) for line in setup):
        raise UserError("slurm: setup is a list of lines of a shell script")
    if not isinstance(more, dict):
        raise UserError("slurm: additional_parameters holds lines of sbatch's options, as 'reservation: course'")
    if type(profile["time"]) is not int or profile["time"] < 1:
        raise UserError(f"slurm: time '{profile['time']}': expected whole minutes from 1")
    profile["additional_parameters"] = {"requeue": True} | more
    known = {*submitit.SlurmExecutor._valid_parameters(), "python"}
    for name in profile.keys() - known:
        hint = nearest(name, sorted(known)) or "; what submitit does not know stands below additional_parameters"
        raise UserError(f"slurm: unknown parameter '{name}'{hint}")
    return profile


class _Described(submitit.SlurmExecutor):
    """Writes the script of a job where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def make_executor(plan: Plan, profile: dict[str, Any], workers: int, kind: type = submitit.SlurmExecutor):
    """Submitit's executor of an array of workers."""
    parameters = {name: value for name, value in profile.items() if name != "python"}
    setup = [*parameters.pop("setup"), f"export PYTHONPATH={path_for_workers()}"]
    executor = kind(plan.folder / "jobs", max_num_timeout=LONG, python=profile.get("python"))
    try:
        executor.update_parameters(setup=setup, array_parallelism=workers, **parameters)
    except (TypeError, ValueError) as e:
        raise UserError(f"slurm: {one_line(e)}") from None
    return executor


def script(plan: Plan, profile: dict[str, Any], workers: int) -> str:
    """The sbatch script that would be submitted."""
    executor = make_executor(plan, profile, workers, _Described)
    if workers > 1:
        executor.parameters["map_count"] = workers
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def path_for_workers() -> str:
    """`PYTHONPATH` with which a worker finds this program, wherever it starts."""
    here = ROOT if (ROOT / "palimpsest").is_dir() else ROOT.parent
    return os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))


class LocalWorkers:
    """Workers that are processes of this machine and end with this one.

    Args:
        plan: the sweep.
        file: the sweep's file as it was at the start.
        workers: how many.
    """

    def __init__(self, plan: Plan, file: Path, workers: int):
        executor = submitit.LocalExecutor(plan.folder / "jobs")
        executor.update_parameters(timeout_min=LONG)
        devices, cores = visible_devices(plan), len(os.sched_getaffinity(0))
        settings = {"PYTHONPATH": path_for_workers()}
        if "OMP_NUM_THREADS" not in os.environ:
            settings["OMP_NUM_THREADS"] = str(max(cores // workers, 1))
        with environment_variables(**settings), signals_handled(PASSED_ON, signal.SIG_IGN):
            self.jobs = [
                executor.submit(Worker(file, f"{i}", os.getpid(), devices[i % len(devices)] if devices else None))
                for i in range(workers)
            ]

    def alive(self) -> bool:
        """Whether one of them works."""
        return not all(job.done() for job in self.jobs)

    def stop(self) -> None:
        """Let every run save its state and end."""
        print("\nstopping: every run saves its state; the same command goes on", file=sys.stderr, flush=True)
        for job in self.jobs:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        while self.alive():
            time.sleep(0.1)


def visible_devices(plan: Plan) -> list[str]:
    """What each worker in turn sees as its GPU; empty where there is none, or where the options name one."""
    if any(str(case.fixed.get("device", "auto")).startswith(("cuda:", "cpu", "mps")) for case in plan.cases):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device for device in given.split(",") if device] or [""]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class SlurmWorkers:
    """Workers that are the tasks of a Slurm array; they go on without this process.

    Args:
        plan: the sweep.
        file: the sweep's file as it was at the start.
        workers: how many, where none is in the queue.
        profile: see `read_profile`.
    """

    def __init__(self, plan: Plan, file: Path, workers: int, profile: dict[str, Any]):
        self.list = plan.folder / SUBMITTED
        self.next, self.known = 0.0, True
        if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            raise UserError(
                f"--launcher slurm: {missing[0]} is not found: run this where Slurm is, or --launcher local"
            )
        if self.alive():
            print(f"workers are in the queue already: {', '.join(self.queue())}")
            return
        executor = make_executor(plan, profile, workers)
        calls = [Worker(file, f"{i}") for i in range(workers)]
        try:
            with warnings.catch_warnings(action="ignore"):
                jobs = executor.submit_array(calls) if workers > 1 else [executor.submit(calls[0])]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as e:
            raise UserError(f"sbatch refuses the job: {one_line(e)}") from None
        number = jobs[0].job_id.partition("_")[0]
        with open(self.list, "a", encoding="utf-8") as f:
            f.write(f"{number}\n")
        self.next = 0.0
        print(f"submitted: Slurm job {number}, {workers} worker(s); scancel {number} ends it, and nothing is lost")

    def queue(self) -> list[str]:
        """The workers that wait or run, as 'job_task STATE'."""
        jobs = self.list.read_text(encoding="utf-8").split() if self.list.is_file() else []
        found = []
        for job in jobs[-20:]:  # Slurm forgets an ended job after some minutes, and then knows no such number
            command = ["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%i %T"]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if answer.returncode and "Invalid job id" not in answer.stderr:
                raise OSError(answer.stderr.strip())
            found += answer.stdout.splitlines()
        return found

    def alive(self) -> bool:
        """Whether one of them waits or runs; as before where Slurm does not answer."""
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + POLL
            with suppress(OSError, subprocess.TimeoutExpired):
                self.known = bool(self.queue())
        return self.known

    def stop(self) -> None:
        """They go on."""
        print("\nthe jobs go on; the same command shows them again", file=sys.stderr, flush=True)
