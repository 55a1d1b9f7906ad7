"""From a command line to the resolved options of a run, each with where its value came from.

Precedence: command line > config file > best_args > dataset defaults > defaults of the method, backbone and runner.
A method's preset (a named group of values) ranks just below the place that names it.
"""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.utils import registry
from palimpsest.utils.args import NEUTRAL, STUDIES, ArgumentParser, base_parser, canonical, converted, refuse_repeats
from palimpsest.utils.config_file import read_options
from palimpsest.utils.errors import UserError
from palimpsest.utils.hints import explain_unknown, means_choice
from palimpsest.utils.optimise import adopt_defaults, refuse_optimiser
from palimpsest.utils.run.best_args import find_row
from palimpsest.utils.run.layers import EXCLUSIVE, PART_SEEDS, merge, name_level, shorten, size_by_budget, with_seed

# Options that are no part of a configuration.
NO_FACTS = ("help", "version", "list", "check", "rerun", "predict", "export", "config", "print_config")
NO_FACTS += ("print_completion", "model_config", *STUDIES)


@dataclass
class Config:
    """Resolved options and the classes they name.

    Attributes:
        args: every option as an attribute.
        origins: option name -> 'command line', 'config file', 'preset NAME', 'best_args', 'dataset', 'torch.optim' or
            'default'.
        row: the best-args row in use, or None.
        chosen_on: what was seen to choose the options: 'published row', 'command line', 'unknown', or in words.
        trial: whether the run is there only to choose options.
    """

    args: argparse.Namespace
    origins: dict[str, str]
    model_class: type
    dataset_class: type
    backbone_class: type
    row: dict[str, Any] | None = None
    chosen_on: str = "unknown"
    trial: bool = False


