"""How the layers of a configuration are laid over each other: by rank, and as groups where options exclude each other.

A layer is (place, {option: value}). An option takes the value of the highest layer that sets it. Where a layer makes
void what lower ones set (it counts epochs, they counted iterations), theirs is left out: the default holds.
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from palimpsest.utils.args import PART_SEEDS
from palimpsest.utils.errors import UserError
from palimpsest.utils.optimise import OWN_OPTIMIZERS

Layer = tuple[str, dict[str, Any]]
EXCLUSIVE = (("permute_classes", "custom_class_order"), ("validation", "holdout"))  # at most one of each pair is given
PRECISIONS = ("fp32", "tf32", "bf16")  # each has the savings of those before it
LEVELS = (("fp32", False), ("tf32", False), ("bf16", False), ("bf16", True))  # (precision, compile)


def merge(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, lowest first, without the settings that a higher layer makes void.

    Args:
        layers: lowest rank first; the values are converted.
    """
    kept: list[Layer] = []
    below: dict[str, Any] = {}
    for place, values in layers:
        values = split_level(values)
        void = made_void(values) | without_their_class(values, below)
        below |= values
        kept = [(lower, {name: v for name, v in own.items() if name not in void}) for lower, own in kept]
        kept.append((place, values))
    return kept


def made_void(values: dict[str, Any]) -> set[str]:
    """The options whose settings in lower layers do not go with what this layer sets."""
    void: set[str] = set()
    ends = values.get("fitting_mode")
    if ends is None and "n_epochs" in values and "n_iters" not in values:
        ends = "epochs"  # who gives a number of epochs wants so many
    if ends not in (None, "iters"):
        void |= {"fitting_mode", "n_iters"}
    for one, other in EXCLUSIVE:
        void |= {name for name, rival in ((one, other), (other, one)) if values.get(rival) and name not in values}
    if values.get("optimizer", "sgd") != "sgd" or values.get("optim_mom", 1) == 0:
        void.add("optim_nesterov")
    if values.get("lr_scheduler", "multisteplr") != "multisteplr":
        void.add("lr_milestones")
    return void


def without_their_class(values: dict[str, Any], below: dict[str, Any]) -> set[str]:
    """The options that belong to the optimiser or the schedule of lower layers, where this one names another; weight
    decay and momentum mean the same to ours, and are an own matter of each of PyTorch's.
    """
    void: set[str] = set()
    if (name := values.get("optimizer")) and name != (before := below.get("optimizer", "sgd")):
        void |= {"optim_args"} if {name, before} <= {*OWN_OPTIMIZERS} else {"optim_args", "optim_wd", "optim_mom"}
    if (name := values.get("lr_scheduler")) and name != below.get("lr_scheduler", "none"):
        void.add("sched_args")
    return void


def size_by_budget(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Under `--budget_bytes` the size of a buffer follows from what the method keeps besides; until that is known it is
    large enough for anything.

    Raises:
        UserError: the command line gives a size, too.
    """
    if not values.get("budget_bytes") or "buffer_size" not in values:
        return
    if origins["buffer_size"] == "command line":
        raise UserError("--buffer_size and --budget_bytes exclude each other: the budget decides on the size")
    values["buffer_size"] = max(1000, values["batch_size"], values.get("minibatch_size") or 0)
    origins["buffer_size"] = "budget_bytes"


def shorten(values: dict[str, Any]) -> set[str]:
    """`--debug_mode`: one epoch wherever epochs are counted, the method's own passes included; the options changed."""
    short = {name: 1 for name, n in values.items() if name.endswith("_epochs") and type(n) is int and n > 1}
    short.pop("eval_epochs", None)
    if values["fitting_mode"] == "iters":
        short |= {"fitting_mode": "epochs", "n_iters": None}
    values |= short
    return short.keys()


def with_seed(args: Namespace, seed: int) -> Namespace:
    """The options of a run with this `--seed`: a part's own seed that is the same number says nothing, so that one run
    has one configuration.
    """
    values = vars(args) | {"seed": seed}
    return Namespace(**values | {name: None for name in PART_SEEDS if values.get(name) == seed})


def split_level(values: dict[str, Any]) -> dict[str, Any]:
    """A layer of options in which a level is joined by what it stands for. `--compile` may be added to any level.

    Raises:
        UserError: the layer has a level and what contradicts it.
    """
    level = values.get("code_optimization")
    if level is None:
        return values
    precision, compiled = LEVELS[level]
    if values.get("precision", precision) != precision or compiled and not values.get("compile", True):
        told = f"--precision {precision}{' --compile' if compiled else ''}"
        raise UserError(f"--code_optimization {level} is a name for {told}, and another one is given: drop one of them")
    return {"precision": precision, "compile": compiled, **values}


def name_level(args: Namespace, origins: dict[str, str]) -> None:
    """Give settled options the highest level that they have all of."""
    level = level_of(vars(args))
    if args.code_optimization != level:
        decisive = "compile" if level == len(LEVELS) - 1 and origins["precision"] == "default" else "precision"
        args.code_optimization, origins["code_optimization"] = level, origins[decisive]


def level_of(options: dict[str, Any]) -> int:
    """The highest level whose precision and compilation the options have."""
    precision = PRECISIONS.index(options["precision"])
    return len(LEVELS) - 1 if options["compile"] and options["precision"] == "bf16" else precision


def distinct(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that say no more than the level does, so that a run is the same run under either name,
    and the same as before it had others than the level.
    """
    said = options.get("code_optimization")
    if said not in range(len(LEVELS)) or "precision" not in options:
        return options
    implied = dict(zip(("precision", "compile"), LEVELS[said], strict=True)) | {"channels_last": False}
    return {name: v for name, v in options.items() if name not in implied or implied[name] != v}
