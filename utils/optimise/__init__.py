"""The optimiser, and the learning rate of a task epoch by epoch: our own names, and whatever PyTorch has.

torch is imported where it is needed, since the command line, which is quick without it, takes its types from here.
"""

import argparse
import inspect
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.utils.errors import UserError, one_line

OWN_OPTIMIZERS = ("sgd", "adam", "adamw")  # the others are those of torch.optim, by name
OWN_SCHEDULES = ("none", "multisteplr", "cosine")
# Parameters of an optimiser that have an option of their own.
OPTIONS = {"lr": "lr", "weight_decay": "optim_wd", "momentum": "optim_mom"}
CYCLED = ("lr", "momentum", "betas")  # what a schedule may set
NO_OPTIMIZER = {
    "lbfgs": "it asks for the loss several times in a step, and a method computes it once",
    "sparseadam": "it takes sparse gradients only, and those of the networks here are dense",
}
NO_SCHEDULE = {
    "reducelronplateau": "it follows a score, not the epochs: use --fitting_mode early_stopping, or another schedule",
    **dict.fromkeys(("lambdalr", "multiplicativelr"), "it takes a function of Python: use another schedule"),
    **dict.fromkeys(("sequentiallr", "chainedscheduler"), "it is made of other schedules: use one of them"),
}
IMPOSSIBLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def squeezed(name: str) -> str:
    """A name of PyTorch without what makes no difference here: `Adam-W` is `adamw`."""
    return re.sub("[-_ ]", "", str(name)).lower()


def optimizer_name(text: str) -> str:
    """One of ours, or an optimiser of torch.optim, in small letters."""
    name = squeezed(text)
    if name not in OWN_OPTIMIZERS:
        optimizer_class(name)
    return name


def schedule_name(text: str) -> str:
    """One of ours, or a schedule of torch.optim.lr_scheduler, in small letters."""
    name = squeezed(text)
    if name not in OWN_SCHEDULES:
        schedule_class(name)
    return name


def setting(text: str) -> str:
    """`key=value`."""
    key, equals, value = text.partition("=")
    if not (key.strip().isidentifier() and equals and value.strip()):
        raise argparse.ArgumentTypeError(f"'{text}': expected key=value, as eps=1e-6 or betas=0.9,0.99")
    return f"{key.strip()}={value.strip()}"


def settings_of(value: Mapping) -> list[str]:
    """A dict as `key=value` texts."""
    return [f"{k}={','.join(map(str, v)) if isinstance(v, list | tuple) else v}" for k, v in value.items()]


def optimizer_class(name: str) -> type:
    """The class of torch.optim behind a name; capital letters, `-` and `_` make no difference. For one of ours the same
    without the compiler.

    Raises:
        ArgumentTypeError: there is none, or it cannot train here.
    """
    import torch

    from palimpsest.utils.optimise import eager

    found = _named(name, torch.optim, torch.optim.Optimizer, OWN_OPTIMIZERS, NO_OPTIMIZER)
    return getattr(eager, found.__name__) if squeezed(name) in OWN_OPTIMIZERS else found


def schedule_class(name: str) -> type:
    """The same for torch.optim.lr_scheduler."""
    from torch.optim import lr_scheduler

    return _named(name, lr_scheduler, lr_scheduler.LRScheduler, OWN_SCHEDULES, NO_SCHEDULE)


def _named(name: str, module, base: type, own: Sequence[str], refused: dict[str, str]) -> type:
    named = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and n[0] != "_"}
    found = {squeezed(n): c for n, c in named.items() if c is not base}
    name = squeezed(name)
    if name in refused:
        raise argparse.ArgumentTypeError(f"'{name}' of PyTorch is not for these runs: {refused[name]}")
    if name not in found:
        others = sorted(found.keys() - refused.keys() - {*own})
        raise argparse.ArgumentTypeError(f"'{name}': expected one of {', '.join([*own, *others])}")
    return found[name]


