"""What every method must do, checked on small embedded streams; `python main.py --check my_method` runs it on a
dropped-in file.

Each check is a function of a `Case` (a method on a stream); it returns nothing when the method passes and raises
`Failure` with a sentence for its author otherwise. The tests run the same functions over every file of models/.
"""

import argparse
import atexit
import functools
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.utils.state import describe
from models.utils.walk import same_value
from utils import checkpoint, registry
from utils.best_args import check_rows, load_rows
from utils.config import Config, declared_options, refuse_setting, resolve
from utils.errors import UserError
from utils.evaluation import evaluate
from utils.experiment import build
from utils.randomness import random_state
from utils.run import Experiment, Position
from utils.training import train
from utils.waiting import Waiting

# The stream of each setting; of those with the task given the one of unlike vision tasks is a case of its own.
STREAMS = {
    "class-il": "seq-digits", "domain-il": "perm-digits", "general-continual": "digits-360",
    "vision": "seq-vision-mini",
}  # fmt: skip
# Score (percent) on a task just learned that a method must exceed; chance is 50, 10, 11, and 15 on average.
LEARNED = {"class-il": 75.0, "domain-il": 50.0, "general-continual": 14.0, "vision": 35.0}
PLACEHOLDERS = {
    "buffer_size": "100", "minibatch_size": "16", "fitting_epochs": "30", "nf": "16",
    "imp_arch": "", "latent_dim": "2", "full_support_perturbation": "0", "hnet_arch": "10",
    "train_sample_size": "2", "num_kl_samples": "2", "num_ssge_samples": "8",
    "finetune_steps": "10", "probe_size": "8",
    "kl_scale": "0.001", "prior_variance": "0.01",  # few examples do not outweigh a wide prior
}  # fmt: skip


class Failure(AssertionError):
    """A method breaks the contract; the message tells its author how."""


class Interrupted(Exception):
    """Raised by a check to stop a run in the middle."""


@dataclass(frozen=True)
class Case:
    """A method (name or path) on the small stream of one of `STREAMS`."""

    model: str
    setting: str

    def config(self, *more: str, share: float = 0.2, tasks: int = 3) -> Config:
        """A short run: the first tasks of the stream (`tasks` of class-IL), a share of their examples."""
        stream = STREAMS[self.setting]
        argv = ["--model", self.model, "--dataset", stream, "--disable_log", "--non_verbose", "--num_threads", "1"]
        argv += required_options(self.model)
        if self.setting == "vision":
            argv += ["--base_path", vision_folder(), "--vision_items", "digits", "--vision_size", "32"]
            argv += ["--vision_subset", str(round(100 * share)), "--seg_classes", "binary"]
            # A test that brings its own of these has the last word.
            argv += [a for o, v in (("--batch_size", "8"), ("--n_epochs", "1")) if o not in more for a in (o, v)]
            return resolve([*argv, "--device", "cpu", *more])
        argv += ["--label_perc", str(share)]
        if self.setting != "class-il" and "backbone" not in getattr(registry.load("model", self.model), "DEFAULTS", {}):
            argv += ["--backbone", "mnistmlp"]  # where convolutions make sense they are tested; this one is quicker
        if not registry.load("model", self.model).JOINT:
            argv += {"class-il": ["--stop_after", str(tasks)], "domain-il": ["--stop_after", "2"]}.get(self.setting, [])
        elif self.setting == "domain-il" and "--n_epochs" not in more:
            argv += ["--n_epochs", "2"]  # all twenty tasks at once
        return resolve([*argv, "--device", "cpu", *more])


