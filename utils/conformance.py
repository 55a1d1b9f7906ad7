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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.utils.outside import same_value
from models.utils.state import describe
from utils import checkpoint, registry
from utils.best_args import check_rows, load_rows
from utils.config import Config, declared_options, refuse_setting, resolve
from utils.errors import UserError
from utils.experiment import Experiment, build
from utils.randomness import random_state
from utils.training import Position, train

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

    def config(self, *more: str, share: float = 0.2) -> Config:
        """A short run: the first tasks of the stream, a share of their examples."""
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
            argv += {"class-il": ["--stop_after", "3"], "domain-il": ["--stop_after", "2"]}.get(self.setting, [])
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
    epochs = ["--n_epochs", "8"] if case.setting in ("class-il", "vision") else []
    exp = build(case.config(*epochs, share=0.5 if case.setting == "vision" else 1))
    train(exp.model, exp.dataset, exp.run, exp.args, [])
    name = "task-il" if case.setting in ("class-il", "vision") else case.setting
    matrix = exp.run.matrices[name]
    rows = [t for t in range(len(matrix)) if not math.isnan(matrix[t, 0])]
    scores = matrix[-1] if exp.model.JOINT else [matrix[t, t] for t in rows]
    learned = sum(scores) / len(scores)
    if learned < LEARNED[case.setting]:
        raise Failure(
            f"after learning a task its {name} score is {learned:.1f} % on {STREAMS[case.setting]}, expected at "
            f"least {LEARNED[case.setting]:.0f} %: does observe step the optimiser, and on the right labels?"
        )


def same_seed_same_result(case: Case) -> None:
    """The same command twice gives the same scores and weights, bit for bit."""
    first, second = run(case, "--n_epochs", "1"), run(case, "--n_epochs", "1")
    for a, b in zip(first.run.history, second.run.history, strict=True):
        if differing_entries(vars(a), vars(b)):
            raise Failure(
                f"two runs with one seed scored {a.scores} and {b.scores}: "
                "draw random numbers from torch, which the run has seeded"
            )
    differing = differing_entries(state_of(first), state_of(second))
    if differing:
        raise Failure(f"two runs with one seed ended with different {', '.join(differing[:3])}")


def observe_never_waits(case: Case) -> None:
    """Nothing in observe asks for a value of a tensor: no .item(), .cpu(), `if tensor`, boolean-mask indexing,
    nonzero, unless the method says in `WAITS` why it must.
    """
    exp = build(case.config("--n_epochs", "1"))
    calls: list[str] = []
    original = exp.model.observe

    def watched(*args, **kwargs):
        with Waiting(calls):
            return original(*args, **kwargs)

    exp.model.observe = watched
    train(exp.model, exp.dataset, exp.run, exp.args, [])
    if calls and not exp.model.WAITS:
        raise Failure(
            f"observe waits for the device in {calls[0]}: "
            "keep values as tensors (return the loss itself, not loss.item())"
        )


