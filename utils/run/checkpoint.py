"""Everything a run needs to go on, in one file that cannot run code.

A checkpoint is a torch file of the method (`models/utils/state.py`) and of plain values, followed by one line of text
with the format's number, the iteration and a SHA-256 of everything before. It is written to a temporary file, flushed
to disk and renamed, and the one before is kept; it is read with `weights_only=True`, and only if the checksum is right:
first the plain values, then, into a method that they fit, the method.
"""

import hashlib
import itertools
import os
import pickle
import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from palimpsest.models.utils import state as method_state
from palimpsest.utils.atomic import atomic_write
from palimpsest.utils.errors import TrainingFailed, UserError, one_line
from palimpsest.utils.randomness import random_state, set_random_state
from palimpsest.utils.record import Evaluation, Experiment, Position
from palimpsest.utils.run.checkpoint_checks import (
    check_leaks,
    check_method,
    check_position,
    check_scores,
    check_shapes,
    check_tree,
)

FORMAT = 4
FOOTER = "\npalimpsest checkpoint format {format:04d} step {step:012d} sha256 {digest:64}\n"
FOOTER_LENGTH = len(FOOTER.format(format=0, step=0, digest=""))
FOOTER_PATTERN = re.compile(rb"\npalimpsest checkpoint format (\d{4}) step (\d{12}) sha256 ([0-9a-f]{64})\n")
KEYS = {
    "model_name": str, "dataset_name": str, "environment": dict, "options": dict, "position": dict, "pending": list,
    "stopping": dict | None, "shapes": dict, "settings": dict, "dataset": dict, "random": dict, "matrices": dict,
    "baselines": dict, "history": list, "losses": list, "epochs": list, "pictures": list,
}  # fmt: skip
# The options that decide what the tasks, the network and the replay memory are; a checkpoint is of no use under others.
STREAM_OPTIONS = (
    "backbone", "seed", "seed_init", "seed_order", "seed_data", "permute_classes", "custom_class_order",
    "custom_task_order", "joint", "n_tasks", "validation", "init_cls",
    "increment", "classes_per_task", "class_order", "tasks_file", "domain_order", "test_fraction",
    "image_size", "channels", "image_mean", "image_std", "label", "task", "regression", "split",
    "holdout", "label_perc", "noise_type", "noise_rate", "normalize", "buffer_size", "language_mode", "language_rules",
    "sequence_length", "vision_order", "vision_size", "vision_subset", "vision_items", "seg_classes", "detection",
)  # fmt: skip
MORE = {"spent": dict, "points": dict}  # which older checkpoints do not have
LEAST_ENTRIES = 1 << 20  # as many a small checkpoint may hold, however few bytes they take
MALFORMED = (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError, OverflowError)


def capture(exp: Experiment, at: Position) -> dict[str, Any]:
    """The state of a run: the method itself under "model", tensors and plain values for the rest.

    Raises:
        TrainingFailed: a loss or a weight is not finite: such a state is not worth keeping.
        UserError: the method keeps something that cannot be stored; the line names it.
    """
    model, run, pending = exp.model, exp.run, exp.log.on_host(at)
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if bad:
        raise TrainingFailed(f"the weights {bad[0]} are not finite after step {at.step} (task {at.task})")
    method_state.check(model)
    origin = method_state.origin_of(model)
    return {
        "model_name": run.model_name,
        "dataset_name": run.dataset_name,
        "environment": dict(run.environment),
        "options": {name: str(value) for name, value in run.config.items()},
        "position": dict(vars(at)),
        "pending": pending,
        "stopping": exp.stopper.state_dict(),
        "shapes": dict(origin.shapes),
        "settings": dict(origin.settings),
        "model": model,
        "dataset": exp.dataset.state_dict(),
        "random": random_state(),
        "matrices": {name: torch.from_numpy(m.copy()) for name, m in run.matrices.items()},
        "baselines": {name: list(scores) for name, scores in run.baselines.items()},
        "history": [vars(e) for e in run.history],
        "losses": list(run.losses),
        "epochs": [dict(record) for record in run.epochs],
        "pictures": list(run.pictures),
        "leaks": list(run.leaks),
        "spent": exp.meter.state_dict(),
        "points": exp.points.state_dict() | {"taken": [vars(e) for e in run.points]},
    }


