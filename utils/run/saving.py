"""When a run's state is written: after tasks, every so many iterations or minutes, and when a signal asks for it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palimpsest.utils.errors import Stopped, TrainingFailed, UserError, signals_handled
from palimpsest.utils.record import Experiment, Position
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.training import last_task

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Signals:
    """Remembers the first signal to stop; a second one ends the process at once.

    Files are replaced whole, so that an end at any moment corrupts nothing.
    """

    def __init__(self):
        self.received: int | None = None

    def __call__(self, number: int, frame) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        # print() is not safe inside a handler.
        os.write(2, b"\nstopping at the next iteration; the same signal again stops at once\n")

    @contextmanager
    def watched(self) -> Iterator["Signals"]:
        """Handles the signals inside the block."""
        with signals_handled(SIGNALS, self):
            yield self


class Saver:
    """Writes checkpoints of one run as the options ask.

    Args:
        exp: the experiment.
        signals: what asks for a checkpoint and an end.

    `--savecheck task` keeps a file per task, every other occasion writes `<name>.pt` and keeps the one before it. What
    was learned in the end is kept unless `--savecheck no` is given.
    """

    def __init__(self, exp: Experiment, signals: Signals):
        self.exp, self.signals, args = exp, signals, exp.args
        self.folder: Path | None = exp.run.folder
        self.name = args.ckpt_name or "checkpoint"
        kind = args.savecheck or ("last" if args.resume or args.savecheck_minutes else None)
        self.every = kind if isinstance(kind, int) else 0
        self.kind = "last" if isinstance(kind, int) else kind if kind != "no" else None
        self.end = None if kind == "no" else last_task(args, exp.dataset)
        self.seconds = 60 * (args.savecheck_minutes or 0)
        self.next = time.monotonic() + self.seconds
        self.newest: Path | None = None

    def after_step(self, position: Position) -> None:
        """Called after every iteration."""
        timed = self.seconds and time.monotonic() >= self.next
        if self.signals.received or timed or (self.every and position.step % self.every == 0):
            self.write(position)
        self.stop_if_asked(position)

    def after_task(self, position: Position) -> None:
        """Called after a task's evaluation."""
        if self.kind == "task":
            self.write(position, f"{self.name}_task{position.task - 1}.pt")
        elif self.kind or self.signals.received:
            self.write(position)
        elif position.task == self.end:
            self.keep(position)
        self.stop_if_asked(position)

    def keep(self, position: Position) -> None:
        """Write what was learned; a run that cannot be kept has its scores all the same."""
        try:
            self.write(position)
        except (UserError, TrainingFailed) as e:
            print(f"main.py: what this run has learned is not kept: {e}", file=sys.stderr)

    def stop_if_asked(self, position: Position) -> None:
        """End the run where a signal was received."""
        if self.signals.received:
            raise Stopped(self.signals.received, self.newest, position.step)

    def write(self, position: Position, name: str | None = None) -> None:
        """Write the state now."""
        if self.folder is None:
            return
        for logger in self.exp.log.loggers:  # no event before a checkpoint is lost after it
            logger.saving(self.exp.run)
        state = checkpoint.capture(self.exp, position)
        self.newest = self.folder / (name or f"{self.name}.pt")
        checkpoint.save(state, self.newest, keep_previous=name is None)
        self.next = time.monotonic() + self.seconds
