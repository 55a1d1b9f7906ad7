"""Everything a run needs to go on, in one file that cannot run code.

A checkpoint holds tensors and plain values only and is read with `weights_only=True`. It is written to a temporary
file, flushed to disk and renamed, so that a file under its final name is always whole.
"""

import os
import pickle
import random
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.run import Evaluation, Run
from utils.training import Position

FORMAT = 1
KEYS = {
    "model_name",
    "dataset_name",
    "stream",
    "position",
    "model",
    "optimizers",
    "dataset",
    "random",
    "matrices",
    "history",
}
STREAM_OPTIONS = (
    "seed", "permute_classes", "custom_class_order", "custom_task_order", "joint", "n_tasks", "validation", "holdout",
    "label_perc", "noise_type", "noise_rate", "normalize", "buffer_size",
)  # fmt: skip


def capture(model, dataset, run: Run, position: Position) -> dict[str, Any]:
    """The state of a run as a dict of tensors and plain values."""
    return {
        "format": FORMAT,
        "model_name": run.model_name,
        "dataset_name": run.dataset_name,
        "backbone": run.config.get("backbone"),
        "stream": _stream_options(run),
        "position": asdict(position),
        "model": model.state_dict(),
        "optimizers": {
            name: {"class": type(opt).__name__, **opt.state_dict()} for name, opt in optimizers(model).items()
        },
        "dataset": dataset.state_dict(),
        "random": _random_state(),
        "matrices": {name: torch.from_numpy(m.copy()) for name, m in run.matrices.items()},
        "baselines": {name: list(scores) for name, scores in run.baselines.items()},
        "history": [asdict(e) for e in run.history],
        "losses": list(run.losses),
    }


def restore(state: dict[str, Any], model, dataset, run: Run) -> Position:
    """Put a model, its stream and its run into a captured state; returns where in the stream that was.

    Raises:
        UserError: the state belongs to another configuration.
    """
    for key, mine in (("model_name", run.model_name), ("dataset_name", run.dataset_name)):
        if state[key] != mine:
            raise UserError(
                f"the checkpoint is of {state[key]}, this run is of {mine}: give the same --model and --dataset"
            )
    for name, mine in _stream_options(run).items():
        saved = state["stream"].get(name)
        if saved != mine:
            raise UserError(
                f"the checkpoint was saved with --{name} {saved}, this run has {mine}: its tasks are others"
            )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as e:
        raise UserError(
            f"the checkpoint does not fit this network (saved with --backbone {state['backbone']}): "
            + " ".join(str(e).split())[:200]
        ) from None
    model.reset_optimizers()
    for name, opt in optimizers(model).items():
        _load_optimizer(opt, dict(state["optimizers"].get(name, {})))
    dataset.load_state_dict(state["dataset"])
    _set_random_state(state["random"])
    run.matrices = {name: m.cpu().numpy().copy() for name, m in state["matrices"].items()}
    run.baselines = state["baselines"]
    run.history = [Evaluation(**e) for e in state["history"]]
    run.losses = [tuple(entry) for entry in state["losses"]]
    return Position(**state["position"])


def _stream_options(run: Run) -> dict[str, Any]:
    """The options that decide what the tasks and the replay memory are, as text."""
    return {name: str(run.config.get(name)) for name in STREAM_OPTIONS}


def _load_optimizer(opt: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over the moments; learning rate, weight decay and the like stay those of this run."""
    if not saved:
        return
    kind = saved.pop("class")
    if kind != type(opt).__name__:
        raise UserError(
            f"the checkpoint was saved with {kind}, this run uses {type(opt).__name__}: give the same --optimizer"
        )
    fresh = [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
    opt.load_state_dict(saved)
    for group, options in zip(opt.param_groups, fresh, strict=True):
        group.update(options)


def optimizers(model) -> dict[str, torch.optim.Optimizer]:
    """The method's optimisers by attribute name."""
    return {name: value for name, value in vars(model).items() if isinstance(value, torch.optim.Optimizer)}


def save(state: dict[str, Any], path: Path) -> None:
    """Write atomically: never a half-written file under the final name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        UserError: missing, truncated, not a checkpoint of ours, or written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as e:
        raise UserError(
            f"checkpoint {path} cannot be read (truncated, altered or not a checkpoint): {type(e).__name__}"
        ) from None
    if not isinstance(state, dict) or "format" not in state or (state["format"] == FORMAT and not state.keys() >= KEYS):
        raise UserError(f"{path} is not a checkpoint of this program")
    if state["format"] != FORMAT:
        raise UserError(f"checkpoint {path} has format {state['format']}, this version reads {FORMAT}")
    return state


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - methods written elsewhere draw from it
    state = {"torch": torch.get_rng_state(), "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest]}
    state["python"] = random.getstate()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