def read_settings(option: str, texts: Sequence[str], cls: type, taken: dict[str, str]) -> dict[str, Any]:
    """`k=v` texts as arguments of a class.

    Args:
        option: which they are given to, without dashes.
        cls: whose constructor knows the names; its first parameter is not for the user.
        taken: parameter -> the option that sets it.

    Raises:
        UserError: an unknown name, one given twice, or one that has an option of its own.
    """
    known, given = [*inspect.signature(cls).parameters][1:], {}
    for text in texts:
        key, _, value = text.partition("=")
        if key in taken:
            raise UserError(f"--{option} {text}: give --{taken[key]} for it")
        if key not in known:
            names = ", ".join(name for name in known if name not in taken)
            raise UserError(f"--{option} {text}: {cls.__name__} has no '{key}', but {names}")
        if key in given:
            raise UserError(f"--{option} gives {key} twice: keep one")
        given[key] = literal(value)
    return given


def literal(text: str) -> Any:
    """`0.1`, `3`, `true`, `none`, a word, or several of these with commas between them, in brackets or not."""
    if "," in text or text[:1] in ("[", "("):
        return tuple(literal(part) for part in text.strip("[]() ").split(",") if part.strip())
    text = text.strip()
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# ---- the optimiser


def optimizer_options(args, lr: float) -> tuple[type, dict[str, Any]]:
    """The class that `--optimizer` names and the arguments that the other options give it.

    Raises:
        UserError: an option has no effect on it, or `--optim_args` do not fit it.
    """
    cls, own = optimizer_class(args.optimizer), args.optimizer in OWN_OPTIMIZERS
    known = inspect.signature(cls).parameters
    given = {"lr": lr}
    for name in ("weight_decay", "momentum"):
        if name in known:
            given[name] = getattr(args, OPTIONS[name])
        elif getattr(args, OPTIONS[name]) and not own:
            raise UserError(f"--{OPTIONS[name]} has no effect with --optimizer {args.optimizer}: drop it")
    taken = dict(OPTIONS)
    if args.optimizer == "sgd":
        given["nesterov"], taken["nesterov"] = args.optim_nesterov, "optim_nesterov"
    settings = read_settings("optim_args", args.optim_args, cls, taken)
    if own and args.optimizer != "sgd" and "foreach" not in settings:
        given["fused"] = True  # one pass over many small tensors
    return cls, given | settings


def make_optimizer(args, params: list, lr: float) -> Any:
    """The torch.optim.Optimizer that the options describe.

    Raises:
        UserError: it cannot have these parameters, or these settings.
    """
    cls, given = optimizer_options(args, lr)
    try:
        return cls(params, **given)
    except IMPOSSIBLE as e:
        if args.optimizer in OWN_OPTIMIZERS and not args.optim_args:
            raise
        raise UserError(f"--optimizer {_shown(args.optimizer, args.optim_args)}: {one_line(e)}") from None


