"""A sweep's file: what is trained on what, with which options, in which way the others are searched.

model: [er, derpp]              one or several; so are dataset and backbone
dataset: seq-digits
options: {n_epochs: 5, validation: 10}        the same in every run
seeds: [0, 1, 2]
search: tpe                     grid (default), random or tpe
space: {lr: {log: [1e-3, 0.1]}, buffer_size: [200, 500]}      see utils.study.space
trials: 20                      of random and tpe, for every combination of model, dataset and backbone
objective: acc                  a metric, of another scenario as 'task-il acc'
pruning: median                 end a trial at a task's end where it is below the median of the others
search_seed: 0                  of random and tpe
slurm: {partition: gpu, time: 240}            see utils.study.launch
"""

import itertools
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.utils import registry
from palimpsest.utils.args import NEUTRAL, base_parser
from palimpsest.utils.config_file import plain_yaml
from palimpsest.utils.errors import UserError
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.registry import nearest
from palimpsest.utils.run import config as configuration
from palimpsest.utils.study.space import APART, Actions, Space, as_argv, find_option, options_of, read_space

KEYS = ("model", "dataset", "backbone", "options", "seeds", "search", "space", "trials", "objective", "pruning")
KEYS += ("search_seed", "slurm")
SEARCHES = ("grid", "random", "tpe")
MOST = 10_000  # runs of one sweep: docs/cluster.md has what a thousand need
CHOOSING = ("search", "space", "objective", "pruning", "search_seed")  # what makes two searches different


@dataclass
class Case:
    """One combination of model, dataset and backbone.

    Attributes:
        names: its name by kind; backbone only where the file gives it.
        actions: the options it has, by name.
        fixed: options that are the same in every run.
        searched: names of the options of the space that it has.
        absent: names of options that the file gives and it does not have.
    """

    names: dict[str, str]
    actions: Actions
    fixed: dict[str, Any]
    searched: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As the files of a sweep call it."""
        return " ".join(self.names.values())

    def argv(self, values: dict[str, Any], seed: int | None = None, without: tuple[str, ...] = ()) -> list[str]:
        """The arguments of one run; `without` some of the fixed options."""
        out = [part for kind, name in self.names.items() for part in (f"--{kind}", name)]
        options = {name: value for name, value in self.fixed.items() if name not in {*values, *without}}
        out += as_argv(options | values, self.actions)
        return out if seed is None else [*out, "--seed", str(seed)]

    def key(self, values: dict[str, Any] | None) -> str:
        """What a trial runs, whatever has no influence on its numbers left out."""
        return shlex.join(self.argv(values or {}, without=NEUTRAL))


@dataclass
class Plan:
    """What a sweep's file says, checked.

    Attributes:
        name: of the sweep: its file's, without the ending.
        facts: the file's content.
        metric, scenario, lower: what the search looks at; the stream's own setting where scenario is None.
        held_out: whether scores come from held-out data, so that something may be chosen by them.
        folder: where the sweep keeps its state and tables.
    """

    name: str
    facts: dict[str, Any]
    cases: list[Case]
    space: Space
    seeds: list[int]
    search: str
    trials: int
    metric: str
    scenario: str | None
    lower: bool
    pruning: bool
    search_seed: int
    slurm: dict[str, Any]
    held_out: bool
    folder: Path

    @property
    def chooses(self) -> bool:
        """Whether its runs are there only to choose options by their scores."""
        return self.search != "grid" or "objective" in self.facts

    @property
    def objective(self) -> str:
        """What the search looks at, in words."""
        return f"{self.scenario} {self.metric}" if self.scenario else self.metric

    def points(self, case: Case) -> list[tuple[dict[str, Any] | None, list[int]]]:
        """Of every trial of a case its values, None where the search chooses them, and its seeds: one of a grid, which
        runs each seed as a trial of its own, all of them of a search, which looks at their mean.
        """
        if self.search != "grid":
            return [(None, self.seeds)] * self.trials
        return [(values, [seed]) for values in self.space.grid(case.searched) for seed in self.seeds]

    def ambiguous(self) -> dict[str, dict[str, list[str]]]:
        """Options of the file that are one thing to a method and another to the next, such as a `gamma`: option ->
        help text -> the methods.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for case in self.cases:
            for name in [*case.fixed, *case.searched]:
                methods = found.setdefault(name, {}).setdefault(str(case.actions[name].help), [])
                methods += [case.names["model"]] if case.names["model"] not in methods else []
        return {name: meanings for name, meanings in found.items() if len(meanings) > 1}

    def what_is_searched(self, case: Case) -> dict[str, Any]:
        """What must not change while a search goes on; of a grid, whose trials say it themselves, nothing but that."""
        if self.search == "grid":
            return {"search": "grid"}
        return {name: self.facts.get(name) for name in CHOOSING} | {"seeds": self.seeds, "options": case.key(None)}


