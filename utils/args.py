"""The command line: which options exist, how they are spelt, what values they take.

Only declarations live here; which value wins is decided in `utils.run.config`. This module imports nothing heavy, so
that `--help` is quick. Method files import `ArgumentParser` and `add_rehearsal_args` from here.
"""

import argparse
import re
from typing import Any

from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.optimise import OWN_OPTIMIZERS, OWN_SCHEDULES, optimizer_name, schedule_name, setting, settings_of
from palimpsest.utils.option_types import (
    LISTS,
    boolean,
    fraction,
    int_list,
    interval,
    non_negative_float,
    non_negative_int,
    number,
    positive_float,
    positive_int,
    report_moment,
    save_moment,
    seed_int,
    store_uri,
)

# Options without influence on the numbers: they may differ between two starts of one run.
NEUTRAL = (
    "resume", "savecheck", "savecheck_minutes", "ckpt_name", "non_verbose", "csv_log", "tensorboard", "mlflow",
    "wandb", "disable_log", "results_path", "base_path", "num_threads", "seeds", "jobs", "notes", "rerun",
    "num_workers", "cache_mb", "report", "figures",
)  # fmt: skip

PART_SEEDS = ("seed_init", "seed_order", "seed_data")  # of the parts of a run, see `utils.randomness.seed_of`
SEEDS = ("seed", *PART_SEEDS)

# Commands about many runs: each has options of its own, which `main.py --COMMAND --help` shows.
STUDIES: dict[str, str] = {
    "compare": "methods side by side, from the runs below some folders: tables, paired tests, ranks, pictures",
    "tune": "choose options by held-out data, then run: [first-task | first-k K | other-stream NAME]",
    "sweep": "run the sweep that a YAML file describes: grid, random or TPE; local or on Slurm",
    "serve": "a page over all runs below a folder, in a browser: filters, live curves, comparison",
    "export_site": "the same page as static files to publish",
    "reproduce": "run the stored rows of a stream over several seeds, beside what was published",
}