def adopt_defaults(values: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    """Weight decay and momentum of an optimiser that is PyTorch's by name, where nobody chose them: its own defaults.

    Args:
        values: every option.
        chosen: those that somebody set.

    Returns:
        What was changed in `values`.
    """
    if values["optimizer"] in OWN_OPTIMIZERS:
        return {}
    known = inspect.signature(optimizer_class(values["optimizer"])).parameters
    wanted = {option: known[name].default for name, option in OPTIONS.items() if name in known and name != "lr"}
    changed = {o: v for o, v in wanted.items() if o not in chosen and v != values[o]}
    values |= changed
    return changed


def refuse_optimiser(args, n_epochs: int) -> None:
    """Try the optimiser and the schedule of a task on a single matrix, which tells all that is impossible in them.

    Raises:
        UserError: something is.
    """
    own = args.lr_scheduler in OWN_SCHEDULES
    if args.sched_args and own:
        raise UserError(f"--sched_args: '{args.lr_scheduler}' has options of its own: drop it or name another")
    if own and args.optimizer in OWN_OPTIMIZERS and not args.optim_args:
        return
    import torch

    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer(args, [weight], args.lr)
    try:
        for _ in range(2):
            weight.grad = torch.ones(2, 2)
            optimizer.step()
        if not weight.isfinite().all():
            raise ValueError("the weights are not finite after two steps")
    except IMPOSSIBLE as e:
        raise UserError(f"--optimizer {_shown(args.optimizer, args.optim_args)}: {one_line(e)}") from None
    if not own:
        groups = [group | {"initial_lr": group["lr"]} for group in optimizer.param_groups]
        for epoch, (group,) in enumerate(scheduled(args, groups, n_epochs)):
            if not (math.isfinite(group["lr"]) and group["lr"] >= 0):
                shown = _shown(args.lr_scheduler, args.sched_args)
                raise UserError(f"--lr_scheduler {shown}: the learning rate of epoch {epoch} is {group['lr']:g}")


def _shown(name: str, settings: Sequence[str]) -> str:
    return " ".join([name, *settings])


# ---- the learning rate


def restart_schedule(model, args) -> None:
    """With a learning-rate schedule every task starts with a fresh optimiser; without one the optimiser goes on."""
    if args.lr_scheduler != "none" and "lr_scheduler" not in model.UNUSED:
        model.reset_optimizers()


def set_learning_rate(model, args, epoch: int, n_epochs: int) -> None:
    """The schedule is a function of the epoch, so that a run can be entered anywhere; a method that takes no
    `--lr_scheduler` has one of its own.
    """
    if not (args.lr_scheduler != "none" or args.lr_warmup) or model.opt is None or "lr_scheduler" in model.UNUSED:
        return
    first, factor = round(args.lr_warmup * n_epochs), 1.0
    if epoch < first:  # the warm-up rises in equal steps, to 1 after it
        factor = (epoch + 1) / (first + 1)
    elif args.lr_scheduler == "multisteplr":
        factor = args.sched_multistep_lr_gamma ** sum(epoch >= m for m in args.lr_milestones)
    elif args.lr_scheduler == "cosine":
        factor = (1 + math.cos(math.pi * (epoch - first) / (n_epochs - first))) / 2
    groups = model.opt.param_groups
    for group in groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"])
    if args.lr_scheduler not in OWN_SCHEDULES:
        for group, values in zip(groups, scheduled(args, groups, max(0, epoch - first) + 1)[-1], strict=True):
            group.update(values)
    for group in groups:
        group["lr"] *= factor


def scheduled(args, groups: list[dict[str, Any]], n_epochs: int) -> list[list[dict[str, Any]]]:
    """What a schedule of PyTorch sets in the groups of an optimiser in each of its first epochs: its steps on one
    without weights.

    Args:
        groups: each has its `initial_lr`.

    Raises:
        UserError: `--sched_args` do not fit the schedule, or it has fewer epochs.
    """

    def now() -> list[dict[str, Any]]:
        return [{name: group[name] for name in CYCLED if name in group} for group in optimizer.param_groups]

    import torch

    cls, shown = schedule_class(args.lr_scheduler), _shown(args.lr_scheduler, args.sched_args)
    settings = read_settings("sched_args", args.sched_args, cls, {})
    needed = [p.name for p in [*inspect.signature(cls).parameters.values()][1:] if p.default is p.empty]
    if missing := [name for name in needed if name not in settings]:
        raise UserError(f"--lr_scheduler {shown} needs {', '.join(missing)}: add --sched_args {missing[0]}=...")
    own = [{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in groups]
    starts = [dict(g, lr=group["initial_lr"]) for g, group in zip(own, groups, strict=True)]
    optimizer = torch.optim.Optimizer(
        [dict(start, params=[torch.nn.Parameter(torch.ones(1))]) for start in starts], starts[0]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimiser makes no step here
            schedule = cls(optimizer, **settings)
            out = [now()]
            for _ in range(n_epochs - 1):
                schedule.step()
                out.append(now())
    except IMPOSSIBLE as e:
        raise UserError(f"--lr_scheduler {shown}: {re.sub(r'^.*__init__..', cls.__name__, one_line(e))}") from None
    return out
