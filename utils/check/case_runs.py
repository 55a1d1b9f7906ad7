"""The runs that the conformance checks compare: watched, looked at more often, stopped and continued."""

import copy
import functools
import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.models.utils.contract import loss_problem
from palimpsest.models.utils.outside import same_value
from palimpsest.models.utils.state import describe
from palimpsest.utils.check.cases import Case, Failure, Interrupted
from palimpsest.utils.check.sync import SyncDetector
from palimpsest.utils.errors import one_line
from palimpsest.utils.leaks.terms import LooseTerms, Pulls, trained_by
from palimpsest.utils.randomness import random_state
from palimpsest.utils.record import Experiment, Position
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train

PULLED = 32  # first steps in which the gradient of each term of the loss is taken; later, one in as many


@dataclass
class Ended:
    """A run at its end: what the method remembers (`state_of`) and every evaluation (`scores_of`).

    Of a run that was observed also what `observe` did: places where it waits, where it adds to the loss what reaches
    no weight, or what never moves one, names of the inputs it overwrote,
    returned values that are no loss, and whether the stream's test data changed.
    """

    exp: Experiment
    state: dict
    scores: list[dict]
    unbound_terms: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    loose_terms: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)
    no_losses: list[str] = field(default_factory=list)
    stream_changed: bool = False

    @classmethod
    def of(cls, exp: Experiment) -> "Ended":
        """The run that has just ended; the states of the random generators are those of this moment."""
        return cls(exp, state_of(exp), scores_of(exp))


def differing_ends(a: Ended, b: Ended) -> list[str]:
    """Names of what two runs remember differently, and of the tasks after which they scored differently."""
    after_tasks = ({f"scores after task {s['task']}": s for s in end.scores if s["epoch"] is None} for end in (a, b))
    return differing_entries(a.state, b.state) + differing_entries(*after_tasks)


@functools.lru_cache(maxsize=1)
def observed(case: Case) -> Ended:
    """An undisturbed run of two epochs whose calls of `observe` are watched; made once for all checks of a case."""
    exp = build(case.config("--n_epochs", "2"))
    waits, loose, overwritten, no_losses, original = [], [], [], [], exp.model.observe
    pulls, steps = Pulls(), itertools.count()

    def watched(inputs, labels, not_aug_inputs, **kwargs):
        before = copy.deepcopy([inputs, labels, not_aug_inputs])
        asked = pulls if (n := next(steps)) < PULLED or n % PULLED == 0 else None
        with SyncDetector(waits), LooseTerms(trained_by(exp.model), asked) as terms:
            out = original(inputs, labels, not_aug_inputs, **kwargs)
        loose.extend(terms.places())
        overwritten.extend(differing_entries(before, [inputs, labels, not_aug_inputs]))
        if (problem := loss_problem(out)) is None:
            return out
        no_losses.append(problem)
        return 0.0  # the run goes on, for the other checks

    vars(exp.model)["observe"] = watched
    images = [loader.dataset.data.clone() for loader in exp.dataset.all_test_loaders()]
    train(exp)
    del exp.model.observe
    ended = Ended.of(exp)
    now = (loader.dataset.data for loader in exp.dataset.test_loaders)
    ended.stream_changed = not all(torch.equal(a, b) for a, b in zip(images, now, strict=True))
    ended.unbound_terms = pulls.unbound()
    ended.waits, ended.loose_terms, ended.overwritten, ended.no_losses = waits, loose, overwritten, no_losses
    return ended


@functools.lru_cache(maxsize=1)
def looked_at(case: Case) -> Ended:
    """The same run, evaluated after every epoch and captured every seven iterations."""
    exp = build(case.config("--n_epochs", "2", "--eval_epochs", "1"))

    def capture(position: Position) -> None:
        if position.step % 7 == 0:
            checkpoint.capture(exp, position)

    exp.log.after_step = capture
    train(exp)
    return Ended.of(exp)


# ---- what the checks use


def run(case: Case, *more: str, **size) -> Experiment:
    """A short run to its end; `size`: the share and tasks of `Case.config`."""
    exp = build(case.config(*more, **size))
    train(exp)
    return exp


