"""What a run spends: seconds and floating-point operations, over all processes that take part in it.

Operations are counted in one step of every task, once the method's memory has something in it, and multiplied by the
task's steps; the hooks of a method (the Fisher information, training on a memory) are counted as they run. A counted
step is the run's own: nothing is computed twice, and no result changes.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from palimpsest.utils.errors import UserError
from palimpsest.utils.record import Position
from palimpsest.utils.run.measure.flops import FlopCounter, count_flops

WARM_UP = 10  # steps of a task before the one that is counted
COMPILED = "the operations of a compiled network cannot be counted (--compile)"
OLDER = "not known: the run went on from a checkpoint of an older version, which does not say what it had spent"
PARTS = ("training", "evaluating", "points")
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
OPERATIONS = ("flops_training", "flops_inference")
AT_TASK = {"per_step": None, "limit": None}


class Meter:
    """Measures a run as it goes; what it knows is a part of checkpoints, so that a resumed run has spent what it had.

    Args:
        args: resolved options, None for a meter that counts no operations.

    Attributes:
        spent: `seconds_X` and `cpu_seconds_X` of every X of `PARTS`; `images` scored by whole evaluations; operations:
            `done` but for the steps of the task in training, `before` that task, `closing` in the last one's last hook,
            `per_step` of one of its steps (None before they are counted), `inference` of 1,000 images in the latest
            evaluation; `begun`, iterations before the task in training; `limit`, at how many of its steps the task's
            share of `--budget_flops` is spent, None without a budget.
    """

    def __init__(self, args: Any = None):
        self.counts = args is not None and not args.compile
        self.budget: float | None = getattr(args, "budget_flops", None)
        if self.budget and not self.counts:
            raise UserError(f"--budget_flops: {COMPILED}: drop --compile")
        self.part: str | None = None
        self.since: tuple[float, ...] = ()
        self.unknown = "" if self.counts else COMPILED  # why there is no number of operations
        self.next, self.tasks_left = -1, 1
        self.spent: dict[str, Any] = {f"{kind}_{part}": 0.0 for part in PARTS for kind in CLOCKS}
        self.spent |= {"images": 0, "done": 0, "before": 0, "closing": 0, "begun": 0, "inference": None, **AT_TASK}

    # ---- seconds

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Within: the time counts for this one of `PARTS`, and for no other."""
        outer = self.part
        self._switch(part)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, part: str | None) -> None:
        now = tuple(clock() for clock in CLOCKS.values())
        for kind, begun, ended in zip(CLOCKS, self.since, now, strict=True) if self.part else ():
            self.spent[f"{kind}_{self.part}"] += ended - begun
        self.part, self.since = part, now

    # ---- training

    def begin_task(self, at: Position, plan: list[int], tasks_left: int = 1) -> None:
        """A task is entered, or entered again where a run is resumed. A whole batch of its first epoch is counted.

        Args:
            plan: batches of each epoch.
            tasks_left: tasks among which what is left of a budget is shared, this one included.
        """
        if not at.inside:
            self.spent |= AT_TASK | {"begun": at.step}
        self.tasks_left = tasks_left
        self.next = self.spent["begun"] + min(WARM_UP, max(plan[0] - 2, 0)) if self.counts else -1

    def step(self, model, at: Position, *batch: Any) -> Any:
        """The losses of a training step on (inputs, labels, raw inputs)."""
        if at.step != self.next:
            return model.meta_observe(*batch, at.epoch)
        with FlopCounter() as counter:
            losses = model.meta_observe(*batch, at.epoch)
        self.spent["per_step"] = counter.total
        if self.budget and counter.total:
            self.spent["limit"] = self._share(at.step + 1 - self.spent["begun"])
        return losses

    def _share(self, steps: int) -> int:
        """At how many steps the share of the budget is spent of a task that has done so many."""
        spent = self.spent
        share = (self.budget - spent["before"]) / self.tasks_left
        most = int((spent["before"] + share - spent["done"] - spent["closing"]) // spent["per_step"])
        if most < steps and not spent["closing"] and not spent["before"]:
            least = self.tasks_left * (spent["done"] + steps * spent["per_step"])
            raise UserError(
                f"--budget_flops {self.budget:g}: {steps} steps in each of {self.tasks_left} task(s) take {least:.3g}, "
                "fewer cannot be measured: give more"
            )
        return max(most, steps)

    def within_budget(self, batches: Iterable, at: Position) -> Iterable:
        """The batches as long as the task's share of the budget lasts."""
        return self._affordable(iter(batches), at) if self.budget else batches

    def _affordable(self, batches: Iterator, at: Position) -> Iterator:
        while not self.is_spent(at) and (batch := next(batches, None)) is not None:
            yield batch

    def is_spent(self, at: Position) -> bool:
        """Whether the share of the budget is spent of the task in training."""
        limit = self.spent["limit"]
        return limit is not None and at.step - self.spent["begun"] >= limit

    def hook(self, function: Callable, *args: Any, data: Any = None) -> Any:
        """What a hook of a method returns; its operations are counted.

        Args:
            data: the task's `TaskData`, of whose batches only the first ones are counted.
        """
        if not self.counts:
            return function(*args)
        out, flops = count_flops(function, *args, data=data)
        self.spent["done"] += flops
        return out

    def end_task(self, at: Position, function: Callable, *args: Any, data: Any = None) -> None:
        """The steps of a task are done, and its last hook is called."""
        done = self.spent["done"] + (self.spent["per_step"] or 0) * (at.step - self.spent["begun"])
        self.spent |= AT_TASK | {"done": done, "begun": at.step}
        self.hook(function, *args, data=data)
        self.spent |= {"closing": self.spent["done"] - done, "before": self.spent["done"]}

    # ---- evaluation

    @contextmanager
    def evaluation(self) -> Iterator[Callable[[int], AbstractContextManager]]:
        """Within: an evaluation; gives what is put around each of its batches of n images. The first one is counted."""
        first = True

        def batch(n: int) -> AbstractContextManager:
            nonlocal first
            self.spent["images"] += n
            counted, first = first and self.counts, False
            return self._counted(n) if counted else nullcontext()

        with self.clock("evaluating"):
            yield batch

    @contextmanager
    def _counted(self, n: int) -> Iterator[None]:
        with FlopCounter() as counter:
            yield
        self.spent["inference"] = round(1000 * counter.total / max(n, 1))

    # ---- what is known

    def flops(self, step: int) -> int | None:
        """Operations of training up to an iteration; None where they are not known."""
        spent = self.spent
        return None if self.unknown else spent["done"] + (spent["per_step"] or 0) * (step - spent["begun"])

    def costs(self, step: int) -> dict[str, float | int | None]:
        """What the run has spent up to an iteration, see docs/report.md; None where it is not known."""
        self._switch(self.part)
        spent, known = self.spent, self.unknown != OLDER
        seconds = {f"{kind}_training": spent[f"{kind}_training"] for kind in CLOCKS}
        seconds |= {f"{kind}_evaluating": spent[f"{kind}_evaluating"] + spent[f"{kind}_points"] for kind in CLOCKS}
        out = {name: round(value, 3) if known else None for name, value in seconds.items()}
        images, wall = spent["images"], spent["seconds_evaluating"]
        out["inference_seconds_per_1000"] = round(1000 * wall / images, 6) if images else None
        return out | {"flops_training": self.flops(step), "flops_inference": spent["inference"]}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._switch(self.part)
        return dict(self.spent)

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from there; None where a checkpoint does not say it.

        Raises:
            ValueError, TypeError: it is not what `state_dict` returns.
        """
        if state is None:
            self.unknown = OLDER
            return
        if state.keys() != self.spent.keys():
            raise ValueError(f"what was spent has the entries {', '.join(map(str, state))}")
        for name, value in state.items():
            kind = float if "seconds" in name else int
            if not (type(value) is kind and value >= 0 or (value is None and self.spent[name] is None)):
                raise TypeError(f"{name} {value!r} spent")
        self.spent = dict(state)
