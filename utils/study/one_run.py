"""One run in a process of its own, which tells the process that started it how far it is.

What it tells is a tuple: ('share', between 0 and 1, words), ('waits', words), and at the end one of ('finished',
folder, whether it was trained now, metrics), ('refused', words), ('failed', words, traceback), ('stopped', status).
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from argparse import Namespace
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import torch

from palimpsest.utils.atomic import file_errors
from palimpsest.utils.errors import Stopped, TrainingFailed, UserError, one_line
from palimpsest.utils.log.events import Logger
from palimpsest.utils.record import Evaluation, Experiment, Position, Run
from palimpsest.utils.run.config import Config, resolve
from palimpsest.utils.run.experiment import execute, prepare
from palimpsest.utils.run.layers import with_seed
from palimpsest.utils.run.training import last_task

OUTPUT = "output.txt"  # in a run's folder: what the run would have printed


def work(job: Any, environment: dict[str, str], threads: int, pipe: Connection) -> None:
    """What the process does.

    Args:
        job: a `utils.study.jobs.Job`.
        environment: the variables of the process that started this one.
        threads: CPU threads where neither the options nor OMP_NUM_THREADS say how many.
        pipe: takes what is told.
    """
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(min(threads, torch.get_num_threads()))
    with tempfile.TemporaryFile() as output, contextlib.suppress(OSError):
        _redirect(output)
        pipe.send(_outcome(job, Teller(pipe, output)))


def _end_with_parent() -> None:
    """A run whose starter was killed saves where it is and ends, so that the next one finds it free."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _redirect(file: BinaryIO) -> None:
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)


def _outcome(job: Any, teller: "Teller") -> tuple:
    try:
        config = configured(job)
        run, summary = execute(config, group=job.group, listeners=[teller], on_taken=teller.waits)
    except UserError as e:
        steps = [frame.f_code for frame, _ in traceback.walk_tb(e.__traceback__)]
        made = execute.__code__ in steps and prepare.__code__ not in steps
        return ("failed", str(e), "") if made else ("refused", str(e))
    except TrainingFailed as e:
        return "failed", str(e), ""
    except Stopped as e:
        return "stopped", e.status
    except Exception as e:
        traceback.print_exc()
        return "failed", f"{type(e).__name__}: {one_line(e)}", traceback.format_exc()
    return "finished", str(run.folder), teller.trained, summary


def configured(job: Any) -> Config:
    """The configuration of a job's run, which goes on where it was begun."""
    config = resolve(job.argv)
    args = config.args if job.seed is None else with_seed(config.args, job.seed)
    return replace(config, args=Namespace(**vars(args) | {"resume": True}), **job.facts)


class Teller(Logger):
    """Tells the share of the run that is done; what is printed goes to the run's folder from the moment it has one.

    Attributes:
        trained: whether the run was trained, and not found finished.
    """

    def __init__(self, pipe: Connection, output: BinaryIO):
        self.pipe, self.output, self.trained = pipe, output, False

    def run_started(self, run: Run) -> None:
        self.trained = True
        sys.stdout.flush()
        path = run.folder / OUTPUT
        with file_errors(path), open(path, "ab") as f:
            self.output.seek(0)
            shutil.copyfileobj(self.output, f)
            f.flush()
            _redirect(f)

    def task_started(self, exp: Experiment, at: Position, done: int, steps: int | None) -> None:
        first = exp.args.start_from
        self.tasks, self.task = last_task(exp.args, exp.dataset) - first, at.task - first
        self.start, self.steps = at.step - done, steps
        self._tell(at.step)

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        self._tell(step)

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        if evaluation.epoch is None and evaluation.task >= 0:
            self.start, self.steps = evaluation.step, None
            self.task += 1
            self._tell(evaluation.step)

    def waits(self, words: str) -> None:
        """Another process has the run."""
        self._send("waits", words)

    def _tell(self, step: int) -> None:
        inside = min((step - self.start) / self.steps, 1.0) if self.steps else 0.0
        share = min((self.task + inside) / max(self.tasks, 1), 1.0)
        self._send("share", share, f"task {min(self.task + 1, self.tasks)}/{self.tasks}")

    def _send(self, *told) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: `_end_with_parent` ends the run
            self.pipe.send(told)
