"""What is said of some runs side by side: groups with their tables, ranks over streams, what is left out."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import numpy as np

from palimpsest.utils.args import NEUTRAL, SEEDS, base_parser
from palimpsest.utils.errors import UserError
from palimpsest.utils.log.page import count
from palimpsest.utils.metrics import FEWEST, METRICS
from palimpsest.utils.study.comparison import tables
from palimpsest.utils.study.comparison.groups import (
    COMMON,
    Entry,
    Group,
    LeftOut,
    choices,
    differing_versions,
    divide,
    noted,
    shown,
)
from palimpsest.utils.study.comparison.statistics import (
    FEW_ORDERS,
    Pair,
    Ranks,
    TwoFactors,
    compare_pairs,
    rank_entries,
    two_factors,
)
from palimpsest.utils.study.comparison.tables import Row, Table
from palimpsest.utils.study.records import Record

CONTROLS = {"sgd": "fine-tuning", "randumb": "a closed-form classifier"}  # rows of every class-IL table


@dataclass
class Block:
    """What is said of one group.

    Attributes:
        labels: name of an entry -> the name with the numbers of its marks, as [1].
        tables: scores, then pairs and two factors where there are some.
        notes: what a reader of all of them must know.
    """

    group: Group
    rows: list[Row]
    pairs: list[Pair]
    labels: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class RankBlock:
    """Ranks over the streams of groups that share what a comparison needs; `labels` as of `Block`."""

    title: str
    scenario: str
    ranks: Ranks
    labels: dict[str, str]
    table: Table


@dataclass
class Comparison:
    """All that is written: a block per group, ranks over streams, runs without a row, and what concerns all of them."""

    metric: str
    blocks: list[Block]
    ranks: list[RankBlock]
    left: list[LeftOut]
    notes: list[str]


def compare(runs: Sequence[Record], metric: str = "acc", scenario: str = "", margin: float = nan) -> Comparison:
    """Everything that can be said of some runs.

    Args:
        metric: a name of `METRICS`.
        scenario: '' for that of each stream.
        margin: points within which two entries are called the same; nan for no such statement.

    Raises:
        UserError: none of the runs has a row.
    """
    groups, left = divide(runs, metric, scenario)
    if not groups:
        raise UserError(f"nothing to compare: {_reasons(left)}")
    marks = list(dict.fromkeys(mark for group in groups for entry in group.entries for mark in entry.marks))
    blocks = [_block(group, metric, margin, marks, left) for group in groups]
    notes = [_split_note(mine) for mine in _by_stream(groups) if len(mine) > 1]
    ranks, more = _ranks(blocks, metric, marks)
    return Comparison(metric, blocks, ranks, left, notes + more)


def _block(group: Group, metric: str, margin: float, marks: list[str], left: Sequence[LeftOut]) -> Block:
    score, sign = group.conditions["score"], -1 if METRICS[metric].better == "higher" else 1
    rows = [tables.row_of(entry, metric, score) for entry in group.entries]
    rows.sort(key=lambda row: (sign * row.spread.mean, row.entry.name))
    group.entries = [row.entry for row in rows]
    pairs = compare_pairs({entry.name: entry.values for entry in group.entries}, margin)
    labels = {entry.name: " ".join([entry.name, *_numbers(entry, marks)]) for entry in group.entries}
    block = Block(group, rows, pairs, labels, [tables.score_table(group, metric, rows, labels)])
    if pairs:
        block.tables.append(tables.pair_table(group, pairs, labels))
    factors = [(labels[e.name], f) for e in group.entries if (f := _factors(e.values)) is not None]
    if factors:
        block.tables.append(tables.factor_table(group, factors, FEW_ORDERS))
    for table in block.tables:
        table.notes += _footnotes(group.entries, marks)
    block.notes = [note for note in (_option_note(group), _chosen_note(group), _order_note(group, bool(factors)),
                                     *_control_notes(group, left), differing_versions(group.runs)) if note]  # fmt: skip
    return block


def _numbers(entry: Entry, marks: list[str]) -> list[str]:
    return [f"[{marks.index(mark) + 1}]" for mark in entry.marks]


def _footnotes(entries: Sequence[Entry], marks: list[str]) -> list[str]:
    used = {mark for entry in entries for mark in entry.marks}
    return [f"[{k + 1}] {mark}." for k, mark in enumerate(marks) if mark in used]


def _factors(values: dict) -> TwoFactors | None:
    """Of a crossed layout with two orders and two seeds at least; None of any other."""
    orders, seeds = (list(dict.fromkeys(key[k] for key in values)) for k in (0, 1))
    if len(orders) < 2 or len(seeds) < 2 or len(values) < len(orders) * len(seeds):
        return None
    return two_factors(np.array([[values[order, seed] for seed in seeds] for order in orders]))


def _option_note(group: Group) -> str:
    """The options of all methods in which the entries differ, where their names do not tell: so many epochs, ..."""
    own = {entry.name: choices(next(iter(entry.runs.values()))) for entry in group.entries}
    told = []
    for option in next(iter(own.values())):
        if any(option not in other for other in own.values()):
            continue
        entries: dict[str, list[str]] = {}
        for name, values in own.items():
            entries.setdefault(shown(values[option]), []).append(name)
        if len(entries) > 1 and not all(f", {option} " in name for name in own):
            parts = [f"{value} ({'; '.join(names)})" for value, names in entries.items()]
            told.append(f"{option} {', '.join(parts)}")
    return f"The methods ran with different options: {'. '.join(told)}." if told else ""


def _chosen_note(group: Group) -> str:
    """What was seen to choose the options, where it is not the same for all entries."""
    found: dict[str, dict[str, None]] = {}
    for entry in group.entries:
        for run in entry.runs.values():
            found.setdefault("; ".join(noted(run, "chosen_on")) or "unknown", {})[entry.name] = None
    told = [f"{what} ({'; '.join(names)})" for what, names in found.items()]
    return f"What the options were chosen on: {', '.join(told)}." if len(found) > 1 else ""


def _order_note(group: Group, crossed: bool) -> str:
    """What the spread does not cover, in settings whose classes have an order."""
    if crossed or group.conditions["scenario"] not in ("class-il", "task-il"):
        return ""
    orders = {key[0] for entry in group.entries for key in entry.values}
    if len(orders) == 1:
        return "One class order: spread, intervals and tests are over seeds and say nothing of other orders " \
               "(--permute_classes draws one for each seed)."  # fmt: skip
    few = f"; fewer than {FEW_ORDERS} orders underestimate it" if len(orders) < FEW_ORDERS else ""
    return f"Class order and seed are not crossed: the spread is that of both{few} (--seed_order sets them apart)."


def _control_notes(group: Group, left: Sequence[LeftOut]) -> Iterator[str]:
    """The controls of a class-IL table, or the command that makes one that is missing."""
    if group.conditions["scenario"] != "class-il":
        return
    there = {Path(entry.model).stem for entry in group.entries}
    if found := [f"{name} ({what})" for name, what in CONTROLS.items() if name in there]:
        yield f"Controls: {', '.join(found)}."
    for name in CONTROLS:
        if name not in there:
            stream = group.conditions["stream"]
            why = dict.fromkeys(i.reason for i in left if Path(i.run.model).stem == name and i.run.dataset == stream)
            told = f" ({'; '.join(why)})" if why else ""
            yield f"The control {name} ({CONTROLS[name]}) is missing{told}: {_command_for(name, group)}"


def _command_for(model: str, group: Group) -> str:
    """What makes a run of a control under the conditions of a group: options of the runner that somebody chose and all
    runs share.
    """
    runs = group.runs
    general = {action.dest for action in base_parser()._actions} - {*SEEDS, "seeds", "model", "dataset"}
    general -= {*NEUTRAL} - {"results_path"}
    said = ["python main.py", f"--model {model}", f"--dataset {group.conditions['stream']}"]
    for name, value in sorted(runs[0].options.items()):
        chosen = all((run.facts.get("origins") or {}).get(name) in ("command line", "config file") for run in runs)
        shared = all(run.options.get(name) == value for run in runs)
        if name in general and chosen and shared and value not in (None, False, []):
            parts = value if isinstance(value, list) else [value]
            text = (
                ",".join(map(str, parts)) if name.startswith("custom") else " ".join(map(shlex.quote, map(str, parts)))
            )
            said.append(f"--{name}" if value is True else f"--{name} {text}")
    seeds = sorted({run.seed for run in runs})
    return " ".join([*said, "--seeds", *map(str, seeds)])


def _by_stream(groups: Sequence[Group]) -> list[list[Group]]:
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.conditions["stream"], group.conditions["scenario"]), []).append(group)
    return list(found.values())


def _split_note(groups: Sequence[Group]) -> str:
    """Why the runs of one stream are not in one ranking."""
    first = groups[0].conditions
    names = dict.fromkeys(name for group in groups for name in group.apart)
    told = [" or ".join(dict.fromkeys(str(g.conditions.get(name, "none")) for g in groups)) for name in names]
    return f"{first['stream']}, {first['scenario']}: {len(groups)} rankings that are not compared, for they differ: " \
           f"{'; '.join(told)}."  # fmt: skip


def _ranks(blocks: Sequence[Block], metric: str, marks: list[str]) -> tuple[list[RankBlock], list[str]]:
    """Ranks over streams, and why there are none where one could expect them."""
    ranks, notes = [], []
    for scenario in dict.fromkeys(block.group.conditions["scenario"] for block in blocks):
        mine = [block for block in blocks if block.group.conditions["scenario"] == scenario]
        if len({block.group.conditions["stream"] for block in mine}) < 2:
            continue
        together: dict[tuple, list[Block]] = {}
        for block in mine:
            together.setdefault(tuple(block.group.conditions[name] for name in COMMON), []).append(block)
        differing = [name for k, name in enumerate(COMMON) if len({key[k] for key in together}) > 1]
        for key, several in together.items():
            told = [text for name, text in zip(COMMON, key, strict=True) if name in differing]
            streams = [block.group.conditions["stream"] for block in several]
            title = ", ".join([f"Ranks over {count(len(streams), 'stream')}", scenario, *told])
            if len(streams) < 2:
                why = f"the streams differ in {' and '.join(differing)}"
            elif len(set(streams)) < len(streams):
                why = "a stream has more than one ranking"
            elif (block := _ranked(title, scenario, several, metric, marks)) is None:
                why = f"no two methods have {FEWEST} runs on each"
            else:
                ranks.append(block)
                continue
            notes.append(f"No ranks over streams, {', '.join([scenario, *told])}: {why}.")
    return ranks, list(dict.fromkeys(notes))


def _ranked(title: str, scenario: str, blocks: Sequence[Block], metric: str, marks: list[str]) -> RankBlock | None:
    """Of the entries that all streams have; None of fewer than two."""
    values = {
        block.group.conditions["stream"]: {
            row.entry.name: row.spread.mean for row in block.rows if row.spread.n >= FEWEST
        }
        for block in blocks
    }
    common = [name for name in next(iter(values.values())) if all(name in found for found in values.values())]
    if len(common) < 2:
        return None
    means = {name: {stream: found[name] for stream, found in values.items()} for name in common}
    ranks = rank_entries({name: list(found.values()) for name, found in means.items()}, METRICS[metric].better)
    entries = [entry for block in blocks for entry in block.group.entries]
    labels = {name: label for block in blocks for name, label in block.labels.items()}
    table = tables.rank_table(title, ranks, means, labels)
    if others := [name for name in dict.fromkeys(entry.name for entry in entries) if name not in common]:
        table.notes.append(f"Not ranked, since they have not {FEWEST} runs on every stream: {'; '.join(others)}.")
    table.notes += _footnotes([entry for entry in entries if entry.name in common], marks)
    return RankBlock(title, scenario, ranks, labels, table)


def _reasons(left: Sequence[LeftOut]) -> str:
    counted: dict[str, int] = {}
    for item in left:
        counted[item.reason] = counted.get(item.reason, 0) + 1
    shown = [f"{count(n, 'run')}: {reason}" for reason, n in sorted(counted.items(), key=lambda item: -item[1])]
    return "; ".join(shown[:3]) + (f"; {len(shown) - 3} more reasons" if len(shown) > 3 else "")