def chosen(argv: list[str]) -> argparse.Namespace:
    """The options that decide which files are read, model, dataset and backbone, and what is done: help, list, check...

    What the file of `--config` says of the former counts where the command line does not; `stated` is all that it says,
    None without a file.
    """
    parser = ArgumentParser(add_help=False)
    for name in ("model", "dataset", "backbone", "check", "rerun", "report", "config", "print_completion"):
        parser.add_argument(f"--{name}")
    parser.add_argument("-h", "--help", action="store_true")
    for name in ("--predict", "--export"):
        parser.add_argument(name, nargs="+")
    for name in STUDIES:
        parser.add_argument(f"--{name}", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--print_config", action="store_true")
    choice = parser.parse_known_args(argv)[0]
    choice.stated, choice.of_a_run = read_options(Path(choice.config)) if choice.config else ({}, False)
    for kind in registry.FOLDERS:
        if getattr(choice, kind) is None and kind in choice.stated:
            setattr(choice, kind, str(choice.stated[kind]))
    return choice


def build_parser(choice: argparse.Namespace, backbone: str | None) -> ArgumentParser:
    """The base parser with the options of the chosen files, each in a group of its own."""
    parser = base_parser()
    for kind, name in (("dataset", choice.dataset), ("model", choice.model), ("backbone", backbone)):
        if name:
            _add_options(parser, kind, registry.load(kind, name))
    return parser


def resolve(argv: list[str]) -> Config:
    """Parse strictly and settle every option.

    Raises:
        UserError: unknown name or option, repeated option, impossible value, missing required option, a method that
            does not fit the stream, an unknown best-args row.
    """
    choice = chosen(argv)
    if study := next((name for name in STUDIES if getattr(choice, name) is not None), None):
        raise UserError(f"--{study} is about many runs, this is one: drop it, or start main.py with it")
    for kind in registry.FOLDERS:  # a wrong name is refused before anything is imported
        if getattr(choice, kind) is not None:
            registry.find(kind, getattr(choice, kind))
    if unnamed := [kind for kind in ("model", "dataset") if getattr(choice, kind) is None]:
        missing = [f"--{kind} is missing: give one of {', '.join(registry.names(kind))}" for kind in unnamed]
        # What the stream would set is not known yet: only what the method itself asks for is missing, too.
        own = declared_options(registry.load("model", choice.model))._actions if choice.model else ()
        given, _ = _explicit(build_parser(choice, None), argv, strict=False)
        hints = means_choice(canonical(argv), unnamed)
        raise UserError("; ".join([*missing, *_missing(own, given), *hints]))
    model_class, dataset_class = registry.load("model", choice.model), registry.load("dataset", choice.dataset)
    absent = [n for n in ("SETTING", "TASK", "INPUT", "DEFAULTS") if not hasattr(dataset_class, n)]
    if absent:
        raise UserError(
            f"dataset '{dataset_class.NAME}': the class does not set {', '.join(absent)}: derive it from one of "
            "datasets/utils/streams.py, see docs/add_a_dataset.md"
        )
    refuse_setting(model_class, dataset_class)

    # The row may name the backbone, whose options must exist before the strict parse.
    given, actions = _explicit(build_parser(choice, None), argv, strict=False)
    early = {n: converted(actions[n], v, choice.config) for n, v in choice.stated.items() if n in actions} | given
    fixed, unused = getattr(model_class, "DEFAULTS", {}), getattr(model_class, "UNUSED", ())
    best = early.get("load_best_args") or early.get("model_config") == "best"
    row = find_row(model_class.NAME, choice.dataset, early.get("buffer_size")) if best else None
    stored = dict(row["args"]) if row else {}
    places = {"command line": given, "config file": choice.stated, "best_args": stored}
    places |= {"method": fixed, "dataset": dataset_class.DEFAULTS}
    origin = next((place for place, layer in places.items() if layer.get("backbone")), None)
    if origin is None:
        raise UserError(f"--backbone is missing, and the DEFAULTS of '{dataset_class.NAME}' have none: give it")
    backbone = str(places[origin]["backbone"])
    classes = model_class, dataset_class, registry.load("backbone", backbone)
    refuse_input(classes[2], dataset_class)
    parser = build_parser(choice, backbone)
    given, actions = _explicit(parser, argv, strict=True, unused=unused)

    for dest in unused:
        if dest in given:
            raise UserError(f"--{dest} has no effect on {choice.model}: drop it (--help shows its own options)")
    file = _of_file(choice, parser, actions, unused)
    layers = [
        ("dataset", dataset_class.DEFAULTS),
        ("method", fixed),
        *_presets(model_class, stored),
        ("best_args", stored),
        *_presets(dataset_class, file, unused),
        *_presets(model_class, file),
        ("config file", file),
        *_presets(dataset_class, given, unused),
        *_presets(model_class, given),
    ]
    settings = []
    for place, layer in layers:
        layer = _for_network(layer, backbone)
        for dest in layer.keys() - actions.keys():
            raise UserError(f"{place} sets '{dest}', which is no option of {choice.model} on {choice.dataset}")
        settings.append((place, {dest: converted(actions[dest], value, place) for dest, value in layer.items()}))
    values = {dest: action.default for dest, action in actions.items()} | parser._defaults
    origins = {dest: "default" for dest in values}
    for place, layer in merge([*settings, ("command line", given)]):
        values |= layer
        origins |= dict.fromkeys(layer, place)
    values |= {
        "model": model_class.NAME,
        "dataset": dataset_class.NAME,
        "backbone": registry.normalise(classes[2].NAME),
        "load_best_args": row is not None,
    }
    origins["backbone"] = origin
    if getattr(model_class, "JOINT", False):
        values["joint"], origins["joint"] = True, "method"
    elif values["joint"] and not dataset_class.MIXED and model_class.NAME != "sgd":
        raise UserError(
            f"--joint: where all tasks are there at once {model_class.NAME} has nothing to keep: use --model joint"
        )
    told = "command line" if row is None else "published row" if row.get("published") else "stored row"
    return _settled(Config(argparse.Namespace(**values), origins, *classes, row, told), actions)


def _settled(config: Config, actions: dict[str, argparse.Action]) -> Config:
    """A configuration whose values are all there and fit together."""
    args, origins = config.args, config.origins
    size_by_budget(vars(args), origins)
    if missing := _missing(actions.values(), vars(args)):
        raise UserError(f"{'; '.join(missing)}: give {'it' if len(missing) == 1 else 'them'}, or use --load_best_args")
    name_level(args, origins)
    if args.debug_mode:
        origins |= dict.fromkeys(shorten(vars(args)), "debug_mode")
    set_by_somebody = {dest for dest, origin in origins.items() if origin != "default"}
    origins |= dict.fromkeys(adopt_defaults(vars(args), set_by_somebody), "torch.optim")
    if getattr(args, "minibatch_size", 0) is None:
        args.minibatch_size, origins["minibatch_size"] = args.batch_size, "batch_size"
    for dest in NO_FACTS:
        delattr(args, dest), origins.pop(dest)
    refuse_impossible(args)
    config.args = args = args if args.seeds else with_seed(args, args.seed)
    refuse_optimiser(args, args.n_epochs if args.fitting_mode != "iters" else 1)
    return config


def _missing(actions: Iterable[argparse.Action], values: dict[str, Any]) -> list[str]:
    """A clause for every required option without a value."""
    required = [action for action in actions if action.required and values.get(action.dest) is None]
    return [f"--{action.dest} is missing ({action.help})" for action in required]


def refuse_setting(model_class: type, dataset) -> None:
    """A method runs only on the kinds of task and in the settings it lists; a task-il method may run on a class-il
    stream, where the task is given. `dataset` is a class, whose setting may still be open, or a built stream.
    """
    _refuse_incomplete(model_class)
    allowed, advice = list(model_class.COMPATIBILITY), "choose another method or another stream"
    kinds = [kind.NAME for kind in model_class.TASKS]
    if not {dataset.TASK.NAME, "any"} & {*kinds}:
        raise UserError(
            f"method '{model_class.NAME}' is for {' and '.join(kinds)} but the tasks of '{dataset.NAME}' are "
            f"{dataset.TASK.NAME}: {advice}"
        )
    settings = dataset.SETTINGS or (dataset.SETTING,)
    if not any(s in allowed or (s == "class-il" and "task-il" in allowed) for s in settings):
        raise UserError(
            f"method '{model_class.NAME}' supports {', '.join(allowed)} but dataset '{dataset.NAME}' is "
            f"{' or '.join(settings)}: {advice}"
        )


def _refuse_incomplete(cls: type) -> None:
    """A class must say what the runner has to know of a method before it makes one."""
    settings = getattr(cls, "COMPATIBILITY", None)
    if not isinstance(settings, list | tuple | set) or not settings or not all(isinstance(s, str) for s in settings):
        raise UserError(
            f"{cls.__name__} of method '{cls.NAME}' has COMPATIBILITY = {settings!r}: expected a list of the settings "
            "it supports, of 'class-il', 'domain-il', 'task-il', 'general-continual'"
        )
    if not hasattr(cls, "meta_observe"):
        raise UserError(f"{cls.__name__} of method '{cls.NAME}' is no ContinualModel: derive it from that class")


def refuse_input(backbone_class: type, dataset_class: type) -> None:
    """A network of images does not read tokens, nor the other way round."""

    def reads(network: type) -> tuple[str, ...]:
        inputs = getattr(network, "INPUT", dataset_class.INPUT)  # of a plain nn.Module its own forward decides
        return (inputs,) if isinstance(inputs, str) else inputs

    if dataset_class.INPUT not in reads(backbone_class):
        others = [n for n in registry.names("backbone") if dataset_class.INPUT in reads(registry.load("backbone", n))]
        raise UserError(
            f"backbone '{backbone_class.NAME}' reads {' and '.join(reads(backbone_class))} but dataset "
            f"'{dataset_class.NAME}' holds {dataset_class.INPUT}: choose one of {', '.join(others)}"
        )


def refuse_impossible(args: argparse.Namespace) -> None:
    """Combinations that no single option can see to be wrong."""
    if getattr(args, "minibatch_size", None) and args.buffer_size < args.minibatch_size:
        raise UserError(
            f"--buffer_size {args.buffer_size} is smaller than --minibatch_size {args.minibatch_size}, the examples "
            "replayed at each step: raise the one or lower the other"
        )
    if args.fitting_mode == "iters" and not args.n_iters:
        raise UserError("--fitting_mode iters needs --n_iters")
    if args.n_iters and args.fitting_mode != "iters":
        raise UserError("--n_iters has an effect only with --fitting_mode iters: add it, or drop --n_iters")
    if args.fitting_mode == "early_stopping" and not (args.validation or args.holdout):
        raise UserError("--fitting_mode early_stopping needs held-out data: add --holdout 10 or --validation 10")
    if args.lr_scheduler == "multisteplr" and not args.lr_milestones:
        raise UserError("--lr_scheduler multisteplr needs --lr_milestones, as --lr_milestones 35 45")
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        raise UserError(
            f"--seeds names a seed twice ({' '.join(map(str, args.seeds))}): each counts as a run of its own"
        )
    for option in ("resume", "savecheck", "savecheck_minutes", "jobs"):
        if getattr(args, option) and args.disable_log:
            raise UserError(f"--{option} needs the run's folder, which --disable_log leaves out: drop one of them")
    if args.resume and args.loadcheck:
        raise UserError("--resume and --loadcheck exclude each other: the one finds the checkpoint, the other names it")
    if args.seeds and all(getattr(args, name) is not None for name in PART_SEEDS):
        raise UserError(f"--seeds has nothing to change where --{', --'.join(PART_SEEDS)} are given: drop one of them")
    if args.jobs and not args.seeds:
        raise UserError("--jobs runs several seeds side by side: give them, as --seeds 0 1 2")
    if args.seeds and args.loadcheck:
        raise UserError("--seeds and --loadcheck exclude each other: a checkpoint belongs to one seed")
    if args.inference_only and not args.loadcheck:
        raise UserError("--inference_only needs --loadcheck FILE: the checkpoint to evaluate")
    if args.optim_nesterov and not (args.optimizer == "sgd" and args.optim_mom > 0):
        raise UserError("--optim_nesterov needs --optimizer sgd and --optim_mom above 0")
    for one, other in EXCLUSIVE:
        if getattr(args, one) and getattr(args, other):
            raise UserError(f"--{one} and --{other} exclude each other: give one")
    for option in ("exp_name", "ckpt_name"):
        name = getattr(args, option) or "fine"
        if name.startswith(".") or not all(c.isalnum() or c in "._-" for c in name):
            raise UserError(f"--{option} '{name}': expected letters, digits, '.', '_' and '-', not starting with a dot")


def describe(config: Config) -> str:
    """The resolved configuration with its origins: a line for each option somebody chose, the defaults together."""
    rank = {"command line": -1, "config file": 0, "best_args": 2, "dataset": 3}
    chosen = [n for n in config.origins if config.origins[n] != "default"]
    chosen.sort(key=lambda n: (rank.get(config.origins[n], 1), n))
    width = max(map(len, chosen))
    lines = [f"{config.args.model} on {config.args.dataset} with {config.args.backbone}"]
    lines += [f"  {n:<{width}}  {getattr(config.args, n)!s:<24} {config.origins[n]}" for n in chosen]
    defaults = sorted(config.origins.keys() - chosen)
    text = ", ".join(f"{n}={getattr(config.args, n)}" for n in defaults)
    return "\n".join([*lines, *textwrap.wrap(text, 116, initial_indent="  default: ", subsequent_indent="    ")])


def declared_options(cls: type) -> ArgumentParser:
    """A parser with the options that one chosen file declares.

    `get_parser(parser)` fills the parser it is given; one that takes none and returns a parser of its own is
    accepted too, as a static method or at module level.
    """
    own = ArgumentParser(add_help=False)
    declare = getattr(cls, "get_parser", None) or getattr(inspect.getmodule(cls), "get_parser", None)
    if declare is None:
        return own
    return (declare(own) if inspect.signature(declare).parameters else declare()) or own


def _add_options(parser: ArgumentParser, kind: str, cls: type) -> None:
    filled = declared_options(cls)
    group = parser.add_argument_group(f"{kind} {cls.NAME}", getattr(getattr(cls, "SOURCE", None), "citation", None))
    for action in filled._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        try:
            group._add_action(action)
        except argparse.ArgumentError as e:
            raise UserError(
                f"{kind} '{cls.NAME}' declares {e.argument_name}, which exists already: rename it"
            ) from None
    parser.set_defaults(**filled._defaults)


def _actions(parser: ArgumentParser) -> dict[str, argparse.Action]:
    """The options by destination; of two spellings the first."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        found.setdefault(action.dest, action)
    return found


def _explicit(
    parser: ArgumentParser, argv: list[str], strict: bool, unused: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, argparse.Action]]:
    """What the command line itself says, no default mixed in, and the actions by destination."""
    actions = _actions(parser)
    kept = [(action, action.default, action.required) for action in parser._actions]
    defaults, parser._defaults = parser._defaults, {}
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    try:
        namespace, rest = parser.parse_known_args(argv)
    finally:
        parser._defaults = defaults
        for action, default, required in kept:
            action.default, action.required = default, required
    if strict:
        if rest:
            raise UserError(explain_unknown(rest, parser._option_string_actions, unused))
        refuse_repeats(argv, parser)
    return vars(namespace), actions


def _of_file(
    choice: argparse.Namespace, parser: ArgumentParser, actions: dict[str, argparse.Action], unused: Iterable[str]
) -> dict[str, Any]:
    """What the file of `--config` sets, by destination and converted.

    Raises:
        UserError: an unknown name, an impossible value, an option without effect. A run's own file names all options,
            those without effect on its method included.
    """
    out = {}
    for name, value in choice.stated.items():
        action = parser._option_string_actions.get(f"--{name}")
        if action is None or action.dest not in actions or action.const is False:
            own = choice.backbone and registry.load("backbone", choice.stated.get("backbone", choice.backbone))
            if own and name in {a.dest for a in declared_options(own)._actions}:
                continue  # of the file's network, in whose place the command line has put another
            raise UserError(f"{choice.config}: {explain_unknown([f'--{name}'], parser._option_string_actions, unused)}")
        if action.dest in {*NO_FACTS} - {"model_config"}:
            raise UserError(f"{choice.config}: '{name}' is for the command line: drop it")
        if action.dest in unused and not choice.of_a_run:
            raise UserError(f"{choice.config}: '{name}' has no effect on {choice.model}: drop it")
        if action.dest not in unused:
            out[action.dest] = converted(action, value, choice.config)
    return out


def _for_network(layer: dict[str, Any], backbone: str) -> dict[str, Any]:
    """What a layer sets, without the options of its own network where another one is used."""
    if "backbone" not in layer or registry.normalise(backbone) == registry.normalise(layer["backbone"]):
        return layer
    own, used = ({a.dest for a in declared_options(registry.load("backbone", name))._actions}
                 for name in (layer["backbone"], backbone))  # fmt: skip
    return {name: value for name, value in layer.items() if name not in own - used}


def _presets(cls: type, source: dict, unused: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """What the presets named in `source` set: PRESETS = {option: {value: {other option: value, ...}}} of a method's or
    a stream's class. `unused` options are left out.

    A preset ranks just below the place that names it.
    """
    layers = []
    for option, presets in getattr(cls, "PRESETS", {}).items():
        if source.get(option) in presets:
            values = presets[source[option]]
            layers.append((f"preset {source[option]}", {k: v for k, v in values.items() if k not in unused}))
    return layers


def from_stored(options: dict[str, Any], argv: list[str], where: Any) -> Config:
    """The configuration of an earlier run; `argv` may only say where data and results are and how it is shown.

    Raises:
        UserError: a stored value is impossible, or `argv` would make it another run.
    """
    for kind in registry.FOLDERS:
        if not isinstance(options.get(kind), str) or not re.fullmatch(r"[\w-]+|timm:[\w.-]+", options[kind]):
            raise UserError(f"{where}: options.{kind} is not a name")
    choice = argparse.Namespace(**{kind: options[kind] for kind in registry.FOLDERS})
    given, _ = _explicit(base_parser(), argv, strict=True)
    # What is kept outside this folder is not found by its name: the command line says where it is.
    for kind in registry.FOLDERS:
        same = kind in given and registry.normalise(registry.load(kind, given[kind]).NAME)
        if same and same == registry.normalise(options[kind]):
            setattr(choice, kind, given.pop(kind))
    for dest in given.keys() - set(NEUTRAL):
        raise UserError(f"--rerun repeats a run as it was: drop --{dest}, or start a run of its own with it")
    classes = [registry.load(kind, getattr(choice, kind)) for kind in registry.FOLDERS]
    refuse_setting(classes[0], classes[1])
    refuse_input(classes[2], classes[1])
    parser = build_parser(choice, choice.backbone)
    actions = _actions(parser)
    values = {dest: action.default for dest, action in actions.items()} | parser._defaults
    stored = {}
    for dest, value in options.items():
        if dest not in actions and dest not in NEUTRAL:
            raise UserError(f"{where}: {dest[:100]!r} is no option of {choice.model} on {choice.dataset}")
        if dest not in NEUTRAL or dest == "num_threads":
            stored[dest] = converted(actions[dest], value, str(where))
    ((_, stored),) = merge([(str(where), stored)])
    values |= stored | given | {"seeds": None}
    origins = {dest: "command line" if dest in given else "rerun" for dest in values}
    return _settled(Config(argparse.Namespace(**values), origins, *classes), actions)
