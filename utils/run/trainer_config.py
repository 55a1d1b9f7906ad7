"""The configuration of a `ContinualTrainer`: nested dicts, translated into the options of a method file."""

import argparse
from typing import Any

from torch import nn

from palimpsest.utils import registry
from palimpsest.utils.args import ArgumentParser, add_bool, base_parser, converted, positive_int
from palimpsest.utils.errors import UserError
from palimpsest.utils.optimise import adopt_defaults, refuse_optimiser
from palimpsest.utils.run.config import declared_options

# Keys that are called otherwise on the command line.
OTHER_NAMES: dict[str, dict[str, str]] = {
    "ewc": {"lambda": "e_lambda", "fisher": "ewc_fisher", "normalize": "ewc_normalize", "update": "ewc_update",
            "mode": "ewc_mode"},
    "si": {"update": "ewc_update"},
    "mas": {"lambda": "mas_lambda", "update": "ewc_update"},
    "rwalk": {"lambda": "e_lambda", "update": "ewc_update"},
    "lwf": {"temperature": "softmax_temp"},
    "ewc_on": {"lambda": "e_lambda", "fisher": "ewc_fisher", "update": "ewc_update"},
    "gem": {"margin": "gamma", "eps_rel": "gem_eps", "eps_abs": "gem_eps_abs"},
    "agem": {"ref_batch": "minibatch_size"},
    "agem_r": {"ref_batch": "minibatch_size"},
    "hal": {"lambda": "hal_lambda"},
    "pnn": {"adapter": "pnn_adapter"},
    "packnet": {"bias": "packnet_bias", "bn": "packnet_bn"},
    "hat": {"lambda": "hat_lambda", "smax": "hat_smax"},
}  # fmt: skip
DEFAULTS = {"gem": {"buffer_size": 200}, "agem": {"buffer_size": 200}, "agem_r": {"buffer_size": 200},
            "der": {"alpha": 0.5}, "derpp": {"alpha": 0.5, "beta": 0.5}}  # fmt: skip
MEMORY = 500  # examples, where a method keeps any and nothing else is said
# Every other file of models/ is a strategy.
_AHEAD = "makes the outputs of all tasks beforehand, whose number and sizes are known of a stream only"
_GATED = "gates the channels of a network of its own, gated-resnet"
NO_STRATEGY = {
    "joint": "trains on all tasks at once: give train_task one loader of all of them, without a strategy",
    "joint_gcl": "trains on a stream without tasks",
    "randumb": "reads pixels as they were before normalisation, which is known of a stream only",
    "balanced_ewc": "is for the vision stream: use palimpsest.vision.BalancedContinualLearner",
    **dict.fromkeys(("dynamos", "dynamos_sgd"), _GATED),
    **dict.fromkeys(("hyper", "pah", "vcl", "ewc_post", "pf_avb", "pf_ssge", "pr_avb", "pr_bbb", "pr_dirac",
                     "pr_radial", "pr_ssge", "xder", "xder_ce", "xder_rpc"), _AHEAD),
}  # fmt: skip
ONE_TASK_EACH = ("pnn", "packnet", "hat")
# Methods to which the outputs in use are the first so many.
COUNTS_CLASSES = ("bic", "er_ace", "gdumb", "hal", "icarl", "lucir", "lwf_mc", "rpc")
WITHOUT_REPLAY = {
    **dict.fromkeys(ONE_TASK_EACH, "reaches weights by the task alone, and old examples have none here"),
    "gdumb": "learns from its memory alone",
    **dict.fromkeys(("slda", "ncm", "ridge", "acil", "ranpac", "gkeal", "ds_al", "fecam"), "takes every example once"),
}
OPTIMIZER = {"type": "optimizer", "lr": "lr", "weight_decay": "optim_wd", "momentum": "optim_mom",
             "nesterov": "optim_nesterov", "clip_grad": "clip_grad", "args": "optim_args"}  # fmt: skip
STOPPING = {key: f"early_stopping_{key}" for key in ("patience", "metric", "freq", "epsilon")}
SCHEDULER = {"type": "lr_scheduler", "milestones": "lr_milestones", "gamma": "sched_multistep_lr_gamma",
             "args": "sched_args"}  # fmt: skip
PNN_SIZES = ("input_size", "hidden_sizes", "output_size")