def restore(state: dict[str, Any], exp: Experiment, exact: bool = True) -> Position:
    """Put a built experiment into a captured state; returns where in the stream that was.

    Args:
        exact: the run goes on as the same run, with the optimisers' settings as they were; otherwise learning rate,
            weight decay and the like are those of this run's options.

    Raises:
        UserError: the state belongs to another configuration, or is not what `capture` makes.
    """
    model, dataset, run = exp.model, exp.dataset, exp.run
    try:
        for key, mine in (("model_name", run.model_name), ("dataset_name", run.dataset_name)):
            if state[key] != mine:
                raise UserError(
                    f"the checkpoint is of {state[key]}, this run is of {mine}: give the same --model and --dataset"
                )
        for name in STREAM_OPTIONS:
            mine, saved = str(run.config.get(name)), state["options"].get(name, "None")
            if saved != mine:
                raise UserError(
                    f"the checkpoint was saved with --{name} {saved}, this run has {mine}: its tasks, network or "
                    "buffer are others"
                )
        settings = {} if exact else {name: _settings(opt) for name, opt in _optimizers(model)}
        kinds = {name: type(opt).__name__ for name, opt in _optimizers(model)}
        check_shapes(state["shapes"], method_state.origin_of(model).shapes)
        move = str(state["environment"].get("device", "cpu")).startswith("cpu") and model.device.type != "cpu"
        method_state.read_into(model, state["path"], state["entries"], move)
        if not exact:
            method_state.keep_settings(model, state["settings"])
        for name, opt in _optimizers(model):
            if getattr(opt, "made_by_runner", False) and kinds.get(name, type(opt).__name__) != type(opt).__name__:
                raise UserError(
                    f"the checkpoint was saved with {type(opt).__name__}, this run uses {kinds[name]}: give the same "
                    "--optimizer"
                )
            for group, options in zip(opt.param_groups, settings.get(name, ()), strict=False):
                group.update(options)
        dataset.load_state_dict(state["dataset"])
        check_method(model, dataset)
        points = state.get("points", {"every": None, "taken": []})
        check_scores(state | {"history": state["history"] + points["taken"]}, dataset.EVAL_TASKS)
        run.matrices = {name: m.numpy().copy() for name, m in state["matrices"].items()}
        run.baselines = {name: [float(x) for x in scores] for name, scores in state["baselines"].items()}
        run.history = [Evaluation(**e) for e in state["history"]]
        run.points = [Evaluation(**e) for e in points["taken"]]
        run.losses = [(int(step), dict(means), float(lr)) for step, means, lr in state["losses"]]
        run.epochs = [dict(record) for record in state["epochs"]]
        run.pictures = [(stage, list(said)) for stage, said in state["pictures"]]
        run.leaks[:] = check_leaks(state.get("leaks", []))
        exp.log.pending = list(state["pending"])
        position = Position(**state["position"])
        if position.inside:
            exp.stopper.load_state_dict(state["stopping"])
        check_position(position, exp)
        if exact:
            exp.meter.load_state_dict(state.get("spent"))
            exp.points.load_state_dict(points)
        else:
            exp.meter.spent["begun"] = position.step
        if any(entry["step"] > position.step for entry in state["history"] + points["taken"]):
            raise ValueError(f"an evaluation after step {position.step}, where it was saved")
        set_random_state(state["random"])
    except UserError as e:
        raise UserError(one_line(e)) from None  # it may quote what the file says
    except (*MALFORMED, MemoryError, pickle.UnpicklingError) as e:
        raise UserError(f"the checkpoint does not fit this method: {type(e).__name__}: {one_line(e)[:200]}") from e
    return position