def command_line(argv: list[str]) -> str:
    """Arguments as a person types them."""
    return f"python main.py {shlex.join(argv)}"


def read_plan(path: Path, check: bool = True) -> Plan:
    """Read a sweep's file and check all that can be known before a run starts.

    Args:
        check: whether every point is resolved; not again by each worker.

    Raises:
        UserError: the file cannot be read, has an unknown key, name, option or value, a point of its grid is no run,
            or it would choose by scores of the test set.
    """
    facts = plain_yaml(path)
    if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
        raise UserError(f"{path} is no sweep: expected lines as 'model: er', 'dataset: seq-digits', 'seeds: [0, 1, 2]'")
    where = path.name
    for key in facts:
        if key not in KEYS:
            option = f"--{key.replace('-', '_')}" in base_parser()._option_string_actions
            hint = "" if option else nearest(key, [*KEYS])
            raise UserError(f"{where}: unknown key '{key}'{hint or '; an option of the runs stands below options'}")
    given = _mapping(facts, "options", where)
    options = {name.replace("-", "_"): value for name, value in given.items()}
    if len(options) < len(given):
        raise UserError(f"{where}: options gives one twice, with - and with _: keep one")
    cases = _read_cases(facts, options, where)
    union: Actions = {name: action for case in reversed(cases) for name, action in case.actions.items()}
    for name in options:
        find_option(name, union, f"{where}: options")
    space = read_space(_mapping(facts, "space", where), union, f"{where}: space")
    if both := sorted(options.keys() & space.domains.keys()):
        raise UserError(f"{where}: {', '.join(both)} is among the options and in the space: keep one")
    if "validation" in space.domains:
        raise UserError(f"{where}: space: validation says what is held out and is no choice: give it among the options")
    for case in cases:
        case.searched = [name for name in space.domains if name in case.actions]
        case.absent = sorted((space.domains.keys() | options.keys()) - case.actions.keys())
    metric, scenario = _read_objective(facts, where)
    search = _one_of(facts, "search", SEARCHES, "grid", where)
    plan = Plan(
        name=path.stem,
        facts=facts,
        cases=cases,
        space=space,
        seeds=_read_seeds(facts, where),
        search=search,
        trials=_whole(facts, "trials", 1, None, where) if search != "grid" or "trials" in facts else 0,
        metric=metric,
        scenario=scenario,
        lower=METRICS[metric].better == "lower",
        pruning=_one_of(facts, "pruning", ("median", "none"), "none", where) == "median",
        search_seed=_whole(facts, "search_seed", 0, 0, where),
        slurm=_mapping(facts, "slurm", where),
        held_out=False,
        folder=Path(str(options.get("results_path", "./results")), "sweeps", path.stem),
    )
    _refuse_unfit(plan, where)
    if check:
        _resolve_all(plan, where)
    return plan


def _mapping(facts: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = facts.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where}: {key} holds lines of names and values, as 'lr: 0.1'")
    return value


def _one_of(facts: dict[str, Any], key: str, choices: tuple[str, ...], default: str, where: str) -> str:
    value = facts.get(key, default)
    if value not in choices:
        raise UserError(f"{where}: {key} '{value}': expected one of {', '.join(choices)}")
    return value


