"""Which runs may stand in one ranking: runs become entries, entries groups, and what is left out has its reason.

An entry is one method with one set of options; its runs differ in their seeds and class orders alone. A group holds
entries that were scored on the same data, cut the same way, by the same program; nothing is compared across groups.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.utils.args import NEUTRAL, SEEDS
from palimpsest.utils.run.layers import distinct
from palimpsest.utils.study.records import Record

NO_LEAK = "no leak found"
# Options that say what a run is measured on: runs that differ in one of them are not in one ranking.
SPLIT = ("validation", "holdout", "label_perc", "noise_rate", "noise_type", "init_cls", "increment",
         "custom_task_order", "start_from", "stop_after")  # fmt: skip
# What does not tell two entries apart: it is looked at elsewhere, or changes no number.
NOT_OPTIONS = {*SEEDS, *SPLIT, *NEUTRAL, "permute_classes", "custom_class_order", "model", "dataset", "debug_mode"}
NOT_OPTIONS |= {"device", "data_device", "exp_name", "load_best_args", "model_config", "config", "loadcheck"}
NOT_OPTIONS |= {"inference_only", "n_tasks"}
IDENTITY = ("backbone_file", "checkpoint")  # of the environment: entries that differ in them are told apart
# Conditions that two streams of one ranking over streams must share.
COMMON = ("scenario", "score", "code", "order", "validation", "holdout", "chosen", "leaks")
VERSIONS = ("python", "torch", "torchvision", "numpy", "scikit-learn", "scipy", "device", "threads")
# Cost of a run -> the keys of run.json that are summed for it: those of the first group that is there as a whole.
COSTS = {
    "seconds": (("seconds_training", "seconds_evaluating"), ("seconds",)),
    "FLOPs": (("flops_training",),),
    "bytes": (("bytes_parameters", "bytes_buffer", "bytes_teachers", "bytes_statistics"),
              ("network_bytes", "method_bytes")),
    "peak memory": (("peak_memory_bytes",),),
}  # fmt: skip
NEEDED = ("seconds", "FLOPs", "bytes")  # costs without which a run has no row
Key = tuple[str, str]  # class order, seeds


@dataclass
class Entry:
    """Runs that differ in nothing but their seeds and class orders.

    Attributes:
        name: the method, and the options in which its entries differ.
        runs, values: by (class order, seeds): the run, and its value of the metric.
    """

    name: str
    model: str
    runs: dict[Key, Record] = field(default_factory=dict)
    values: dict[Key, float] = field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        """Declared exceptions and leaks, which every table shows."""
        texts = [text for run in self.runs.values() for text in noted(run, "marks")]
        texts += [f"leak: {text}" for run in self.runs.values() for text in noted(run, "leaks")]
        return list(dict.fromkeys(texts))


@dataclass
class Group:
    """Entries that may be compared.

    Attributes:
        conditions: what all of them share, name -> text, see `conditions`.
        apart: the conditions in which other groups of the same stream differ from this one.
    """

    conditions: dict[str, str]
    entries: list[Entry] = field(default_factory=list)
    apart: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return ", ".join([self.conditions["stream"], self.conditions["scenario"], *self.apart.values()])

    @property
    def runs(self) -> list[Record]:
        return [run for entry in self.entries for run in entry.runs.values()]


@dataclass(frozen=True)
class LeftOut:
    """A run without a place in any table."""

    run: Record
    reason: str


def noted(run: Record, name: str) -> list[str]:
    """A fact that is a list of texts, empty in runs that do not have it."""
    value = run.facts.get(name) or []
    return [str(text) for text in (value if isinstance(value, list) else [value])]


def cost(run: Record, name: str) -> float | None:
    """A cost of `COSTS`, None where the run does not have it."""
    for keys in COSTS[name]:
        values = [run.costs.get(key) for key in keys]
        if all(isinstance(value, int | float) for value in values):
            return float(sum(values))
    return None


def refusal(run: Record, scenario: str, metric: str) -> str:
    """Why a run has no row, '' for one that has."""
    if run.state == "failed":
        return f"failed: {run.reason}"
    if run.state == "unfinished":
        return "unfinished: stopped, or still running"
    if run.options.get("debug_mode"):
        return "a run of --debug_mode"
    if run.facts.get("trial"):
        return "a trial of a search, not a result"
    scores = run.metrics.get(scenario)
    if not isinstance(scores, dict) or scenario not in run.matrices:
        return f"no {scenario} score"
    if not _is_matrix(run.matrices[scenario]):
        return "its score matrix cannot be read"
    if not isinstance(scores.get(metric), int | float):
        return f"{metric} is not defined"
    notes = run.facts.get("notes") or {}
    why = [f"{name} ({notes[name]})" if name in notes else name for name in NEEDED if cost(run, name) is None]
    why += [] if run.environment.get("commit") else ["commit"]
    return f"no row without its cost; not recorded: {', '.join(why)}" if why else ""


def _is_matrix(value: Any) -> bool:
    rows = value if isinstance(value, list) and value and all(isinstance(row, list) for row in value) else [[""]]
    numbers = all(number is None or isinstance(number, int | float) for row in rows for number in row)
    return numbers and len({len(row) for row in rows}) == 1


def conditions(run: Record, scenario: str) -> dict[str, str]:
    """What a run was measured on and by: name -> text; runs that differ in one of them are not in one ranking."""
    options, facts = run.options, run.environment
    out = {"stream": run.dataset, "scenario": scenario, "score": str(run.facts.get("score", "accuracy"))}
    out |= {"tasks": f"{run.facts.get('n_tasks')} tasks", "data": f"data {str(facts.get('data', 'unknown'))[:8]}"}
    out |= {"stream file": str(facts.get("dataset_file", "stream file unknown")), "code": f"code {facts.get('code')}"}
    out["order"] = "class orders of the seeds" if options.get("permute_classes") else "the stream's class order"
    if options.get("custom_class_order"):
        out["order"] = "given class orders"
    for name in SPLIT:
        value = options.get(name)
        if name != "noise_type" or options.get("noise_rate"):
            out[name] = f"{name} {value}" if value not in (None, 0, 0.0, False) else f"no {name}"
    if options.get("validation"):
        out["validation"] = f"scores on {shown(options['validation'])} % validation data"
    on_test = any(re.search(r"\btest\b", text) for text in noted(run, "chosen_on"))
    out["chosen"] = "options chosen on test data" if on_test else "options not chosen on test data"
    out["leaks"] = "runs with a leak" if noted(run, "leaks") else NO_LEAK
    return out


def class_order(run: Record) -> str:
    """What names a run's class order: the order itself, the seed it is a function of, or nothing."""
    if given := run.options.get("custom_class_order"):
        return ",".join(map(str, given)) if isinstance(given, list) else str(given)
    return f"order of seed {_seed(run, 'seed_order')}" if run.options.get("permute_classes") else ""


