"""Search spaces in the options' own names: which values a search may try, and how they become a command line.

    lr: {log: [0.001, 0.1]}         between both ends, uniform in the logarithm
    alpha: {uniform: [0, 1]}        between both ends
    n_epochs: {int: [1, 5]}         whole numbers, both ends included
    buffer_size: {log_int: [100, 10000]}   whole numbers, uniform in the logarithm
    optim_mom: [0, 0.9]             one of these
A number may be written as 1e-3, which YAML takes for a text.
"""

import argparse
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from palimpsest.utils import registry
from palimpsest.utils.args import NEUTRAL, converted
from palimpsest.utils.errors import UserError
from palimpsest.utils.hints import explain_unknown
from palimpsest.utils.optimise import setting, settings_of
from palimpsest.utils.option_types import boolean
from palimpsest.utils.run import config as configuration

Actions = dict[str, argparse.Action]
RANGES = ("uniform", "log", "int", "log_int")
APART = {"model": "model", "dataset": "dataset", "backbone": "backbone", "seed": "seeds"}  # option -> its own key


@dataclass(frozen=True)
class Choice:
    """One of several values: numbers, yes or no, texts; a list is its text with commas."""

    values: tuple[Any, ...]

    def suggest(self, trial, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def points(self, name: str) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def count(self, name: str) -> int:
        """How many `points` there are."""
        return len(self.values)

    def samples(self) -> tuple[Any, ...]:
        """Values that must be possible for all to be."""
        return self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `whole` ones only, or uniform in the logarithm with `log`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial, name: str) -> float | int:
        draw = trial.suggest_int if self.whole else trial.suggest_float
        return draw(name, self.low, self.high, log=self.log)

    def points(self, name: str) -> range:
        """Every value.

        Raises:
            UserError: there is no end of them.
        """
        if self.whole and not self.log:
            return range(self.low, self.high + 1)
        raise UserError(f"--{name} has no list of values, which a grid needs: list them, or search random or tpe")

    def count(self, name: str) -> int:
        """How many `points` there are.

        Raises:
            UserError: as `points`.
        """
        values = self.points(name)
        return values.stop - values.start  # `len` fails above 2^63

    def samples(self) -> tuple[float, float]:
        """Values that must be possible for all to be."""
        return self.low, self.high

    def __str__(self) -> str:
        kind = "whole numbers " if self.whole else ""
        return f"{kind}{self.low:g} to {self.high:g}{', by the logarithm' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """Option name -> the values it may take."""

    domains: dict[str, Choice | Range]

    def suggest(self, trial, names: Iterable[str] | None = None) -> dict[str, Any]:
        """A value for every option.

        Args:
            trial: an Optuna trial, which keeps what it has suggested before.
            names: the options that the run has; all when None.
        """
        known = self.domains.keys() if names is None else set(names)
        return {name: domain.suggest(trial, name) for name, domain in self.domains.items() if name in known}

    def grid(self, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Every combination of values, the last option changing first; one empty combination of an empty space.

        Raises:
            UserError: an option takes any number between two ends.
        """
        known = self.domains.keys() if names is None else set(names)
        points = {name: domain.points(name) for name, domain in self.domains.items() if name in known}
        return [dict(zip(points, values, strict=True)) for values in itertools.product(*points.values())]

    def size(self, names: Iterable[str]) -> int:
        """How many combinations `grid` has.

        Raises:
            UserError: as `grid`.
        """
        known = set(names)
        return math.prod(domain.count(name) for name, domain in self.domains.items() if name in known)

    def describe(self) -> list[str]:
        """A line for every option."""
        width = max(map(len, self.domains), default=0)
        return [f"{name:<{width}}  {domain}" for name, domain in self.domains.items()]


def read_space(mapping: Any, actions: Actions, where: str = "space") -> Space:
    """A search space as a YAML file gives it, see the top of this file.

    Args:
        mapping: option name -> values; `-` and `_` are the same.
        actions: the options there are, see `options_of`.
        where: what a message calls the place.

    Raises:
        UserError: no such option (the nearest is named), one that no number depends on, or a value that the option
            does not take.
    """
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
        raise UserError(f"{where}: expected lines as 'lr: [0.01, 0.1]' or 'lr: {{log: [0.001, 0.1]}}'")
    domains = {}
    for given, value in mapping.items():
        name = given.replace("-", "_")
        if name in domains:
            raise UserError(f"{where} gives {name} twice, with - and with _: keep one")
        action = find_option(name, actions, where)
        if name in NEUTRAL:
            raise UserError(f"{where}: no number of a run depends on --{name}: give it among the options")
        domain = _read_domain(value, f"{where}: {name}")
        several = action.nargs == "+" and action.type is not setting
        parts = [s.split(",") if several and isinstance(s, str) else s for s in domain.samples()]
        taken = [str(converted(action, part, where)) for part in parts]
        if len(set(taken)) < len(taken):
            raise UserError(f"{where}: {name}: a value is given twice: keep one")
        domains[name] = domain
    return Space(domains)


