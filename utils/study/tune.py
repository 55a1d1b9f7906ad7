"""`main.py --tune`: options chosen by held-out data, then fixed for the run whose scores come from the test set.

The trials never see a test example: each trains on what `--tune` names and is scored on a part of the training data
that it was not trained on. Every method gets the same number of trials. They are no results: they lie in a folder of
their own, and none of them enters a table.

References: Lee et al. 2024 (arXiv 2404.06466), all realistic protocols perform alike, so the cheapest will do; Cha and
Cho 2024 (arXiv 2403.09066), tuning on one stream and reporting on another.
"""

import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.utils import identity, registry
from palimpsest.utils.args import NEUTRAL, ArgumentParser, canonical
from palimpsest.utils.atomic import LockTaken, file_errors, locked, write_text
from palimpsest.utils.config_file import plain_yaml
from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.option_types import number, positive_int
from palimpsest.utils.run import config as configuration
from palimpsest.utils.run.layers import distinct
from palimpsest.utils.study.jobs import Job, gpus, run_all
from palimpsest.utils.study.space import Space, as_argv, options_of, read_space

if TYPE_CHECKING:
    import optuna

TRIALS, HELD_OUT = 8, 10.0  # of every method where nothing else is said; percent
KINDS = ("first-task", "first-k", "other-stream")
FOLDER, JOURNAL, TABLE = "tuning", "journal.log", "trials.csv"
AT_RANDOM = 10  # trials before Optuna's TPE looks at scores
FACTOR = 10.0  # the learning rate is searched from this much below the default to this much above
# What a trial does not need, or has in its own way.
DROPPED = ("seeds", "jobs", "validation", "holdout", "stop_after", "results_path", "save_path", "report", "tensorboard")
DROPPED += ("no_tensorboard", "mlflow", "figures", "resume", "savecheck", "exp_name")


def make_parser() -> ArgumentParser:
    """The options of the command; all others are those of the run."""
    parser = ArgumentParser(
        prog="main.py",
        usage="main.py --model NAME --dataset NAME --tune [first-task | first-k K | other-stream NAME] [options]",
        description="Choose options by held-out data, then run with them. Running the command again goes on. All other "
        "options are those of the run, see main.py --help and docs/study.md.",
        add_help=False,
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="show this and exit")
    what = (
        "what the trials train on: the first task (default), the first K tasks, or another stream of the same setting"
    )
    add("--tune", nargs="*", metavar="WHAT", help=what)
    add("--space", metavar="FILE", help="YAML: option -> values to try (default: lr, and what the method's SEARCH has)")
    add("--trials", type=positive_int, default=TRIALS, metavar="N", help="trials; give every method the same")
    add("--jobs", type=positive_int, default=1, metavar="N", help="runs side by side")
    held_out = "percent of the trials' training data that they are scored on"
    add("--validation", type=number(float, 0, 99), default=HELD_OUT, metavar="P", help=held_out)
    return parser


def command(argv: list[str]) -> int:
    """Tune, then run; the exit status.

    Raises:
        UserError, TrainingFailed, JobsStopped: as of runs.
    """
    parser = make_parser()
    args, _ = parser.parse_known_args(argv)
    if args.help:
        parser.print_help()
        return 0
    plan = read_plan(args, argv)
    print("\n".join(plan.describe()), flush=True)
    try:
        with plan.alone():
            chosen, score = search(plan)
    except UserError as e:  # how many tasks there are is known when the stream is made
        raise UserError(str(e).replace("--stop_after", "--tune first-k")) from None
    values = as_argv(chosen, plan.actions)
    print(f"chosen: {shlex.join(values)} ({score:.2f} on the held-out data)", flush=True)
    final = [*plan.rest, *values]
    final += ["--jobs", str(args.jobs)] if args.jobs > 1 and configuration.resolve(final).args.seeds else []
    run(final, plan.chosen_on, [plan.actions[name].dest for name in chosen])
    return 0


