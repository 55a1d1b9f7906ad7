"""Methods side by side: one HTML page from the mean_accs.csv tables below some folders.

    python -m utils.log.compare results                              everything below results/
    python -m utils.log.compare results/class-il/seq-digits --out digits.html

Runs that differ in their seed alone are one entry, with mean and standard deviation over the seeds (of a seed that ran
twice the later run counts, and one run has no deviation); where options, files of method, stream or network, or data
differ, the entry's name says which. Runs of --debug_mode are left out.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from palimpsest.utils.args import NEUTRAL
from palimpsest.utils.atomic import write_text
from palimpsest.utils.errors import UserError
from palimpsest.utils.log import plots
from palimpsest.utils.log.page import Picture, count, render
from palimpsest.utils.metrics import METRICS, plus_minus, spread

# Measure -> column of mean_accs.csv, '' for the last of task1..taskT.
MEASURES = {"final accuracy": ""}
MEASURES |= {METRICS[name].column.replace("_", " "): METRICS[name].column for name in ("forgetting", "bwt", "la")}
NOT_OPTIONS = {"run_id", "seed", "leaks", "marks", "exp_name", "device", "versions", *NEUTRAL} | {
    m.column for m in METRICS.values()
}
SCORE = re.compile(r"task\d+")
Row = dict[str, str]
Spread = tuple[float, float, int]  # mean, standard deviation (nan of one run), runs


def read_tables(folders: Sequence[str]) -> dict[tuple[str, str], list[tuple[str, Row]]]:
    """(scenario, dataset) -> (method, row) for every mean_accs.csv in or below the folders.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    found: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    paths = {path.resolve() for folder in folders for path in Path(folder).rglob("mean_accs.csv")}
    for path in sorted(paths):
        scenario, dataset, method = path.parts[-4:-1]
        try:
            with open(path, newline="", encoding="utf-8") as f:
                rows = list(csv.DictReader(f, strict=True))
        except (OSError, csv.Error, UnicodeDecodeError) as e:
            raise UserError(f"{path} cannot be read: {e}") from None
        mine = [(method, row) for row in rows if row.get("debug_mode") != "True"]
        found.setdefault((scenario, dataset), []).extend(mine)
    if not any(found.values()):
        raise UserError(f"no mean_accs.csv with a finished run in or below {', '.join(folders)}")
    return found


def entries(rows: Sequence[tuple[str, Row]]) -> dict[str, list[Row]]:
    """Name of an entry -> its rows, of each seed the last; the name has the options in which a method's rows differ."""
    out: dict[str, dict[str | None, Row]] = {}
    for method in dict.fromkeys(method for method, _ in rows):
        mine = [row for other, row in rows if other == method]
        names = dict.fromkeys(name for row in mine for name in row)  # tables of several folders have others each
        options = [name for name in names if name not in NOT_OPTIONS and not SCORE.fullmatch(name)]
        differing = [name for name in options if len({row.get(name) or "" for row in mine}) > 1]
        for row in mine:
            told = [f"{name} {row[name]}" for name in differing if row.get(name)]
            out.setdefault(", ".join([method, *told]), {})[row.get("seed")] = row
    return {name + flags(by_seed.values()): list(by_seed.values()) for name, by_seed in out.items()}


def flags(rows: Iterable[Row]) -> str:
    """What must stand beside an entry's name: the exceptions it declares, and that a leak was found in one of its runs;
    '' where there is nothing.
    """
    rows = list(rows)
    marks = dict.fromkeys(mark for row in rows for mark in (row.get("marks") or "").split("; ") if mark)
    leak = dict.fromkeys(text.split(":")[0] for row in rows for text in (row.get("leaks") or "").split("; ") if text)
    told = [*marks, *(f"LEAK: {kind}" for kind in leak)]
    return f" [{'; '.join(told)}]" if told else ""


def measured(rows: Sequence[Row]) -> dict[str, Spread]:
    """Mean, sample standard deviation and number of runs of every measure that is defined."""
    out = {}
    for measure, column in MEASURES.items():
        texts = [row.get(column or _last_task(row)) for row in rows]
        try:
            known = [float(text) for text in texts if text]
        except ValueError as e:
            raise UserError(f"{measure} in a mean_accs.csv is no number: {e}") from None
        if known:
            mean, deviation, _, n = spread(known)
            out[measure] = (mean, deviation, n)
    return out


def write_comparison(tables: dict[tuple[str, str], list[tuple[str, Row]]], path: Path) -> None:
    """Write the page: per stream and scenario the bars and a table, best final accuracy first."""
    streams = []
    for (scenario, dataset), rows in tables.items():
        found = {name: measured(mine) for name, mine in entries(rows).items()}
        found = {name: values for name, values in found.items() if "final accuracy" in values}
        found = dict(sorted(found.items(), key=lambda item: -item[1]["final accuracy"][0]))
        if found:
            head = ["method", "runs", *MEASURES]
            streams.append((f"{dataset}, {scenario}", _bars(found), head, _numbers(found), _versions(rows)))
    head = f"{count(sum(map(len, tables.values())), 'row')} of {count(len(tables), 'table')}"
    text = render("comparison.html", title="Comparison of methods", headline=head, refresh=0, streams=streams)
    write_text(path, text)


def _bars(found: dict[str, dict[str, Spread]]) -> list[Picture]:
    pictures = []
    for measure, unit in (("final accuracy", "%"), ("forgetting", "points")):
        bars = {name: values[measure][:2] for name, values in found.items() if measure in values}
        if bars:
            title = f"{measure.capitalize()}: mean and standard deviation over runs"
            figure = plots.comparison_bars(bars, f"{measure} ({unit})", title, share=unit == "%")
            better = "Longer is better." if measure == "final accuracy" else "Shorter is better."
            pictures.append(Picture(measure, figure, f"{better} A whisker is one standard deviation over seeds."))
    return pictures


def _numbers(found: dict[str, dict[str, Spread]]) -> list[list]:
    rows = []
    for name, values in found.items():
        cells = [plus_minus(*values[m][:2]) if m in values else "-" for m in MEASURES]
        rows.append([name, values["final accuracy"][2], *cells])
    return rows


def _versions(rows: Sequence[tuple[str, Row]]) -> str:
    """A line where the runs were not all made under the same versions and on the same device."""
    found = {row.get("versions") or "not recorded" for _, row in rows}
    if len(found) == 1:
        return ""
    parts = [dict.fromkeys(versions.split(", ")) for versions in sorted(found)]
    differing = [", ".join(p for p in mine if not all(p in other for other in parts)) for mine in parts]
    said = " | ".join(text or "the same without more" for text in differing)
    return f"The runs differ in versions or device: {said}."


def _last_task(row: Row) -> str:
    return max(filter(SCORE.fullmatch, row), key=lambda name: int(name[4:]), default="")


def main(argv: list[str]) -> int:
    """Exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m utils.log.compare", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folders", nargs="+", help="folders with mean_accs.csv in or below them")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="the page (default: comparison.html)")
    args = parser.parse_args(argv)
    try:
        write_comparison(read_tables(args.folders), args.out)
    except UserError as e:
        print(f"compare: error: {e}", file=sys.stderr)
        return 2
    print(f"comparison: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