@functools.cache
def vision_folder() -> str:
    """Where the files of the vision stream are made, once per process."""
    folder = tempfile.mkdtemp(prefix="vision-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def cases(model: str) -> list[Case]:
    """One case per setting that the method can be run in."""
    cls, out = registry.load("model", model), []
    for setting, stream in STREAMS.items():
        try:
            refuse_setting(cls, registry.load("dataset", stream))
        except UserError:
            continue
        out.append(Case(model, setting))
    return out


def required_options(model: str) -> list[str]:
    """Mild values for the options that a method, or the network it brings, requires or that take long: a buffer of 100,
    1 for other integers, 0.5 for numbers.
    """
    argv, cls = [], registry.load("model", model)
    own = getattr(cls, "DEFAULTS", {}).get("backbone")
    sources = [cls, *([registry.load("backbone", own)] if own else [])]
    for action in (action for source in sources for action in declared_options(source)._actions):
        if action.required or action.dest in PLACEHOLDERS:
            value = PLACEHOLDERS.get(action.dest, "1" if getattr(action.type, "__name__", "") == "int" else "0.5")
            argv += [action.option_strings[0], value]
    return argv


# ---- the checks


def options_are_documented(case: Case) -> None:
    """Every option has a help text, and the stored rows name options that exist."""
    cls = registry.load("model", case.model)
    for action in declared_options(cls)._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction) and not action.help:
            raise Failure(f"{action.option_strings[0]} has no help text: say what it means and in which unit")
    names = {*vars(case.config().args)}
    for dataset, rows in load_rows(cls.NAME).items():
        backbones = {row["args"].get("backbone") for row in rows} - {None}
        for kind, name in [("dataset", dataset), *(("backbone", b) for b in backbones)]:
            names |= {action.dest for action in declared_options(registry.load(kind, name))._actions}
    problems = check_rows(load_rows(cls.NAME), names)
    if problems:
        raise Failure("best_args: " + "; ".join(problems))


def other_settings_are_refused(case: Case) -> None:
    """A setting that COMPATIBILITY does not list ends in one line, not in a run."""
    allowed = {c.setting for c in cases(case.model)}
    for setting in STREAMS.keys() - allowed:
        try:
            Case(case.model, setting).config()
        except UserError:
            continue
        raise Failure(f"COMPATIBILITY does not list {setting}, yet the method was accepted there")


def learns(case: Case) -> None:
    """A task that was just learned is known well above chance, and every loss is finite."""
    several = case.setting in ("class-il", "vision")
    name = "task-il" if several else case.setting
    # Most methods need few epochs; the others get more.
    for epochs in (["--n_epochs", "3"], ["--n_epochs", "8"]) if several else ([],):
        exp = run(case, *epochs, share=0.5 if case.setting == "vision" else 1, tasks=2)
        matrix = exp.run.matrices[name]
        scores = matrix[-1] if exp.model.JOINT else [row[t] for t, row in enumerate(matrix) if not math.isnan(row[0])]
        learned = sum(scores) / len(scores)
        if learned >= LEARNED[case.setting]:
            return
    raise Failure(
        f"after learning a task its {name} score is {learned:.1f} % on {STREAMS[case.setting]}, expected at "
        f"least {LEARNED[case.setting]:.0f} %: does observe step the optimiser, and on the right labels?"
    )


def same_seed_same_result(case: Case) -> None:
    """The same command twice gives the same scores and weights, bit for bit."""
    first = observed(case)
    if not differing_ends(first, looked_at(case)):
        return  # and so did a run that was looked at more often
    differing = differing_ends(first, Ended.of(run(case, "--n_epochs", "2")))
    if differing:
        raise Failure(
            f"two runs with one seed ended with different {', '.join(differing[:3])}: "
            "draw random numbers from torch, which the run has seeded"
        )


def observe_never_waits(case: Case) -> None:
    """Nothing in observe asks for a value of a tensor: no .item(), .cpu(), `if tensor`, boolean-mask indexing,
    nonzero, unless the method says in `WAITS` why it must.
    """
    found = observed(case)
    if found.waits and not found.exp.model.WAITS:
        raise Failure(
            f"observe waits for the device in {found.waits[0]}: "
            "keep values as tensors (return the loss itself, not loss.item())"
        )