def key_of(run: Record) -> Key:
    """(class order, seeds): two runs of different methods with the same key make a pair."""
    own = _seed(run, "seed_init"), _seed(run, "seed_data")
    return class_order(run), str(run.seed) if set(own) == {run.seed} else f"{run.seed} ({own[0]}, {own[1]})"


def _seed(run: Record, name: str) -> Any:
    value = run.options.get(name)
    return run.seed if value is None else value


def divide(runs: Sequence[Record], metric: str, scenario: str = "") -> tuple[list[Group], list[LeftOut]]:
    """Groups of entries with a value of the metric, and what is left out.

    Args:
        scenario: the scores that are compared; '' for those of each run's own setting.
    """
    groups: dict[str, tuple[Group, list[Record]]] = {}
    left = []
    for run in runs:
        if reason := refusal(run, scenario or run.setting, metric):
            left.append(LeftOut(run, reason))
            continue
        found = conditions(run, scenario or run.setting)
        groups.setdefault(json.dumps(found), (Group(found), []))[1].append(run)
    _tell_apart([group for group, _ in groups.values()])
    kept = []
    for group, mine in groups.values():
        current, older = _same_files(mine)
        left += older
        kept.append((group, current))
    names = _naming([mine for _, mine in kept])
    for group, mine in kept:
        entries: dict[str, Entry] = {}
        for run in sorted(mine, key=_moment):
            entry = entries.setdefault(name := names(run), Entry(name, run.model))
            if before := entry.runs.pop(key_of(run), None):
                left.append(LeftOut(before, f"ran once more, {run.folder.name} counts"))
            entry.runs[key_of(run)] = run
        for entry in entries.values():
            entry.runs = dict(sorted(entry.runs.items(), key=lambda item: (item[0][0], item[1].seed, item[0][1])))
            group_scenario = group.conditions["scenario"]
            entry.values = {key: run.metrics[group_scenario][metric] for key, run in entry.runs.items()}
        group.entries = list(entries.values())
    return [group for group, _ in kept], left