def save(state: dict[str, Any], path: Path, keep_previous: bool = False) -> None:
    """Write what `capture` returned, atomically: never a half-written file under the final name.

    Args:
        keep_previous: what was under that name becomes `<stem>.previous.pt`.

    Raises:
        UserError: the file cannot be written; what was there before is still there.
    """
    with atomic_write(path, before=(lambda: _keep(path)) if keep_previous else None) as f:
        hashing = _Hashing(f)
        method_state.write(state, hashing, state["model"])
        footer = FOOTER.format(format=FORMAT, step=state["position"]["step"], digest="")[: -1 - 64]
        hashing.write(footer.encode())
        f.write((hashing.sha256.hexdigest() + "\n").encode())


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint but for the method, for which `restore` reads the file again ("path").

    Raises:
        UserError: missing, empty, truncated, altered, not a checkpoint of ours, or written by another version.
    """
    path = Path(path)
    try:
        verify(path)
    except UserError as e:
        with suppress(UserError):
            verify(previous_of(path))
            e = UserError(f"{e}; the one before it is whole: {previous_of(path)}")
        raise e from None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type for entry in entries)
            # Parts that lie over each other add up to more than the file.
            packed = packed or sum(entry.file_size for entry in entries) > path.stat().st_size
            described = sum(entry.file_size for entry in entries if entry.filename.endswith("data.pkl"))
        if packed:
            raise UserError(f"checkpoint {path} holds compressed parts, which this program does not write: refused")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused below
            state = method_state.read_rest(path)
    except (*MALFORMED, EOFError, OSError, MemoryError, pickle.UnpicklingError, zipfile.BadZipFile) as e:
        raise UserError(
            f"checkpoint {path} cannot be read, its content is not what this program writes: {type(e).__name__}"
        ) from None
    if not isinstance(state, dict) or not state.keys() >= KEYS.keys():
        raise UserError(f"{path} is not a checkpoint of this program")
    for name, kind in (KEYS | {name: MORE[name] for name in MORE if name in state}).items():
        if not isinstance(state[name], kind):
            raise UserError(f"checkpoint {path} is not one that this program writes: its {name} has the wrong type")
    try:
        # An entry takes a byte at least, so that more of them are one list mentioned again and again.
        state["path"], state["entries"] = str(path), max(LEAST_ENTRIES, described)
        check_tree(state, itertools.count(), state["entries"])
    except (ValueError, RecursionError) as e:
        raise UserError(f"checkpoint {path} is not one that this program writes: {e}") from None
    return state


class Footer(NamedTuple):
    """The last line of a checkpoint."""

    format: int
    step: int
    digest: str


def read_footer(path: Path) -> Footer | None:
    """The last line of a file, None where it is not ours."""
    with open(path, "rb") as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - FOOTER_LENGTH))
        found = FOOTER_PATTERN.fullmatch(f.read())
    return found and Footer(int(found[1]), int(found[2]), found[3].decode())


def verify(path: Path) -> Footer:
    """Check that a file is a whole checkpoint of this version; returns its last line.

    Raises:
        UserError: it is not; the line says in which way.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        size = path.stat().st_size
        footer = read_footer(path)
        with open(path, "rb") as f:
            if footer is None:
                raise UserError(f"{path} is truncated, or not a checkpoint of this program: its last line is missing")
            digest, left = hashlib.sha256(), size - 65
            while left > 0 and (block := f.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError as e:
        raise UserError(f"checkpoint {path} cannot be read: {e.strerror or e}") from None
    if digest.hexdigest() != footer.digest:
        raise UserError(f"checkpoint {path} was altered since it was written: its checksum is wrong")
    if footer.format != FORMAT:
        age = "a newer" if footer.format > FORMAT else "an older"
        raise UserError(
            f"checkpoint {path} was written by {age} version (format {footer.format}, this version reads {FORMAT})"
        )
    return footer


def previous_of(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(f"{path.stem}.previous.pt")


def find(path: str | Path) -> Path:
    """The checkpoint that a path means: the file itself, or the newest whole one of a run's folder.

    Raises:
        UserError: a folder without a whole checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found, problems = newest(path)
    if found is None:
        raise UserError("; ".join(problems) or f"{path} is a folder without a checkpoint (*.pt): name the file")
    return found


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The whole checkpoint of a folder that is furthest on, and a line for each damaged one that claimed to be."""
    found = []
    for path in filter(Path.is_file, folder.glob("*.pt")):
        footer = read_footer(path)
        found.append((footer.step if footer else -1, path.stat().st_mtime_ns, path))
    problems = []
    for _, _, path in sorted(found, reverse=True):
        try:
            verify(path)
            return path, problems
        except UserError as e:
            problems.append(str(e))
    return None, problems


def fingerprint(value: Any) -> str:
    """SHA-256 of nested dicts, lists, tensors and plain values, equal for equal content."""
    digest = hashlib.sha256()
    _digest_into(digest, value)
    return digest.hexdigest()


def _digest_into(digest, value: Any) -> None:
    if isinstance(value, Tensor) and value.device.type == "meta":
        digest.update(f"meta {value.dtype} {tuple(value.shape)}".encode())
    elif isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(f"key {key!r}".encode())
            _digest_into(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _digest_into(digest, item)
    else:
        digest.update(repr(value).encode())


def _keep(path: Path) -> None:
    if path.is_file():
        os.replace(path, previous_of(path))


def _optimizers(model) -> list[tuple[str, torch.optim.Optimizer]]:
    return [(name, value) for name, value in vars(model).items() if isinstance(value, torch.optim.Optimizer)]


def _settings(opt: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]


class _Hashing:
    """A file that also computes the checksum of what is written to it."""

    def __init__(self, file):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
