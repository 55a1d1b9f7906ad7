"""Runs side by side, a process for each: started, watched, ended together.

Every run goes on where it was begun and none is repeated that is finished: `--resume` finds it by its identity. So
nothing is kept here of what was done before, and whatever is killed at whatever moment, the same runs once more are
complete. The processes are forked from one that has PyTorch loaded and has done nothing else.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any

from palimpsest.utils.errors import Stopped, UserError, signals_handled
from palimpsest.utils.study.progress import Progress

WORKER = "palimpsest.utils.study.one_run"
# What nearly every run imports sooner or later: once for all. Of a second-long run it would be the larger part.
LOADED = ("sklearn.datasets", "scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_svg")
LOADED += ("torch.utils.tensorboard", "jinja2")
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


@dataclass
class Job:
    """One run to be done.

    Attributes:
        label: what it is called on the terminal.
        argv: the command line of the run.
        seed: which of the `--seeds` it is for, None where the command line has one seed.
        group: name that it shares with other runs, None: none.
        facts: what is known of it besides its options: attributes of `utils.run.config.Config`.
    """

    label: str
    argv: list[str]
    seed: int | None = None
    group: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        state: 'finished', 'failed', 'refused' (bad input: nothing was made of it), 'stopped' or 'not begun'.
        folder: of a finished run.
        metrics: scenario -> metric -> value of a finished run.
        trained: whether it was trained now; a finished one that was found is not.
        reason: why it failed or was refused, in one line.
        traceback: where a defect was the reason.
        seconds: since its process was started.
    """

    job: Job
    state: str = "not begun"
    folder: Path | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    trained: bool = False
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0


class JobsStopped(Stopped):
    """A signal ended the runs; exit status 128 + its number.

    Args:
        number: of the signal.
        outcomes: of all jobs.
    """

    def __init__(self, number: int, outcomes: Sequence[Outcome]):
        self.status, self.outcomes = 128 + number, outcomes
        done = sum(outcome.state == "finished" for outcome in outcomes)
        told = f"stopped by {signal.Signals(number).name}: {done} of {len(outcomes)} runs are finished"
        Exception.__init__(self, f"{told}; the same command goes on")


def gpus(device: str) -> list[str]:
    """What runs side by side may see as their GPU, one each in turn; nothing where `--device` names one, or none."""
    if device not in ("auto", "cuda"):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def run_all(jobs: Sequence[Job], at_once: int, devices: Sequence[str] = ()) -> list[Outcome]:
    """Do all jobs, some of them at the same time; one that fails does not keep the others from running.

    Args:
        jobs: in the order in which they are begun.
        at_once: most processes side by side. CPU threads are shared out among them where neither the options nor
            OMP_NUM_THREADS say how many a run has.
        devices: GPUs that the processes share, see `gpus`.

    Returns:
        The outcomes, in the order of the jobs.

    Raises:
        UserError: the first runs were refused, and so would be the others.
        JobsStopped: a signal; every run that was going on has saved where it was.
    """
    outcomes = [Outcome(job) for job in jobs]
    at_once = min(at_once, len(jobs))
    received: list[int] = []
    with (
        signals_handled(SIGNALS, lambda number, _: received.append(number)),
        Progress([job.label for job in jobs], at_once) as progress,
    ):
        pool = _Pool(outcomes, at_once, devices, progress)
        try:
            pool.run(received)
        finally:
            pool.end()
    if received:
        raise JobsStopped(received[0], outcomes)
    return outcomes