def _tell_apart(groups: Sequence[Group]) -> None:
    """Note in each group in what it differs from the others of its stream and scenario."""
    for group in groups:
        for other in groups:
            if all(group.conditions[name] == other.conditions[name] for name in ("stream", "scenario")):
                for name, text in group.conditions.items():
                    if other.conditions.get(name) != text:
                        group.apart[name] = text
        if "validation" in group.conditions and group.conditions["validation"].startswith("scores on"):
            group.apart["validation"] = group.conditions["validation"]  # never without a word
        for name, usual in (("chosen", "options not chosen on test data"), ("leaks", NO_LEAK)):
            if group.conditions[name] != usual:
                group.apart[name] = group.conditions[name]


def _same_files(runs: Iterable[Record]) -> tuple[list[Record], list[LeftOut]]:
    """Of each method the runs of its file as it was for the latest of them; the others with their reason."""
    current: list[Record] = []
    older: list[LeftOut] = []
    by_model: dict[str, list[Record]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run)
    for mine in by_model.values():
        newest = max(mine, key=_moment).environment.get("model_file")
        for run in mine:
            if (own := run.environment.get("model_file")) == newest:
                current.append(run)
            else:
                older.append(LeftOut(run, f"other code: {own}, the latest run has {newest}"))
    return current, older


def _naming(groups: Sequence[Sequence[Record]]) -> Callable[[Record], str]:
    """What names a run's entry: the method, and the options in which its runs differ within any of the groups, so that
    an entry has one name on all streams.
    """
    differing: dict[str, dict[str, None]] = {}
    for runs in groups:
        found: dict[str, list[dict[str, str]]] = {}
        for run in runs:
            found.setdefault(run.model, []).append({name: json.dumps(v) for name, v in choices(run).items()})
        for model, own in found.items():
            names = dict.fromkeys(name for options in own for name in options)  # some runs may have others
            several = [name for name in names if len({options.get(name, "null") for options in own}) > 1]
            differing.setdefault(model, {}).update(dict.fromkeys(several))
    stems = [Path(model).stem for model in differing]

    def name(run: Record) -> str:
        own, stem = choices(run), Path(run.model).stem
        told = [f"{n} {shown(own[n])}" for n in differing[run.model] if own.get(n) is not None]
        return ", ".join([stem if stems.count(stem) == 1 else run.model, *told])

    return name


def choices(run: Record) -> dict[str, Any]:
    """What makes a run's entry, besides its method: the options that may move its numbers, files, a start."""
    own = {name: value for name, value in sorted(distinct(run.options).items()) if name not in NOT_OPTIONS}
    return own | {name: run.environment[name] for name in IDENTITY if name in run.environment}


def shown(value: Any) -> str:
    """An option's value in words."""
    short = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())  # a line break would split a row
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _moment(run: Record) -> tuple[str, str]:
    """Later runs have later ones."""
    return str(run.costs.get("ended") or ""), run.folder.name


def differing_versions(runs: Sequence[Record]) -> str:
    """A line where the runs were not all made under the same versions and on the same device, '' where they were."""
    found = {name: dict.fromkeys(str(run.environment.get(name)) for run in runs) for name in VERSIONS}
    told = [f"{name} {' or '.join(sorted(values))}" for name, values in found.items() if len(values) > 1]
    return f"The runs differ in versions or device: {', '.join(told)}." if told else ""
