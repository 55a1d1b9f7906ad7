"""Who reads which part of a stream: where examples are handed out, reads are counted, and those that no method may do
are found.

The runner reads what it wants: it scores, and checks before it starts. A read counts as the method's where a function
of the method's file, of models/ or of the network is among the callers. The training batches of the current task are
counted without a look at the callers.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palimpsest import ROOT
from palimpsest.utils.leaks.kinds import EARLIER, LATER, TEST

METHODS = (str(ROOT / "models") + os.sep, str(ROOT / "backbone") + os.sep)
STREAMS = str(ROOT / "datasets") + os.sep
FOREIGN = str(ROOT / "models" / "utils" / "mammoth") + os.sep  # shows the stream's own loaders in another form
TRAINED, HELD_OUT, TESTED = "training", "held-out", "test"


class Reads:
    """What was read of a stream.

    Args:
        stream: its `c_task` is the stage in training, `stages` the tasks of each.

    Attributes:
        counts: (part, task, stage in training, 'runner' or 'method') -> reads: a pass through a loader, or a look at
            its data.
        found: kind of leak -> what was read and where, in the order found.
    """

    def __init__(self, stream: Any):
        self.stream, self.counts, self.found = stream, Counter(), {}
        self.watched, self._files, self._known, self._told = True, set(), {}, set()

    def __deepcopy__(self, memo: dict) -> "Reads":
        return self  # who copies a stream and reads the copy has read the stream

    def watch(self, *classes: type) -> None:
        """From now on what the files of these classes read counts as the method's."""
        modules = {c.__module__ for cls in classes for c in getattr(cls, "__mro__", ())}
        ours = (name for name in modules if name.partition(".")[0] not in ("torch", "builtins", "abc", "typing"))
        files = (getattr(sys.modules.get(name), "__file__", None) for name in ours)
        self._files |= {file for file in files if file}
        self._known.clear()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Inside, the runner asks a method for what it answers from the data: before training, or for the report."""
        self.watched, before = False, self.watched
        try:
            yield
        finally:
            self.watched = before

    def of_part(self, loader: Any, part: str, task: int) -> Any:
        """Count the reads of a loader's data as those of a task's part; returns the loader."""
        data = getattr(loader, "dataset", None)
        if hasattr(data, "note"):
            data.note = partial(self.note, part, task)
        return loader

    def note(self, part: str, task: int) -> None:
        """A read of a part of a task."""
        stage = max(self.stream.c_task, 0)
        if part == TRAINED and task == stage:
            self.counts[part, task, stage, "runner"] += 1
            return
        place = self.caller()
        self.counts[part, task, stage, "method" if place else "runner"] += 1
        if place is None or not self.watched:
            return
        if part == TESTED:
            self.tell(TEST, f"test data of task {task + 1} are read", place)
        elif not self._current(task, stage):
            kind = LATER if task > stage else EARLIER
            self.tell(kind, f"{part} data of task {task + 1} are read in task {stage + 1}", place)

    def note_entry(self, task: int) -> None:
        """The stream is placed before a task, which is the runner's affair."""
        if self.watched and task != self.stream.c_task and (place := self.caller()):
            self.tell(LATER if task > self.stream.c_task else EARLIER, f"task {task + 1} is entered", place)

    def note_storage(self, part: str, rows: Any = None) -> None:
        """A read of what is in memory, past the loaders.

        Args:
            rows: which ones, see `rows_within`; all by default.
        """
        frame = sys._getframe(2)
        if frame.f_code.co_filename.startswith((STREAMS, FOREIGN)) or not self.watched:
            return
        if (place := self.caller()) is None:
            return
        stage, stages = max(self.stream.c_task, 0), getattr(self.stream, "stages", ())
        self.counts[part, None, stage, "method"] += 1
        if part == TESTED:
            self.tell(TEST, "the stream's test data are read past its loaders", place)
        elif len(stages) > 1 and (rows is None or not rows_within(rows, self.stream._stage_part(stage)[1])):
            kind = LATER if stage + 1 < len(stages) else EARLIER
            self.tell(kind, "training data of other tasks are read past the loaders", place)

    def tell(self, kind: str, what: str, place: str) -> None:
        """Note a leak, the first one of each place."""
        if (kind, place) not in self._told:
            self._told.add((kind, place))
            self.found.setdefault(kind, []).append(f"{what} in {place}")

    def caller(self) -> str | None:
        """File and line of the method that reads, None where the runner does."""
        frame, known = sys._getframe(1), self._known
        while frame is not None:
            name = frame.f_code.co_filename
            mine = known.get(name)
            if mine is None:
                mine = known[name] = name in self._files or name.startswith(METHODS)
            if mine:
                return f"{os.path.basename(name)}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    def _current(self, task: int, stage: int) -> bool:
        stages = getattr(self.stream, "stages", ())
        tasks: Iterable[int] = stages[stage] if stage < len(stages) else ()
        return task == stage or task in tasks


def rows_within(rows: Any, own: Tensor) -> bool:
    """Whether rows (n,), a list of such, or one row, are all among a task's own."""
    parts = rows if isinstance(rows, list) else [rows]
    return all(bool(torch.isin(torch.as_tensor(part, device=own.device), own).all()) for part in parts)