def find_option(name: str, actions: Actions, where: str) -> argparse.Action:
    """The option of a name.

    Raises:
        UserError: there is none (the nearest is named), or it has a place of its own.
    """
    if name in APART:
        raise UserError(f"{where}: '{name}' is given by the key '{APART[name]}', not here")
    if name not in actions:
        raise UserError(f"{where}: {explain_unknown([f'--{name}'], [f'--{known}' for known in actions])}")
    if actions[name].dest in configuration.NO_FACTS:
        raise UserError(f"{where}: '{name}' is for the command line: drop it")
    return actions[name]


def _read_domain(value: Any, where: str) -> Choice | Range:
    kinds = f"{', '.join(RANGES[:-1])} or {RANGES[-1]}"
    if isinstance(value, dict):
        kind, ends = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in RANGES:
            raise UserError(f"{where}: expected one of {kinds} with two ends, as {{log: [0.001, 0.1]}}")
        return _read_range(kind, ends, where)
    values = value if isinstance(value, list) else [value]
    if not values or any(part is None for part in values):
        raise UserError(f"{where}: a value is missing: list those to try, or give {kinds} with two ends")
    return Choice(tuple(_flat(part, where) for part in values))


def _flat(part: Any, where: str) -> Any:
    """A value as Optuna keeps it."""
    if isinstance(part, list) and all(isinstance(p, int | float | str) for p in part):
        return ",".join(map(str, part))
    if isinstance(part, bool | int | str):
        return part
    if isinstance(part, float) and math.isfinite(part):
        return part
    raise UserError(f"{where}: {str(part)[:100]!r} is no value of an option")


def _read_range(kind: str, ends: Any, where: str) -> Range:
    log, whole = kind.startswith("log"), kind.endswith("int")
    example = f"{{{kind}: [{'1, 100' if whole else '0.001, 0.1'}]}}"
    if not isinstance(ends, list) or len(ends) != 2 or any(isinstance(end, bool) for end in ends):
        raise UserError(f"{where}: {kind} has two ends, as {example}")
    try:
        low, high = (float(end) for end in ends)  # YAML takes 1e-3 for a text
    except (TypeError, ValueError):
        raise UserError(f"{where}: the ends of {kind} are numbers, as {example}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{where}: {kind} goes from a lower to a higher number, as {example}")
    if log and low <= 0:
        raise UserError(f"{where}: {kind} begins above 0, as {example}")
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{where}: the ends of {kind} are whole numbers, as {example}")
    return Range(int(low), int(high), log, True) if whole else Range(low, high, log)


def options_of(argv: list[str]) -> Actions:
    """The options of a run with the method, stream and network that a command line names, by name.

    Raises:
        UserError: a name that does not exist.
    """
    choice = configuration.chosen(argv)
    backbone = choice.backbone
    if choice.dataset and not backbone:
        own = getattr(registry.load("model", choice.model), "DEFAULTS", {}) if choice.model else {}
        backbone = own.get("backbone") or registry.load("dataset", choice.dataset).DEFAULTS.get("backbone")
    found = configuration.build_parser(choice, backbone)._option_string_actions
    unused = getattr(registry.load("model", choice.model), "UNUSED", ()) if choice.model else ()
    named = {option[2:]: action for option, action in found.items() if option.startswith("--")}
    return {name: a for name, a in named.items() if a.const is not False and a.dest not in unused}


def as_argv(values: dict[str, Any], actions: Actions) -> list[str]:
    """Options as a command line gives them; what is None is not given.

    Raises:
        UserError: yes or no for an option that is neither.
    """
    out = []
    for name, value in values.items():
        action = actions[name]
        if value is None or (action.nargs == 0 and not value):
            continue
        if action.nargs == 0:
            out.append(f"--{name}")
            continue
        if isinstance(value, bool) and action.type is not boolean:
            raise UserError(f"{name}: expected no yes or no; YAML takes off and no for that: quote the word")
        if isinstance(value, dict):
            value = settings_of(value)
        parts = value if isinstance(value, list) else [value]
        texts = [str(int(part)) if isinstance(part, bool) else str(part) for part in parts]
        if action.nargs in (None, "?"):
            texts = [",".join(texts)]
        out += [f"--{name}={texts[0]}"] if texts[0].startswith("-") else [f"--{name}", *texts]
    return out