def resumes_exactly(case: Case, elsewhere: bool = True) -> None:
    """Stopped at some iteration, saved, restored in another process and continued, a run ends as if it had never
    stopped.
    """
    undisturbed = observed(case)
    ends = [evaluation["step"] for evaluation in undisturbed.scores]
    total = ends[-1]
    # The first iteration, the middle of things, a task's last iteration (its end_task is run by the second process),
    # and the place between two tasks (its begin_task is).
    steps = sorted({1, total // 2 + 1, ends[0], -ends[0]})
    for step, (state, scores) in zip(steps, resumed_ends(case, steps, elsewhere, "--n_epochs", "2"), strict=True):
        differing = differing_entries(undisturbed.state, state)
        if differing or differing_entries(undisturbed.scores, scores):
            what = ", ".join(differing[:3]) or "its scores"
            raise Failure(
                f"stopped at iteration {abs(step)} of {total} and resumed, the run differs in {what}: what the method "
                "remembers must be in its attributes, not in globals, closures or files"
            )


def looking_changes_nothing(case: Case) -> None:
    """How often the run is evaluated or saved changes neither what is learned nor the scores."""
    differing = differing_ends(observed(case), looked_at(case))
    if differing:
        raise Failure(f"evaluating and saving more often changed {', '.join(differing[:3])}")


def evaluation_leaves_no_trace(case: Case) -> None:
    """Evaluating changes nothing the method remembers, and leaves it in training mode."""
    exp = observed(case).exp
    before = state_of(exp)
    evaluate(exp.model, exp.dataset, range(len(exp.dataset.test_loaders)), trained=0)
    differing = differing_entries(before, state_of(exp))
    if differing:
        raise Failure(
            f"evaluation changed {', '.join(differing[:3])}: forward must not modify what the method remembers"
        )
    if not exp.model.training:
        raise Failure("evaluation left the method in eval mode")


def the_stream_is_left_alone(case: Case) -> None:
    """observe modifies neither its inputs nor the stream's data."""
    found = observed(case)
    if found.overwritten:
        raise Failure("observe changes the tensors it is given in place: clone them first")
    if found.stream_changed:
        raise Failure("the method changed the stream's data")


def losses_are_reported(case: Case) -> None:
    """observe returns the loss: a 0-d tensor, a float, or a dict with 'loss'."""
    if given := observed(case).no_losses:
        raise Failure(f"observe returned {given[0]}: return the loss as a 0-d tensor, a float, or a dict with 'loss'")


CHECKS: list[Callable[[Case], None]] = [
    options_are_documented,
    other_settings_are_refused,
    losses_are_reported,
    learns,
    same_seed_same_result,
    observe_never_waits,
    evaluation_leaves_no_trace,
    the_stream_is_left_alone,
    looking_changes_nothing,
    resumes_exactly,
]


def check_and_print(model: str) -> bool:
    """Run every check on every setting of a method and print a line each; whether all passed."""
    registry.load("model", model)
    failed = 0
    for case in cases(model):
        print(f"{registry.load('model', model).NAME} on {STREAMS[case.setting]} ({case.setting})")
        for check in CHECKS:
            problem = problem_with(case, check)
            failed += problem is not None
            title = inspect.getdoc(check).split("\n", 1)[0]
            print(f"  pass  {title}" if problem is None else f"  FAIL  {title}\n        {problem}")
    print("every check passed" if not failed else f"{failed} check(s) failed")
    return not failed


def problem_with(case: Case, check: Callable[[Case], None]) -> str | None:
    """What a check finds wrong, None if nothing; the author's own error with the place where it happened."""
    try:
        check(case)
    except (UserError, Failure) as e:
        return str(e)
    except Exception as e:  # noqa: BLE001
        frame = traceback.extract_tb(e.__traceback__)[-1]
        return f"{type(e).__name__}: {e} ({frame.filename}:{frame.lineno})"
    return None


# ---- the runs that several checks share


@dataclass
class Ended:
    """A run at its end: what the method remembers (`state_of`) and every evaluation (`scores_of`).

    Of a run that was observed also what `observe` did: places where it waits, names of the inputs it overwrote,
    returned values that are no loss, and whether the stream's test data changed.
    """

    exp: Experiment
    state: dict
    scores: list[dict]
    waits: list[str] = field(default_factory=list)
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
    waits, overwritten, no_losses, original = [], [], [], exp.model.observe

    def watched(inputs, labels, not_aug_inputs, **kwargs):
        before = copied([inputs, labels, not_aug_inputs])
        with Waiting(waits):
            out = original(inputs, labels, not_aug_inputs, **kwargs)
        overwritten.extend(differing_entries(before, [inputs, labels, not_aug_inputs]))
        loss = out.get("loss") if isinstance(out, dict) else out
        if isinstance(loss, float) or (isinstance(loss, Tensor) and loss.dim() == 0):
            return out
        no_losses.append(f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss))
        return 0.0  # the run goes on, for the other checks

    exp.model.observe = watched
    images = [loader.dataset.data.clone() for loader in exp.dataset.all_test_loaders()]
    train(exp)
    del exp.model.observe
    ended = Ended.of(exp)
    now = (loader.dataset.data for loader in exp.dataset.test_loaders)
    ended.stream_changed = not all(torch.equal(a, b) for a, b in zip(images, now, strict=True))
    ended.waits, ended.overwritten, ended.no_losses = waits, overwritten, no_losses
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
    """The first part of `resumed_run`: what is saved lies in `file`."""
    exp = build(case.config(*more))

    def stop(position: Position) -> None:
        if position.step == abs(step):
            checkpoint.save(checkpoint.capture(exp, position), file)
            raise Interrupted

    setattr(exp.log, "after_step" if step > 0 else "after_task", stop)
    with suppress(Interrupted):
        train(exp)


def continue_run(case: Case, file: Path, *more: str) -> Experiment:
    """The second part of `resumed_run`."""
    exp = build(case.config(*more))
    start = checkpoint.restore(checkpoint.load(file), exp)
    train(exp, start)
    return exp


def resumed_ends(case: Case, steps: list[int], elsewhere: bool, *more: str) -> list[tuple[dict, list[dict]]]:
    """State and scores at the end of `resumed_run` from each of `steps`.

    Args:
        elsewhere: continue in another process, in which hashes of texts are others.
    """
    if not elsewhere:
        return [(state_of(exp), scores_of(exp)) for exp in (resumed_run(case, step, *more) for step in steps)]
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, f"{i}.pt")) for i in range(len(steps))]
        for step, file in zip(steps, files, strict=True):
            stop_run(case, step, Path(file), *more)
        told = json.dumps([case.model, case.setting, files, more])
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        program = "from utils.conformance import continue_elsewhere; import sys; continue_elsewhere(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", program, told], cwd=registry.ROOT, capture_output=True, text=True,
                              env=os.environ | {"PYTHONHASHSEED": seed})  # fmt: skip
        if done.returncode:
            raise Failure(f"it cannot be resumed in another process: {done.stderr.strip().splitlines()[-1]}")
        return [tuple(torch.load(f"{file}.end", weights_only=True)) for file in files]


def continue_elsewhere(told: str) -> None:
    """What the other process of `resumed_ends` does."""
    model, setting, files, more = json.loads(told)
    for file in files:
        exp = continue_run(Case(model, setting), Path(file), *more)
        torch.save([state_of(exp), scores_of(exp)], f"{file}.end")


def state_of(exp: Experiment) -> dict:
    """What the method remembers, its optimisers included, and where the random generators are."""
    return {
        "model": copied(describe(exp.model)),
        "random": random_state(),
    }


def scores_of(exp: Experiment) -> list[dict]:
    """Every evaluation of a run."""
    return [vars(evaluation) for evaluation in exp.run.history]


def copied(value):
    """A deep copy of nested dicts, lists and tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list | tuple) else value


def differing_entries(a, b, name: str = "") -> list[str]:
    """Names of the leaves in which two nested states differ; nan equals nan."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in differing_entries(a.get(k), b.get(k), f"{name}.{k}".lstrip("."))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differing_entries(x, y, f"{name}[{i}]")]
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        same = same_value(a, b)
    else:
        same = a == b or (a != a and b != b)
    return [] if same else [name]