def run(argv: list[str], chosen_on: str, tuned: Sequence[str]) -> None:
    """The run with the chosen options, which goes on where it was begun; its scores come from the test set.

    Args:
        argv: of the run.
        chosen_on: what was seen to choose the options.
        tuned: names of the options that were chosen.
    """
    from palimpsest.utils.study.seeds import perform

    config = configuration.resolve(argv)
    told = chosen_on if config.row is None else f"{chosen_on}; the other options: {config.chosen_on}"
    config = replace(config, args=Namespace(**vars(config.args) | {"resume": True}), chosen_on=told)
    config.origins |= dict.fromkeys(tuned, "tuned")
    print(configuration.describe(config), flush=True)
    perform(config, argv)


@dataclass
class Plan:
    """What is tried.

    Attributes:
        rest: the command line of the run, without what chooses its options.
        trial: that of a trial, without the values it tries.
        chosen_on: what was seen to choose the options, in words.
        tasks: the first tasks that a trial is scored on, None for all of its stream.
        at_once: trials side by side.
        seed, device: of the trials, as the options say.
        folder: of the trials.
    """

    rest: list[str]
    trial: list[str]
    space: Space
    actions: dict[str, Any]
    chosen_on: str
    tasks: int | None
    trials: int
    at_once: int
    seed: int
    device: str
    folder: Path

    def describe(self) -> list[str]:
        """What is about to happen, in lines."""
        return [f"tuning on {self.chosen_on} (in {self.folder}):", *(f"  {line}" for line in self.space.describe())]

    def values(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """What is tried of what was suggested: four digits of a number are enough."""
        values = {name: suggested[name] for name in self.space.domains}
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, no other process tunes the same."""
        try:
            with file_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / ".lock"):
                yield
        except LockTaken as e:
            raise UserError(f"another process tunes the same in {self.folder}: wait for it{e.hint}") from None


def read_plan(args: Namespace, argv: list[str]) -> Plan:
    """Check all that can be known before the first trial.

    Raises:
        UserError: what chooses is not understood, the space has an option that is given as well or has none, the
            trials would be scored by test data, or a corner of the space is no run.
    """
    kind, given = (args.tune or [KINDS[0]])[0], (args.tune or [])[1:]
    if kind not in KINDS or len(given) != (kind != KINDS[0]):
        raise UserError(f"--tune {shlex.join(args.tune)}: expected first-task, first-k K, or other-stream NAME")
    if not args.validation:
        raise UserError("--validation 0 would choose by scores of the test set: give the percent that is held out")
    rest = without(argv, ("tune", "space", "trials", "jobs", "validation"))
    for part in ("model", "dataset"):
        if not getattr(configuration.chosen(rest), part):
            raise UserError(f"--tune needs --{part}: give one of {', '.join(registry.names(part))}")
    actions = options_of(rest)
    space = read_space(plain_yaml(Path(args.space)), actions, args.space) if args.space else _own_space(rest, actions)
    named = {token.partition("=")[0][2:] for token in canonical(rest) if token.startswith("--")}
    given_too = {actions[name].dest for name in named & actions.keys()}
    if both := sorted(name for name in space.domains if actions[name].dest in given_too):
        raise UserError(f"--{', --'.join(both)} is given and searched: drop it, or give --space a file without it")
    tasks, trial = 1, without(rest, DROPPED)
    what = "the first task"
    if kind == "first-k":
        tasks = _whole(given[0])
        what = f"the first {tasks} tasks"
    elif kind == "other-stream":
        trial, tasks, what = _elsewhere(trial, rest, given[0]), None, f"the stream {given[0]}"
    trial += [f"--validation={args.validation:g}", "--report", "off", "--no_tensorboard"]
    trial += [f"--stop_after={tasks}"] if tasks else []
    config = _refuse_unfit(rest, trial, space, actions)
    seed = config.args.seeds[0] if config.args.seeds else config.args.seed
    chosen_on = f"{what}, held out {args.validation:g} %, {args.trials} trials"
    folder = Path(config.args.results_path, FOLDER, config.args.dataset, Path(config.args.model).stem)
    plan = Plan(rest, trial, space, actions, chosen_on, tasks, args.trials, args.jobs, seed, config.args.device, folder)
    plan.folder = folder / _name(plan, config)
    return plan


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without some options and their values."""
    out, left_out = [], False
    for token in canonical(list(argv)):
        if token.startswith("-") and not token[1:2].isdigit():
            left_out = token.partition("=")[0][2:] in names
        if not left_out:
            out.append(token)
    return out


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--tune first-k {text}: expected a number of tasks from 1")
    return int(text)


def _own_space(rest: list[str], actions: dict[str, Any]) -> Space:
    """The learning rate, and what the method says of its own options."""
    choice = configuration.chosen(rest)
    own = getattr(registry.load("model", choice.model), "SEARCH", {}) if choice.model else {}
    lines = dict(own)
    if "lr" in actions and choice.dataset:
        default = getattr(registry.load("model", choice.model), "DEFAULTS", {}).get("lr")
        default = default or registry.load("dataset", choice.dataset).DEFAULTS["lr"]
        lines = {"lr": {"log": [default / FACTOR, default * FACTOR]}} | lines
    if not lines:
        raise UserError(f"{choice.model} has no --lr and no SEARCH of its own: say what to try with --space FILE")
    return read_space(lines, actions, f"the space of {choice.model}")


def _elsewhere(trial: list[str], rest: list[str], name: str) -> list[str]:
    """The command line on another stream of the same setting."""
    mine, other = registry.load("dataset", configuration.chosen(rest).dataset), registry.load("dataset", name)
    if mine.NAME == other.NAME:
        raise UserError(f"--tune other-stream {name}: that is the stream of the run: name another")
    if mine.SETTING != other.SETTING:
        raise UserError(f"--tune other-stream {name}: it is {other.SETTING}, {mine.NAME} is {mine.SETTING}")
    return [*without(trial, ("dataset",)), "--dataset", name]


def _refuse_unfit(rest: list[str], trial: list[str], space: Space, actions: dict) -> configuration.Config:
    """Resolve the corners of the space, as the trials and the run will; the configuration of the run at one."""
    for end in (0, -1):
        values = as_argv({name: domain.samples()[end] for name, domain in space.domains.items()}, actions)
        config = configuration.resolve([*rest, *values])
        configuration.resolve([*trial, *values])
        for option in ("loadcheck", "start_from", "inference_only", "disable_log"):
            if getattr(config.args, option):
                raise UserError(f"--tune and --{option} exclude each other: the trials begin at the beginning")
        if config.args.validation:
            raise UserError(
                "the run itself would be scored on held-out data: drop validation from the file of --config"
            )
    return config


def _name(plan: Plan, config: configuration.Config) -> str:
    """The same for the same search, whatever has no influence on its scores."""
    from palimpsest.utils.run.folders import hash_of

    searched = {plan.actions[name].dest for name in plan.space.domains}
    first = {name: domain.samples()[0] for name, domain in plan.space.domains.items()}
    options = vars(configuration.resolve([*plan.trial, *as_argv(first, plan.actions)]).args)
    facts = {name: value for name, value in distinct(options).items() if name not in {*NEUTRAL, "seed", *searched}}
    facts |= {f"space {name}": str(domain) for name, domain in plan.space.domains.items()} | {"seed": plan.seed}
    facts |= {kind: identity.of_class(getattr(config, f"{kind}_class")) for kind in ("model", "backbone")}
    return hash_of(facts)


# ---- the search


def search(plan: Plan) -> tuple[dict[str, Any], float]:
    """Do the trials that are missing; the best values and their score.

    Raises:
        TrainingFailed: every trial failed.
        JobsStopped: a signal; the same command goes on.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(plan.folder / JOURNAL)
    storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    study = optuna.create_study(storage=storage, study_name=FOLDER, direction="maximize", load_if_exists=True)
    while todo := _next(plan, study):
        _do(plan, study, todo)
    done = [trial for trial in study.get_trials(deepcopy=False)[: plan.trials] if trial.value is not None]
    _write_table(plan, study)
    if not done:
        raise TrainingFailed(f"all {plan.trials} trials failed: see {plan.folder / TABLE}; a smaller learning rate?")
    best = max(done, key=lambda trial: trial.value)
    if (equal := sum(trial.value == best.value for trial in done)) > 1:
        print(f"{equal} trials have the best score; the first of them counts")
    return plan.values(best.params), best.value


def _next(plan: Plan, study: "optuna.Study") -> list["optuna.Trial"]:
    """The next trials: those that were interrupted, then new ones: all whose values no score decides, after them as
    many as run side by side.
    """
    import optuna

    known = study.get_trials(deepcopy=False)
    out = [optuna.Trial(study, trial._trial_id) for trial in known if not trial.state.is_finished()]
    begun = len(known)
    end = max(AT_RANDOM, begun - len(out) + plan.at_once)
    while begun < min(end, plan.trials):
        # A sampler for each trial: one that is made anew when the command goes on would draw the same values again.
        study.sampler = optuna.samplers.TPESampler(seed=begun, n_startup_trials=AT_RANDOM, constant_liar=True)
        out.append(study.ask())
        plan.space.suggest(out[-1])
        begun += 1
    return out


def _do(plan: Plan, study: "optuna.Study", trials: list["optuna.Trial"]) -> None:
    """Run some trials and note their scores, in the order of their numbers."""
    from optuna.trial import TrialState

    jobs = []
    for trial in trials:
        values = as_argv(plan.values(plan.space.suggest(trial)), plan.actions)
        argv = [*plan.trial, *values, "--results_path", str(plan.folder)]
        facts = {"chosen_on": f"a trial of tuning on {plan.chosen_on}", "trial": True}
        label = f"trial {trial.number + 1}/{plan.trials}: {shlex.join(values).replace('--', '')}"
        jobs.append(Job(label, argv, plan.seed, None, facts))
    for trial, outcome in zip(trials, run_all(jobs, plan.at_once, gpus(plan.device)), strict=True):
        score = score_of(outcome.folder, plan.tasks) if outcome.state == "finished" else nan
        if isfinite(score):
            study.tell(trial, score)
        elif outcome.state in ("failed", "refused", "finished"):  # one that somebody stopped goes on
            trial.set_user_attr("reason", outcome.reason or "no score is defined")
            study.tell(trial, state=TrialState.FAIL)


def score_of(folder: Path, tasks: int | None) -> float:
    """Mean held-out score of a trial after its last task, over the first `tasks` tasks or all, percent; nan where there
    is none.
    """
    from palimpsest.utils.study.records import read_runs

    (record,) = read_runs(folder)
    matrix = next(iter(record.matrices.values()))
    row = matrix[(tasks or len(matrix)) - 1][: tasks or len(matrix)]
    return nan if not row or any(score is None for score in row) else sum(row) / len(row)


def _write_table(plan: Plan, study: "optuna.Study") -> None:
    """trials.csv: what was tried, and what it came to; the same on the terminal."""
    from palimpsest.utils.log.formats import csv_text

    names = [*plan.space.domains]
    rows = [("trial", *names, "score", "reason")]
    for trial in study.get_trials(deepcopy=False)[: plan.trials]:
        score = "" if trial.value is None else f"{trial.value:.4f}"
        rows.append((trial.number + 1, *plan.values(trial.params).values(), score, trial.user_attrs.get("reason", "")))
    write_text(plan.folder / TABLE, csv_text(rows))
    width = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(f"{cell!s:<{width[k]}}" for k, cell in enumerate(row)).rstrip())