def _whole(facts: dict[str, Any], key: str, low: int, default: int | None, where: str) -> int:
    value = facts.get(key, default)
    if value is None:
        raise UserError(f"{where}: {key} is missing: how many {key} each search has")
    if type(value) is not int or value < low:
        raise UserError(f"{where}: {key} '{value}': expected a whole number from {low}")
    return value


def _read_seeds(facts: dict[str, Any], where: str) -> list[int]:
    seeds = facts.get("seeds", [0])
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if not seeds or any(type(seed) is not int or not 0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"{where}: seeds: expected whole numbers from 0, as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds names a seed twice: each counts as a run of its own")
    return seeds


def _read_objective(facts: dict[str, Any], where: str) -> tuple[str, str | None]:
    """Metric and scenario of 'acc' or 'task-il acc'."""
    *scenario, metric = str(facts.get("objective", "acc")).split() or [""]
    if metric not in METRICS or len(scenario) > 1:
        known = f"{nearest(metric, [*METRICS])} (one of {', '.join(METRICS)})"
        raise UserError(f"{where}: objective '{facts.get('objective')}': expected a metric{known}, or 'task-il acc'")
    return metric, scenario[0] if scenario else None


def _read_cases(facts: dict[str, Any], options: dict[str, Any], where: str) -> list[Case]:
    names = {}
    for kind in registry.FOLDERS:
        given = facts.get(kind)
        found = given if isinstance(given, list) else [] if given is None else [given]
        if kind != "backbone" and not found:
            raise UserError(f"{where}: {kind} is missing: give one of {', '.join(registry.names(kind))}")
        for name in found:
            if not isinstance(name, str):
                raise UserError(f"{where}: {kind} '{name}' is no name")
            registry.find(kind, name)
        if len({registry.normalise(name) for name in found}) < len(found):
            raise UserError(f"{where}: {kind} names one twice: keep one")
        if found:
            names[kind] = found
    cases = []
    for chosen in itertools.product(*names.values()):
        named = dict(zip(names, chosen, strict=True))
        actions = options_of([part for kind, name in named.items() for part in (f"--{kind}", name)])
        own = {name: value for name, value in options.items() if name in actions and name not in APART}
        cases.append(Case(named, actions, own))
    return cases


def _refuse_unfit(plan: Plan, where: str) -> None:
    """Keys that do not fit together."""
    facts = plan.facts
    if plan.search == "grid":
        for key in ("trials", "pruning", "search_seed"):
            if facts.get(key) not in (None, "none"):
                raise UserError(f"{where}: {key} has no effect on a grid, which runs every point: drop it")
    elif not plan.space.domains:
        raise UserError(f"{where}: search {plan.search} needs a space: the options to search")
    for case in plan.cases:
        if plan.search != "grid" and not case.searched:
            raise UserError(f"{where}: {case.name} has none of the options of the space: sweep it apart")
    points = [plan.space.size(case.searched) if plan.search == "grid" else plan.trials for case in plan.cases]
    if (n := sum(points) * len(plan.seeds)) > MOST:
        raise UserError(f"{where}: {n:,} runs; a sweep has at most {MOST:,}: give fewer values, or fewer trials")


def _resolve_all(plan: Plan, where: str) -> None:
    """Resolve every point of a grid, and the corners of a space that is searched, as the runs will."""
    held_out = True
    for case in plan.cases:
        if plan.search == "grid":
            corners = plan.space.grid(case.searched)
        else:
            ends = {name: plan.space.domains[name].samples() for name in case.searched}
            corners = [{name: values[end] for name, values in ends.items()} for end in (0, -1)]
        for values in corners:
            argv = case.argv(values, plan.seeds[0])
            try:
                args = configuration.resolve([*argv, "--resume"]).args
            except UserError as e:
                raise UserError(f"{where}: {shlex.join(argv)}: {e}") from None
            held_out &= bool(args.validation)
    plan.held_out = held_out
    if not held_out and plan.chooses:
        what = f"search {plan.search}" if plan.search != "grid" else "an objective"
        raise UserError(
            f"{where}: {what} chooses by scores, and those of the test set are not for choosing: add 'validation: 10' "
            "to the options, so that they come from training data held out"
        )