def resumed_run(case: Case, step: int, *more: str) -> Experiment:
    """The same run, stopped after `step` iterations and continued with new objects from the saved state.

    A negative step means the place after the evaluation that follows that many iterations.
    """
    with tempfile.TemporaryDirectory() as folder:
        stop_run(case, step, Path(folder, "checkpoint.pt"), *more)
        return continue_run(case, Path(folder, "checkpoint.pt"), *more)


def stop_run(case: Case, step: int, file: Path, *more: str) -> None:
    """The first part of `resumed_run`, or of its rest where `file` holds a state: what is saved then lies in `file`."""
    exp = build(case.config(*more))
    start = checkpoint.restore(checkpoint.load(file), exp) if file.is_file() else None

    def stop(position: Position) -> None:
        if position.step == abs(step):
            checkpoint.save(checkpoint.capture(exp, position), file)
            raise Interrupted

    setattr(exp.log, "after_step" if step > 0 else "after_task", stop)
    with suppress(Interrupted):
        train(exp, start)


def continue_run(case: Case, file: Path, *more: str, stops: Sequence[int] = ()) -> Experiment:
    """The second part of `resumed_run`, itself stopped and continued at each of `stops`."""
    for step in stops:
        stop_run(case, step, file, *more)
    exp = build(case.config(*more))
    start = checkpoint.restore(checkpoint.load(file), exp)
    train(exp, start)
    return exp


def resumed_end(case: Case, steps: list[int], elsewhere: bool, *more: str) -> tuple[dict, list[dict]]:
    """State and scores at the end of one run that is stopped and continued at each of `steps`.

    Args:
        elsewhere: all that follows the first stop is done in another process, in which hashes of texts are others.

    Raises:
        Failure: the other process cannot continue.
    """
    first, *stops = steps
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "checkpoint.pt")
        stop_run(case, first, file, *more)
        if not elsewhere:
            exp = continue_run(case, file, *more, stops=stops)
            return state_of(exp), scores_of(exp)
        given = json.dumps([case.model, case.setting, [str(file)], more])
        with ProcessPoolExecutor(1, other_interpreter()) as process:
            error = process.submit(continue_elsewhere, given, stops).exception()
        if error:
            raise Failure(f"it cannot be resumed in another process: {type(error).__name__}: {one_line(error)}")
        return tuple(torch.load(f"{file}.end", weights_only=True))


@functools.cache
def other_interpreter() -> BaseContext:
    """Makes processes in which hashes of texts are others: forks of one interpreter that has imported all this."""
    context, mine = multiprocessing.get_context("forkserver"), os.environ.pop("PYTHONHASHSEED", None)
    slow = ["palimpsest.datasets.seq_digits", "sklearn.datasets", "torch._dynamo"]
    context.set_forkserver_preload([__name__, *slow])
    os.environ["PYTHONHASHSEED"] = "2" if mine == "1" else "1"
    forkserver.ensure_running()
    del os.environ["PYTHONHASHSEED"]
    if mine is not None:
        os.environ["PYTHONHASHSEED"] = mine
    return context


def continue_elsewhere(given: str, stops: Sequence[int] = ()) -> None:
    """What the other process of `resumed_end` does: from each of the given files to the end of its run."""
    model, setting, files, more = json.loads(given)
    for file in files:
        exp = continue_run(Case(model, setting), Path(file), *more, stops=stops)
        torch.save([state_of(exp), scores_of(exp)], f"{file}.end")


def state_of(exp: Experiment) -> dict:
    """What the method remembers, its optimisers included, and where the random generators are."""
    return {"model": copy.deepcopy(describe(exp.model)), "random": random_state()}


def scores_of(exp: Experiment) -> list[dict]:
    """Every evaluation of a run."""
    return [vars(evaluation) for evaluation in exp.run.history]


def differing_entries(a, b, name: str = "") -> list[str]:
    """Names of the leaves in which two nested states differ; nan equals nan."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in differing_entries(a.get(k), b.get(k), f"{name}.{k}".lstrip("."))]
    if type(a) is type(b) and isinstance(a, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differing_entries(x, y, f"{name}[{i}]")]
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        same = same_value(a, b)
    else:
        same = a == b or (a != a and b != b)
    return [] if same else [name]