def resumes_exactly(case: Case, elsewhere: bool = True) -> None:
    """Stopped at some iteration, saved, restored in another process and continued, a run ends as if it had never
    stopped.
    """
    undisturbed = run(case, "--n_epochs", "2")
    ends = [evaluation.step for evaluation in undisturbed.run.history]
    total = ends[-1]
    # The first iteration, the middle of things, a task's last iteration (its end_task is run by the second process),
    # and the place between two tasks (its begin_task is).
    steps = sorted({1, total // 2 + 1, ends[0], -ends[0]})
    for step, (state, scores) in zip(steps, resumed_ends(case, steps, elsewhere, "--n_epochs", "2"), strict=True):
        differing = differing_entries(state_of(undisturbed), state)
        if differing or differing_entries(scores_of(undisturbed), scores):
            what = ", ".join(differing[:3]) or "its scores"
            raise Failure(
                f"stopped at iteration {abs(step)} of {total} and resumed, the run differs in {what}: what the method "
                "remembers must be in its attributes, not in globals, closures or files"
            )


def looking_changes_nothing(case: Case) -> None:
    """How often the run is evaluated or saved changes neither what is learned nor the scores."""
    quiet = run(case, "--n_epochs", "2")
    watched = build(case.config("--n_epochs", "2", "--eval_epochs", "1"))

    def save(position: Position) -> None:
        if position.step % 7 == 0:
            checkpoint.capture(watched.model, watched.dataset, watched.run, position)

    train(watched.model, watched.dataset, watched.run, watched.args, [], after_step=save)
    differing = differing_entries(state_of(quiet), state_of(watched))
    if differing:
        raise Failure(f"evaluating and saving more often changed {', '.join(differing[:3])}")


def evaluation_leaves_no_trace(case: Case) -> None:
    """Evaluating changes nothing the method remembers, and leaves it in training mode."""
    from utils.evaluation import evaluate

    exp = run(case, "--n_epochs", "1")
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
    exp = build(case.config("--n_epochs", "1"))
    original, seen = exp.model.observe, []

    def watched(inputs, labels, not_aug_inputs, **kwargs):
        before = copied([inputs, labels, not_aug_inputs])
        out = original(inputs, labels, not_aug_inputs, **kwargs)
        seen.extend(differing_entries(before, [inputs, labels, not_aug_inputs]))
        return out

    exp.model.observe = watched
    images = [loader.dataset.data.clone() for loader in exp.dataset.all_test_loaders()]
    train(exp.model, exp.dataset, exp.run, exp.args, [])
    if seen:
        raise Failure("observe changes the tensors it is given in place: clone them first")
    if not all(torch.equal(a, loader.dataset.data) for a, loader in zip(images, exp.dataset.test_loaders, strict=True)):
        raise Failure("the method changed the stream's data")


def losses_are_reported(case: Case) -> None:
    """observe returns the loss: a 0-d tensor, a float, or a dict with 'loss'."""
    exp = build(case.config("--n_epochs", "1"))
    original = exp.model.observe

    def watched(*args, **kwargs):
        out = original(*args, **kwargs)
        loss = out.get("loss") if isinstance(out, dict) else out
        if not isinstance(loss, float) and not (isinstance(loss, Tensor) and loss.dim() == 0):
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise Failure(f"observe returned {given}: return the loss as a 0-d tensor, a float, or a dict with 'loss'")
        return out

    exp.model.observe = watched
    train(exp.model, exp.dataset, exp.run, exp.args, [])


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
            title = inspect.getdoc(check).split("\n", 1)[0]
            try:
                check(case)
                print(f"  pass  {title}")
            except UserError as e:
                failed += 1
                print(f"  FAIL  {title}\n        {e}")
            except Failure as e:
                failed += 1
                print(f"  FAIL  {title}\n        {e}")
            except Exception as e:  # noqa: BLE001 - the author's own error, shown where it happened
                failed += 1
                frame = traceback.extract_tb(e.__traceback__)[-1]
                print(f"  FAIL  {title}\n        {type(e).__name__}: {e} ({frame.filename}:{frame.lineno})")
    print("every check passed" if not failed else f"{failed} check(s) failed")
    return not failed


# ---- what the checks use


def run(case: Case, *more: str) -> Experiment:
    """A short run to its end."""
    exp = build(case.config(*more))
    train(exp.model, exp.dataset, exp.run, exp.args, [])
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
            checkpoint.save(checkpoint.capture(exp.model, exp.dataset, exp.run, position), file)
            raise Interrupted

    when = {"after_step": stop} if step > 0 else {"after_task": stop}
    with suppress(Interrupted):
        train(exp.model, exp.dataset, exp.run, exp.args, [], **when)


def continue_run(case: Case, file: Path, *more: str) -> Experiment:
    """The second part of `resumed_run`."""
    exp = build(case.config(*more))
    start = checkpoint.restore(checkpoint.load(file), exp.model, exp.dataset, exp.run)
    train(exp.model, exp.dataset, exp.run, exp.args, [], start=start)
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


class Waiting(TorchFunctionMode):
    """Notes every call that would wait for a GPU, wherever the tensors live now; the optimisers' own bookkeeping is
    left out.
    """

    METHODS = {
        "item",
        "tolist",
        "numpy",
        "cpu",
        "nonzero",
        "masked_select",
        "unique",
        "equal",
        "allclose",
        "argwhere",
        "is_nonzero",
    }
    CONVERSIONS = {"__bool__", "__float__", "__int__", "__index__", "__array__", "__len__"} - {"__len__"}

    def __init__(self, calls: list[str]):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        by_mask = name == "__getitem__" and _has_mask(args[1])
        to_host = name == "to" and any(isinstance(a, str) and a == "cpu" for a in (*args[1:], *(kwargs or {}).values()))
        if name in self.METHODS | self.CONVERSIONS or by_mask or to_host:
            place = _caller()
            if place:
                self.calls.append(f"{'boolean-mask indexing' if by_mask else name} at {place}")
        return func(*args, **(kwargs or {}))


def _has_mask(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, Tensor) and p.dtype == torch.bool for p in parts)


def _caller() -> str | None:
    """File and line outside torch that made a call, None when it was made inside torch's optimisers."""
    frame = inspect.currentframe().f_back.f_back
    place = None
    while frame:
        path = frame.f_code.co_filename.replace("\\", "/")
        if "/torch/optim/" in path:
            return None
        if place is None and "/torch/" not in path:
            place = f"{path.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        if frame.f_code.co_name == "watched":
            return place
        frame = frame.f_back
    return place


@contextmanager
def cuda_waits_are_errors() -> Iterator[None]:
    """On a GPU: any synchronisation raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