class _Pool:
    """The processes of `run_all`."""

    def __init__(self, outcomes: list[Outcome], at_once: int, devices: Sequence[str], progress: Progress):
        self.outcomes, self.at_once, self.progress = outcomes, at_once, progress
        self.devices: dict[int, str] = {}  # of the runs that go on
        self.all_devices = devices
        self.waiting = list(range(len(outcomes)))
        self.running: dict[connection.Connection, tuple[int, Any, float]] = {}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, cores // max(at_once, 1))
        self.accepted = False  # whether a run got further than to be refused
        self.refused: list[int] = []

    def run(self, received: list[int]) -> None:
        """Until all are done, or until those that are going on have ended after a signal."""
        passed_on = 0
        while self.running or ((self.waiting or self.refused) and not received):
            doubtful = self.refused and not self.accepted
            if doubtful and not self.running:
                raise UserError(self.outcomes[self.refused[0]].reason)
            while self.waiting and len(self.running) < self.at_once and not (received or doubtful):
                self._start(self.waiting.pop(0))
            if len(received) > passed_on:  # a second signal ends them at once
                passed_on = len(received)
                for _, process, _ in self.running.values():
                    process.terminate()
                self.progress.say("the runs save where they are and end; the same signal again ends them at once")
            for pipe in connection.wait([*self.running], timeout=0.5):
                self._listen(pipe)
            self.progress.tick()

    def end(self) -> None:
        """End what still runs: only after an error of this process."""
        for _, process, _ in self.running.values():
            process.terminate()
        for _, process, _ in self.running.values():
            process.join()

    def _start(self, i: int) -> None:
        context, environment = _context(), dict(os.environ)
        if self.all_devices:
            taken = [self.devices[other] for other, _, _ in self.running.values()]
            self.devices[i] = environment["CUDA_VISIBLE_DEVICES"] = min(self.all_devices, key=taken.count)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(WORKER, self.outcomes[i].job, environment, self.threads, theirs))
        with _no_main():
            process.start()
        theirs.close()  # so that its end is seen here when the process ends
        self.running[ours] = i, process, time.monotonic()
        self.progress.begin(i)

    def _listen(self, pipe: connection.Connection) -> None:
        i, process, began = self.running[pipe]
        outcome = self.outcomes[i]
        outcome.seconds = time.monotonic() - began
        try:
            kind, *told = pipe.recv()
        except EOFError:  # it ended without a word
            process.join()
            kind, told = "died", [process.exitcode]
        self.accepted |= kind != "refused"
        while self.accepted and self.refused:
            late = self.refused.pop(0)
            self.progress.end(late, self.outcomes[late])
        if kind in ("share", "waits"):
            self.progress.update(i, *(told if kind == "share" else (None, told[0])))
            return
        _fill(outcome, kind, told)
        del self.running[pipe]
        pipe.close()
        process.join()
        if self.accepted:
            self.progress.end(i, outcome)
        else:
            self.refused.append(i)


def _fill(outcome: Outcome, kind: str, told: list) -> None:
    outcome.state = kind
    if kind == "finished":
        outcome.folder, outcome.trained, outcome.metrics = Path(told[0]), told[1], told[2]
    elif kind == "refused":
        outcome.reason = told[0]
    elif kind == "failed":
        outcome.reason, outcome.traceback = told
    elif kind == "died":
        number = -told[0] if told[0] is not None and told[0] < 0 else 0
        outcome.state = "stopped" if number in {*map(int, SIGNALS)} else "failed"
        name = signal.Signals(number).name if number else f"status {told[0]}"
        outcome.reason = f"its process was ended ({name})"
        if name == "SIGKILL":
            outcome.reason += ": too little memory, or somebody's kill; the same command goes on"


def _work(module: str, *args: Any) -> None:
    """In the new process: its file is imported there, so that this one needs no PyTorch."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the process that started this one, which passes it on once
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    import_module(module).work(*args)


@contextmanager
def _no_main() -> Iterator[None]:
    """Within, a new process does not run the script that this one began with, which may have no guard against it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _context():
    """How processes are made. Where the system can fork, a server imports PyTorch once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER, *LOADED])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # What ends this process must not end the server: the runs save first. They take the signals again themselves.
    # The tracker, which the server would start, unblocks SIGINT and SIGTERM when it has begun: so it begins before.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})
    return context
