"""Tables of a comparison: what stands in them, as text for readers and as numbers for CSV."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from palimpsest.utils import metrics
from palimpsest.utils.log.formats import csv_text
from palimpsest.utils.metrics import FEWEST, plus_minus
from palimpsest.utils.study.comparison.groups import Entry, Group, LeftOut, cost
from palimpsest.utils.study.comparison.statistics import (
    FEWEST_BOOTSTRAP,
    LEVEL,
    MOST_EXACT,
    Pair,
    Ranks,
    Spread,
    TwoFactors,
    summarise,
)

PAIR = "a - b"  # the first head of a table of pairs
COMMIT = 7  # digits of a commit that are shown


@dataclass
class Table:
    """A table as text.

    Attributes:
        title: what it is about; blocks with one head and several titles can be set as one table.
        head, rows: texts; the first column is a name.
        notes: what a reader must know, one sentence each.
        numbers: whether the columns after the first are numbers, or texts as well.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    numbers: bool = True


@dataclass(frozen=True)
class Row:
    """An entry's line, as numbers."""

    entry: Entry
    spread: Spread
    low: float
    high: float
    cut: bool
    costs: dict[str, float | None]
    commits: list[str]


def row_of(entry: Entry, metric: str, score: str) -> Row:
    """Numbers of an entry; the interval is cut to the values that the metric can have."""
    spread = summarise(list(entry.values.values()))
    (least, most), low, high = metrics.ends(metric, score), spread.low, spread.high
    if cut := low < least or high > most:
        low, high = max(low, least), min(high, most)
    runs = entry.runs.values()
    known = {name: [c for run in runs if (c := cost(run, name)) is not None] for name in ("seconds", "FLOPs", "bytes")}
    means = {name: sum(values) / len(values) if values else None for name, values in known.items()}
    peaks = [c for run in runs if (c := cost(run, "peak memory")) is not None]
    commits = [_commit(str(run.environment["commit"])) for run in runs]
    return Row(
        entry, spread, low, high, cut, means | {"peak memory": max(peaks, default=None)}, [*dict.fromkeys(commits)]
    )


def score_table(group: Group, metric: str, rows: Sequence[Row], labels: Mapping[str, str]) -> Table:
    """One row per entry, in their order; labels: name of an entry -> what is shown of it."""
    bootstrap = any(row.spread.bootstrap for row in rows)
    head = ["method", "n", f"{metric}: mean ± sd", "95 % interval", *(["BCa interval"] if bootstrap else [])]
    head += ["seconds", "FLOPs", "bytes", "peak memory", "commit"]
    lines = []
    for row in rows:
        few = row.spread.n < FEWEST
        values = ", ".join(f"{value:.2f}" for value in row.entry.values.values())
        line = [labels[row.entry.name], str(row.spread.n)]
        line += [values if few else plus_minus(row.spread.mean, row.spread.sd)]
        line += [f"n < {FEWEST}" if few else ends(row.low, row.high)]
        if bootstrap:
            line.append(ends(*row.spread.bootstrap) if row.spread.bootstrap else "-")
        line += [quantity(row.costs["seconds"], "s"), quantity(row.costs["FLOPs"], "")]
        line += [quantity(row.costs["bytes"], "B"), quantity(row.costs["peak memory"], "B"), ", ".join(row.commits)]
        lines.append(line)
    return Table(group.title, head, lines, _score_notes(group, metric, rows))


def _score_notes(group: Group, metric: str, rows: Sequence[Row]) -> list[str]:
    notes = []
    if any(row.spread.n < FEWEST for row in rows):
        notes.append(f"n < {FEWEST}: too few runs for a spread or an interval, the values only.")
    if cut := [row.entry.name for row in rows if row.cut]:
        low, high = metrics.ends(metric, group.conditions["score"])
        notes.append(f"Interval cut to what {metric} can be, {low:g} to {high:g}: {', '.join(cut)}.")
    if any(commit.endswith("+") for row in rows for commit in row.commits):
        notes.append("+ behind a commit: the tree had changes.")
    if resumed := [row.entry.name for row in rows if any(_partial(run) for run in row.entry.runs.values())]:
        notes.append(f"Resumed runs, whose seconds are those since then alone: {', '.join(resumed)}.")
    return notes


def _partial(run) -> bool:
    return bool(run.costs.get("from_iteration")) and "seconds_training" not in run.costs