class HelpFormatter(argparse.HelpFormatter):
    """Adds defaults to the help text where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, argparse.SUPPRESS) and action.default is not False
        if shown and "default" not in text and "%(default)" not in text:
            text += " (default: %(default)s)"
        return text


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `-` and `_` alike in option names, no abbreviations, and errors of one line."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", lambda prog: HelpFormatter(prog, max_help_position=34, width=118))
        super().__init__(*args, **kwargs)

    def error(self, message: str):
        raise UserError(message)

    def parse_known_args(self, args=None, namespace=None):
        tokens = None if args is None else self._joined(canonical(args))
        return super().parse_known_args(tokens, namespace)

    def _joined(self, tokens: list[str]) -> list[str]:
        """Lists as argparse wants them, however they were given: `3, 1, 2` as one value of an option that takes a list,
        `0,1` as two of an option that takes several.
        """
        out, tokens = [], list(tokens)
        while tokens:
            token = tokens.pop(0)
            name, _, first = token.partition("=")
            action = self._option_string_actions.get(name)
            kind = getattr(action, "type", None)
            one, several = kind in LISTS, getattr(action, "nargs", None) == "+" and kind is not setting
            if not (one or several):
                out.append(token)
                continue
            given = [first] if first else []
            while tokens and not (tokens[0].startswith("-") and not tokens[0][1:2].isdigit()):
                given.append(tokens.pop(0))
            if several:
                out += [name, *(part for text in given for part in re.split(r"[,\s]+", text) if part)]
            else:
                text = " ".join(given)
                out += [f"{name}={text}"] if given or "=" in token else [name]
        return out


def canonical(argv: list[str]) -> list[str]:
    """Option names with `_` for `-`, and `--dataset hf:NAME` as `--dataset hf --hf_name=NAME`; other values are left as
    they are.
    """
    out = []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, eq, value = token.partition("=")
            token = "--" + name[2:].replace("-", "_") + eq + value
        before = out[-1] if out else ""
        if token.startswith("hf:") and before == "--dataset" or token.startswith("--dataset=hf:"):
            name = token.partition("hf:")[2]
            token, extra = token.removesuffix(f":{name}"), [f"--hf_name={name}"]
            out += [token, *extra]
            continue
        out.append(token)
    return out


def add_bool(parser, flag: str, default: bool = False, help: str = "") -> None:
    """Declare a yes/no option in both forms that scripts use: `--flag` and `--flag 1`; with default True also
    `--no_flag`.
    """
    name = flag.lstrip("-")
    parser.add_argument(flag, type=boolean, nargs="?", const=True, default=default, metavar="0|1", help=help)
    if default:
        parser.add_argument(f"--no_{name}", dest=name, action="store_false", default=default, help=f"turn --{name} off")


def add_rehearsal_args(parser, minibatch: bool = True):
    """Options of a method with a replay buffer: `--buffer_size` (required) and, unless it draws no batches from it,
    `--minibatch_size`.
    """
    group = parser.add_argument_group("replay")
    group.add_argument("--buffer_size", type=positive_int, required=True, help="examples the replay buffer holds")
    if minibatch:
        group.add_argument(
            "--minibatch_size", type=positive_int, help="replayed examples per iteration (default: --batch_size)"
        )
    return parser


def base_parser() -> ArgumentParser:
    """All options that do not depend on the method, dataset or backbone."""
    parser = ArgumentParser(
        prog="main.py",
        description="Palimpsest: train a network on a sequence of tasks and measure what it forgets.",
        epilog="Options of a method, dataset or backbone: main.py --model er --dataset seq-mnist --help. "
        "Names may be written with - or _.",
        add_help=False,
    )
    _choose(parser.add_argument_group("choose"))
    _optimise(parser.add_argument_group("optimise"))
    _stream(parser.add_argument_group("stream"))
    _evaluate(parser.add_argument_group("evaluate"))
    _run(parser.add_argument_group("run"))
    study = parser.add_argument_group("study", "many runs; main.py --compare --help shows the options of a command")
    for name, text in STUDIES.items():
        study.add_argument(f"--{name}", nargs="*", metavar="...", help=text)
    return parser


def _choose(group) -> None:
    add = group.add_argument
    add("-h", "--help", action="store_true", default=False, help="show the options and exit")
    add("--version", action="store_true", default=False, help="show the version and exit")
    add("--model", metavar="NAME", help="method: a file of models/, or a path ending in .py")
    add("--dataset", metavar="NAME", help="stream of tasks: a file of datasets/")
    add("--backbone", metavar="NAME", help="network: a file of backbone/, or timm:NAME (default: the dataset's)")
    add_bool(group, "--load_best_args", help="take the stored hyperparameters of best_args/<model>.yaml")
    add("--model_config", choices=["best", "default"], default="default", help="'best' means --load_best_args")
    add("--config", metavar="FILE", help="take options from a YAML file, or those of a run from its config.yaml")
    add("--print_config", action="store_true", default=False, help="print the resolved options as YAML and exit")
    add("--print_completion", metavar="SHELL", help="print what makes bash or zsh complete options and names, and exit")
    add("--list", action="store_true", default=False, help="show models, datasets, backbones, stored rows")
    add("--rerun", metavar="FOLDER", help="repeat the run in FOLDER and say whether the result is identical")
    add("--predict", nargs="+", metavar=("RUN", "FILE"), help="what the run in the folder RUN says of images; --task T")
    add("--export", nargs="+", metavar=("RUN", "FOLDER"), help="weights, classes and ONNX of a run, for other programs")
    add("--check", metavar="MODEL", help="run the conformance suite on a method file and say what fails")


def _optimise(group) -> None:
    add = group.add_argument
    add("--lr", type=positive_float, required=True, help="learning rate (default: the dataset's)")
    add(
        "--optimizer",
        type=optimizer_name,
        default="sgd",
        metavar="NAME",
        help=f"update rule: {', '.join(OWN_OPTIMIZERS)}, or another of torch.optim",
    )
    add(
        "--optim_args",
        type=setting,
        nargs="+",
        default=[],
        metavar="K=V",
        help="further arguments of the optimiser, as betas=0.9,0.99",
    )
    add("--optim_wd", type=non_negative_float, default=0.0, help="weight decay")
    add("--optim_mom", type=fraction, default=0.0, help="momentum, of an optimiser that has it")
    add_bool(group, "--optim_nesterov", help="Nesterov momentum of sgd")
    own = ", ".join(OWN_SCHEDULES)
    schedule = "learning-rate schedule over the epochs of a task, restarted with a fresh optimiser at each task: "
    schedule += f"{own}, or another of torch.optim.lr_scheduler"
    add("--lr_scheduler", type=schedule_name, default="none", metavar="NAME", help=schedule)
    what = "arguments of a schedule of torch.optim, as step_size=10"
    add("--sched_args", type=setting, nargs="+", default=[], metavar="K=V", help=what)
    warmup = "share of a task's epochs, its first ones, over which the learning rate rises in equal steps to --lr"
    add("--lr_warmup", type=fraction, default=0.0, metavar="SHARE", help=warmup)
    add("--lr_milestones", type=non_negative_int, nargs="+", default=[], help="epochs at which multisteplr decays")
    add("--sched_multistep_lr_gamma", type=positive_float, default=0.1, help="factor of multisteplr at a milestone")
    add("--clip_grad", type=positive_float, help="clip the gradient's global norm to this (default: off)")
    add("--n_epochs", type=positive_int, required=True, help="epochs per task (default: the dataset's)")
    add("--n_iters", type=positive_int, help="iterations per task, with --fitting_mode iters")
    add(
        "--fitting_mode",
        choices=["epochs", "iters", "early_stopping"],
        default="epochs",
        help="what ends a task; early_stopping needs --validation or --holdout",
    )
    add("--early_stopping_patience", type=positive_int, default=5, help="evaluations without improvement")
    improves = "what must improve on the held-out data of the current task"
    add("--early_stopping_metric", choices=["accuracy", "loss"], default="accuracy", help=improves)
    add("--early_stopping_freq", type=positive_int, default=1, help="epochs between evaluations")
    add("--early_stopping_epsilon", type=non_negative_float, default=1e-6, help="smallest improvement")
    add("--batch_size", type=positive_int, required=True, help="examples per step (dataset's default)")
    add_bool(group, "--drop_last", help="drop the last, smaller batch of an epoch")


def _stream(group) -> None:
    add = group.add_argument
    percent = {"type": number(float, 0, 99), "default": 0.0, "metavar": "P"}
    add(
        "--validation",
        **percent,
        help="hold out P %% of the training data of every class and evaluate on them instead of the test set",
    )
    add(
        "--holdout",
        **percent,
        help="leave P %% of the training data of every class out of training; scores still come from the test set",
    )
    add_bool(group, "--permute_classes", help="shuffle the class order (a function of --seed_order)")
    add("--custom_class_order", type=int_list, metavar="C,C,...", help="class order, as 3,1,2,0,...")
    add("--init_cls", type=positive_int, metavar="A", help="classes of the first task (default: --increment)")
    add("--increment", type=positive_int, metavar="B", help="classes of every task after it; the last may have fewer")
    add("--custom_task_order", type=int_list, metavar="T,T,...", help="order of the tasks, as 2,0,1")
    add_bool(group, "--multi_head", help="softmax of each example over its own task's classes only: task-IL training")
    add_bool(group, "--joint", help="train once on the data of all tasks together")
    add(
        "--label_perc",
        type=number(float, 0, 1, open_low=True),
        default=1.0,
        help="fraction of labelled training data per class; the rest is left out",
    )
    add("--noise_type", choices=["symmetric", "asymmetric"], default="symmetric", help="label noise")
    add("--noise_rate", type=fraction, default=0.0, help="fraction of training labels that are flipped")
    add_bool(group, "--augment", default=True, help="the stream's augmentation, where it has one")
    add(
        "--normalize",
        choices=["dataset", "none", "half", "imagenet"],
        default="dataset",
        help="input statistics: the dataset's, none, mean and std 0.5, or ImageNet's",
    )
    add("--start_from", type=non_negative_int, default=0, metavar="K", help="first task to train")
    add("--stop_after", type=positive_int, metavar="K", help="stop when K tasks have been trained")
    budget = "floating-point operations of training; each task has an equal share and ends when it is spent, or after "
    budget += "its epochs"
    add("--budget_flops", type=positive_float, metavar="X", help=budget)
    memory = "bytes that the method may keep besides its network: a buffer gets what teachers and statistics leave"
    add("--budget_bytes", type=positive_int, metavar="X", help=memory)


def _evaluate(group) -> None:
    add = group.add_argument
    add("--eval_epochs", type=positive_int, metavar="N", help="also evaluate every N epochs of a task")
    points = (
        "any-time evaluation: every N iterations score a fixed part of each task's test images; without N as often "
    )
    points += "as costs at most 5 %% of the training"
    add("--eval_every", type=interval, nargs="?", const="auto", metavar="N", help=points)
    add("--eval_subset", type=positive_int, default=250, metavar="N", help="test images a task for --eval_every")
    add("--eval_tasks", type=positive_int, default=1, metavar="K", help="evaluate after every K tasks, and at the end")
    add("--eval_batch_size", type=positive_int, default=1024, help="batch size of evaluation")
    add_bool(group, "--enable_other_metrics", help="evaluate future tasks too, for forward transfer")
    add_bool(group, "--inference_only", help="evaluate --loadcheck FILE without training")


def _run(group) -> None:
    add = group.add_argument
    add("--seed", type=seed_int, default=0, help="seed of everything random")
    parts = {"init": "the network's first weights and what a method draws as it is made"}
    parts |= {"order": "the order of classes and tasks, permutations and angles", "data": "all else: batches, replay"}
    for part, what in parts.items():
        add(f"--seed_{part}", type=seed_int, metavar="S", help=f"seed of {what} (default: --seed)")
    add("--seeds", type=seed_int, nargs="+", metavar="S", help="one run per seed, then a summary")
    what = "this many runs of --seeds side by side; finished ones are not repeated, interrupted ones go on"
    add("--jobs", type=positive_int, metavar="N", help=what)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--data_device", choices=["auto", "cpu", "cuda"], default="auto", help="where the data live")
    add("--num_threads", type=non_negative_int, default=0, help="CPU threads; 0 leaves torch's choice")
    add("--base_path", "--data_path", default="./data", help="folder of the data")
    add("--results_path", "--save_path", default="./results", help="folder of the results")
    add("--exp_name", help="first part of the run folder's name: letters, digits, . _ -")
    add("--notes", help="free text, stored with the run")
    add_bool(group, "--non_verbose", help="no progress bar, no line per evaluation")
    add_bool(group, "--debug_mode", help="one epoch of a few iterations per task, to see whether a command runs")
    add_bool(group, "--disable_log", help="write nothing")
    when = "write report.html at the end, also after every task, or not; --report FOLDER draws that of a finished run"
    add("--report", type=report_moment, default="end", metavar="end|live|off", help=when)
    add("--figures", choices=["png", "pdf"], help="also write the report's pictures as files")
    add_bool(group, "--csv_log", default=True, help="CSV files")
    add_bool(group, "--tensorboard", default=True, help="TensorBoard events")
    add(
        "--mlflow",
        type=store_uri,
        nargs="?",
        const="local",
        metavar="URI",
        help="track the run with MLflow, in the store URI or, without one, in mlflow.db below --results_path",
    )
    what = "track the run with Weights & Biases, in PROJECT or, without one, in palimpsest; see WANDB_MODE=offline"
    add("--wandb", nargs="?", const="palimpsest", metavar="PROJECT", help=what)
    add(
        "--savecheck",
        type=save_moment,
        metavar="task|last|N|no",
        help="checkpoints: a file per task, one after each task, or also every N iterations; otherwise one at the end, "
        "or none with no",
    )
    add("--savecheck_minutes", type=positive_float, metavar="M", help="a checkpoint every M minutes as well")
    add_bool(group, "--resume", help="go on with this command's unfinished run, or begin it; implies --savecheck last")
    add("--ckpt_name", help="name of the checkpoint file (default: checkpoint)")
    add("--loadcheck", metavar="FILE", help="start from this checkpoint")
    add_bool(group, "--deterministic", help="deterministic GPU kernels, slower")
    what = "float32; TF32 in matrix products and convolutions; or also bfloat16 in the network's passes of training"
    add("--precision", choices=["fp32", "tf32", "bf16"], default="fp32", help=what)
    add_bool(group, "--compile", help="compile the network's forward with torch.compile")
    add_bool(group, "--channels_last", help="images and weights of convolutions with the channels last in memory")
    levels = "a name for --precision: 0 fp32, 1 tf32, 2 bf16, 3 bf16 and --compile"
    add("--code_optimization", type=int, choices=[0, 1, 2, 3], default=0, help=levels)


def converted(action: argparse.Action, value: Any, origin: str) -> Any:
    """A stored value through the option's own type and choices, so that YAML cannot smuggle in what the command
    line refuses.

    Raises:
        UserError: in one line, whatever the value says.
    """
    convert, several = action.type or str, action.nargs not in (None, "?", 0)
    try:
        if value is None:
            if action.default is not None:
                raise ValueError("nothing is given")
            return None
        if action.nargs == 0:
            return boolean(value)
        if several:
            value = settings_of(value) if isinstance(value, dict) else value
            value = [convert(str(part)) for part in (value if isinstance(value, list) else [value])]
        else:  # one argument may hold a list, as 3,1,2
            value = convert(",".join(map(str, value)) if isinstance(value, list) else str(value))
        if action.choices is not None and value not in action.choices:
            raise ValueError(f"'{value}': expected one of {', '.join(map(str, action.choices))}")
    except (argparse.ArgumentTypeError, ValueError) as e:
        raise UserError(f"{origin} sets --{action.dest} to an impossible value: {one_line(e)}") from None
    return value


def refuse_repeats(argv: list[str], parser: ArgumentParser) -> None:
    """Raise UserError when one option is given twice (argparse would silently keep the last)."""
    seen = set()
    for name in (token.partition("=")[0] for token in canonical(argv)):
        if (action := parser._option_string_actions.get(name)) is None:
            continue
        if action.dest in seen:
            raise UserError(f"{name} is given twice: keep one")
        seen.add(action.dest)