def read_config(config: dict[str, Any]) -> tuple[str, argparse.Namespace, dict[str, Any] | None]:
    """The strategy's name, its options and the runner's as a method reads them, and the settings of replay.

    Raises:
        UserError: unknown keys, two strategies, impossible values; the line names the key.
    """
    _known(config, {"optimizer", "scheduler", "continual_strategy", "replay", "early_stopping"}, "config")
    strategies = config.get("continual_strategy") or {}
    files = {str(name) for name in strategies if str(name).endswith(".py")}  # methods kept elsewhere
    _known(strategies, {*names_of_strategies(), *files}, "continual_strategy")
    for name, section in strategies.items():
        if not isinstance(section, dict) or not isinstance(section.get("enabled", True), bool):
            raise UserError(f"config: continual_strategy.{name} must be a dict with 'enabled': True or False")
    enabled = [name for name, section in strategies.items() if section.get("enabled", True)]
    if len(enabled) > 1:
        raise UserError(f"config: continual_strategy enables {' and '.join(enabled)}: enable one")
    strategy = enabled[0] if enabled else "sgd"
    actions = {a.dest: a for a in base_parser()._actions}
    own = {a.dest: a for a in declared_options(registry.load("model", strategy))._actions}
    values = {dest: action.default for dest, action in (actions | own).items()} | {"lr": 0.01, "batch_size": 1}
    values |= ({"buffer_size": MEMORY} if "buffer_size" in own else {}) | DEFAULTS.get(strategy, {})
    for where, names in (("optimizer", OPTIMIZER), ("scheduler", SCHEDULER), ("early_stopping", STOPPING)):
        _read_section(config.get(where) or {}, where, names, actions, values)
    adopt_defaults(values, {OPTIMIZER[key] for key in config.get("optimizer") or {}})
    refuse_optimiser(argparse.Namespace(**values), 1)
    values["fitting_mode"] = "epochs" if config.get("early_stopping") is None else "early_stopping"
    section = {key: value for key, value in strategies.get(strategy, {}).items() if key != "enabled"}
    sizes = {key: section.pop(key) for key in PNN_SIZES if key in section} if strategy == "pnn" else {}
    if sizes and len(sizes) < len(PNN_SIZES):
        raise UserError(f"config: continual_strategy.pnn needs all of {', '.join(PNN_SIZES)}, or none of them")
    usual = {"memory_size": "buffer_size", "batch_size": "minibatch_size"}
    names = {key: dest for key, dest in usual.items() if dest in own} | {dest: dest for dest in own}
    names |= OTHER_NAMES.get(strategy, {})
    _read_section(section, f"continual_strategy.{strategy}", names, own, values)
    if missing := [dest for dest, action in own.items() if action.required and values[dest] is None]:
        raise UserError(f"config: continual_strategy.{strategy} needs {', '.join(missing)}: give numbers")
    return strategy, argparse.Namespace(**values), _read_replay(config.get("replay"), strategy)


def names_of_strategies() -> list[str]:
    """Of the methods that need no stream, sorted."""
    return [name for name in registry.names("model") if name not in NO_STRATEGY]


def _keeps_examples(strategy: str) -> bool:
    return any(action.dest == "buffer_size" for action in declared_options(registry.load("model", strategy))._actions)


def _read_section(section: dict, where: str, names: dict[str, str], actions: dict, values: dict) -> None:
    _known(section, set(names), where)
    for key, value in section.items():
        action = actions[names[key]]
        values[action.dest] = converted(action, value, f"config: {where}.{key}")


def _read_replay(section: dict | None, strategy: str) -> dict[str, Any] | None:
    if section is None:
        return None
    own = "keeps examples of its own" if strategy not in ("gem", "agem") and _keeps_examples(strategy) else None
    if why := WITHOUT_REPLAY.get(strategy, own):
        raise UserError(f"config: replay is not defined with {strategy}, which {why}: drop it")
    parser = ArgumentParser(add_help=False)
    for option, default in (("--size", 1000), ("--batch_size", None), ("--every", 1)):
        parser.add_argument(option, type=positive_int, default=default)
    add_bool(parser, "--task_balanced", default=True)
    actions = {a.dest: a for a in parser._actions}
    values = {dest: action.default for dest, action in actions.items()}
    _read_section(section, "replay", {**{dest: dest for dest in actions}, "buffer_size": "size"}, actions, values)
    return values


def _known(section: Any, allowed: set[str], where: str) -> None:
    if not isinstance(section, dict):
        raise UserError(f"config: {where} is {type(section).__name__}: expected a dict")
    for key in section:
        if where == "continual_strategy" and key in NO_STRATEGY:
            raise UserError(f"config: continual_strategy.{key} is not for a ContinualTrainer: {key} {NO_STRATEGY[key]}")
        if key not in allowed:
            hint = registry.nearest(str(key), sorted(allowed)) or f": expected {', '.join(sorted(allowed))}"
            raise UserError(f"config: {where} has an unknown key {key!r}{hint}")


def build_network(model: nn.Module | None, strategy: str, config: dict[str, Any]) -> nn.Module:
    """The given network, or for 'pnn' the MLP of its sizes; both must agree where both are given."""
    section = (config.get("continual_strategy") or {}).get(strategy, {})
    sizes = None
    if strategy == "pnn" and "input_size" in section:
        sizes = [section["input_size"], *section["hidden_sizes"], section["output_size"]]
        if not all(type(n) is int and n > 0 for n in sizes):
            raise UserError(f"config: continual_strategy.pnn has sizes {sizes}: expected positive integers")
    if model is None:
        if sizes is None:
            raise UserError("model is None: give a network (only pnn may be given by its sizes)")
        layers = [nn.Flatten()]
        for i, o in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(i, o), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    if not isinstance(model, nn.Module):
        raise UserError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = [m.in_features for m in linear] + [m.out_features for m in linear[-1:]]
    if sizes is not None and sizes != found:
        raise UserError(f"config: continual_strategy.pnn has sizes {sizes}, the network's linear layers have {found}")
    return model


def flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    out = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