def pair_table(group: Group, pairs: Sequence[Pair], labels: Mapping[str, str]) -> Table:
    """One row per pair of entries."""
    margin = next((pair.margin for pair in pairs if not math.isnan(pair.margin)), None)
    head = [PAIR, "pairs", "difference ± sd", "95 % interval", "d_z", "p (t)", "Holm (t)"]
    head += ["p (Wilcoxon)", "Holm (Wilcoxon)"]
    head += [] if margin is None else [f"same within {margin:g}"]
    rows = []
    for pair in pairs:
        spread, few = pair.spread, pair.spread.n < FEWEST
        row = [
            f"{labels[pair.a]} - {labels[pair.b]}",
            str(spread.n),
            f"{spread.mean:+.2f}" if few else signed(spread.mean, spread.sd),
        ]
        row += [f"n < {FEWEST}" if few else ends(spread.low, spread.high), number(pair.effect)]
        row += map(p_text, (pair.t, pair.t_holm, pair.wilcoxon, pair.wilcoxon_holm))
        if margin is not None:
            row.append(
                "-"
                if math.isnan(pair.same)
                else f"{'yes' if pair.same < LEVEL else 'not shown'}, p {p_text(pair.same)}"
            )
        rows.append(row)
    return Table(group.title, head, rows, _pair_notes(pairs, margin))


def _pair_notes(pairs: Sequence[Pair], margin: float | None) -> list[str]:
    notes = ["Differences over the runs that share stream, class order and seed."]
    if tests := sum(not math.isnan(pair.t) for pair in pairs):
        notes = ["Differences over the runs that share stream, class order and seed; paired t test and Wilcoxon's "
                 f"signed rank test (exact up to {MOST_EXACT} pairs, zeros by Pratt), Holm's correction over the "
                 f"{tests} test{'s' * (tests > 1)} of this table; d_z is mean / sd."]  # fmt: skip
    tested = [pair.spread.n for pair in pairs if not math.isnan(pair.wilcoxon)]
    if tested and 2 / 2 ** min(tested) > LEVEL:
        n = min(tested)
        notes.append(f"With {n} pairs no p value of Wilcoxon's test is below {2 / 2**n:g}.")
    if any(math.isnan(pair.t) and pair.spread.n >= FEWEST for pair in pairs):
        notes.append("-: all differences of the pair are equal, there is no test.")
    if margin is not None:
        notes.append(f"Same within {margin:g}: two one-sided t tests (TOST) at {LEVEL:g}, each pair by itself. 'Not "
                     "shown' is no difference, and a difference that is not found is no sameness.")  # fmt: skip
    if bootstrap := [pair for pair in pairs if pair.spread.bootstrap]:
        told = [f"{p.a} - {p.b} {ends(*p.spread.bootstrap)}" for p in bootstrap]
        notes.append(f"BCa bootstrap intervals (from {FEWEST_BOOTSTRAP} pairs): {'; '.join(told)}.")
    return notes


def factor_table(group: Group, found: Sequence[tuple[str, TwoFactors]], few: int) -> Table:
    """Seeds and class orders as two factors."""
    head = [
        "method",
        "orders",
        "seeds",
        "variance of orders",
        "of seeds",
        "rest",
        "s.e. of independent runs",
        "s.e. of both",
    ]
    rows = []
    for name, f in found:
        variances, errors = [f"{v:.3g}" for v in (f.order, f.seed, f.rest)], [f"{e:.2f}" for e in (f.naive, f.error)]
        rows.append([name, str(f.orders), str(f.seeds), *variances, *errors])
    notes = ["Two-way layout without interaction. The intervals above take runs as independent, which runs of one "
             "class order are not: compare the two standard errors of the mean."]  # fmt: skip
    if any(f.orders < few for _, f in found):
        notes.append(f"Warning: fewer than {few} class orders underestimate the variance of the mean.")
    return Table(group.title, head, rows, notes)


def rank_table(title: str, ranks: Ranks, means: dict[str, dict[str, float]], labels: Mapping[str, str]) -> Table:
    """Mean ranks over streams beside the means they come from (entry -> stream -> mean)."""
    streams = list(next(iter(means.values())))
    rows = [[labels[name], f"{r:.2f}", *(f"{means[name][s]:.2f}" for s in streams)] for name, r in ranks.ranks.items()]
    notes = []
    if not math.isnan(ranks.p):
        notes.append(f"Friedman's test: chi² = {ranks.statistic:.2f}, p {p_text(ranks.p)}. Nemenyi's critical "
                     f"difference of mean ranks at {LEVEL:g}: {ranks.critical:.2f}.")  # fmt: skip
        apart = [f"{a} and {b}" for (a, b), p in ranks.nemenyi.items() if p < LEVEL]
        notes.append(f"Told apart by Nemenyi's test: {'; '.join(apart) or 'none'}.")
    apart = [f"{a} and {b}" for (a, b), p in ranks.wilcoxon.items() if p < LEVEL]
    notes.append(f"Told apart by Wilcoxon's test over streams, Holm-corrected: {'; '.join(apart) or 'none'}.")
    if 2 / 2**ranks.streams > LEVEL:
        notes.append(f"Warning: over {ranks.streams} streams Wilcoxon's test cannot tell any two apart, and Friedman's "
                     "has little power; ranks over so few streams describe, they prove nothing.")  # fmt: skip
    return Table(title, ["method", "mean rank", *streams], rows, notes)


def left_table(left: Sequence[LeftOut]) -> Table:
    """Runs without a row, by method and reason."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for item in left:
        seeds.setdefault((item.run.dataset, item.run.model, item.reason), []).append(str(item.run.seed))
    rows = [[model, stream, ", ".join(mine), reason] for (stream, model, reason), mine in sorted(seeds.items())]
    return Table("left out", ["method", "stream", "seeds", "why"], rows, numbers=False)


# ---- as numbers


def scores_csv(rows: Sequence[tuple[Group, str, Row]], left: Sequence[LeftOut]) -> str:
    """All entries as numbers, and the runs that were left out with their reason."""
    head = ["stream", "scenario", "apart", "method", "metric", "n", "mean", "sd", "low", "high", "cut", "bca_low"]
    head += [
        "bca_high",
        "seconds",
        "flops",
        "bytes",
        "peak_memory_bytes",
        "commit",
        "values",
        "runs",
        "marks",
        "reason",
    ]
    lines: list[list] = [head]
    for group, metric, row in rows:
        s, c = row.spread, row.costs
        few = s.n < FEWEST
        line = [group.conditions["stream"], group.conditions["scenario"], "; ".join(group.apart.values())]
        line += [row.entry.name, metric, s.n, *(["", ""] if few else [s.mean, s.sd])]
        line += [*(["", "", ""] if few else [row.low, row.high, row.cut]), *(s.bootstrap or ("", ""))]
        line += [c["seconds"], c["FLOPs"], c["bytes"], c["peak memory"], " ".join(row.commits)]
        line += [
            " ".join(map(str, row.entry.values.values())),
            " ".join(r.folder.name for r in row.entry.runs.values()),
        ]
        lines.append([*line, "; ".join(row.entry.marks), ""])
    for item in left:
        run = item.run
        start = [run.dataset, run.setting, "", run.model]
        lines.append([*start, *[""] * (len(head) - 7), run.folder.name, "", item.reason])
    return csv_text(lines)


def pairs_csv(pairs: Sequence[tuple[Group, Pair]]) -> str:
    """All pairs as numbers."""
    head = ["stream", "scenario", "apart", "a", "b", "pairs", "mean", "sd", "low", "high", "bca_low", "bca_high", "d_z"]
    head += ["p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm", "margin", "p_same"]
    lines: list[list] = [head]
    for group, p in pairs:
        s = p.spread
        line = [
            group.conditions["stream"],
            group.conditions["scenario"],
            "; ".join(group.apart.values()),
            p.a,
            p.b,
            s.n,
        ]
        numbers = [s.mean, s.sd, s.low, s.high, *(s.bootstrap or (math.nan, math.nan)), p.effect]
        numbers += [p.t, p.t_holm, p.wilcoxon, p.wilcoxon_holm, p.margin, p.same]
        lines.append(line + ["" if math.isnan(value) else value for value in numbers])
    return csv_text(lines)


# ---- cells


def ends(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def signed(mean: float, sd: float) -> str:
    return f"{mean:+.2f} ± {sd:.2f}"


def p_text(p: float) -> str:
    """'.0312' as 0.031, the very small as such, '-' where there is no test."""
    return "-" if math.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.001 else f"{p:.3f}"


def quantity(value: float | None, unit: str) -> str:
    """Three digits with a decimal prefix: '24.1 kB', '1.79 G'; '-' where it was not recorded."""
    if value is None:
        return "-"
    power = min(max(math.floor(math.log10(value) / 3), 0), 6) if value > 0 and unit != "s" else 0
    return f"{value / 1000**power:.3g} {' kMGTPE'[power].strip()}{unit}".strip() if unit != "s" else f"{value:.2f}"


def _commit(text: str) -> str:
    """'abcdef0', 'abcdef0+' with changes in the tree, 'installed 1.0.0'."""
    first, _, more = text.partition(" ")
    return text if first == "installed" else first[:COMMIT] + ("+" if more else "")
