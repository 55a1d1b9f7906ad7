"""`main.py --reproduce TABLE`: the stored rows of a stream once more, over several seeds, beside what was published.

A table is a stream of best_args/; its rows are (method, buffer size). Every row is run with the options stored for it
and judged by an interval. docs/reproduced.md keeps a section for each table: date, commit and command of every row,
failures included.
"""

import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from palimpsest.utils.args import ArgumentParser
from palimpsest.utils.atomic import write_text
from palimpsest.utils.errors import UserError
from palimpsest.utils.metrics import FEWEST, spread
from palimpsest.utils.option_types import positive_int, seed_int
from palimpsest.utils.registry import ROOT, normalise
from palimpsest.utils.run.best_args import list_rows, load_rows
from palimpsest.utils.study.jobs import Job, run_all
from palimpsest.utils.study.records import Record, read_runs

PAGE = ROOT / "docs" / "reproduced.md"
TITLE = """# Reproduced

Measured by `python main.py --reproduce TABLE`. A row is the mean over its seeds with the sample standard deviation. The
verdict looks at the 95 % interval of the difference between the two means (Welch's where the published number of runs
and spread are known, else Student's around ours, the published mean taken as exact): *agrees* where 0 is inside it
or no further away than half the last digit that is published, *higher* or *lower* otherwise. Many rows: one in twenty
that is right is called wrong.
"""
VERDICTS = {"agrees", "higher", "lower"}


@dataclass
class Row:
    """One row of a table.

    Attributes:
        method, size: of best_args; size is None for a method without a buffer.
        stored: the row as it is stored.
        command: options of its runs, all but the seed and where results go.
        runs: its finished runs, one for each seed.
        problems: why seeds have none, a line each.
    """

    method: str
    size: int | None
    stored: dict[str, Any]
    command: list[str]
    runs: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.method if self.size is None else f"{self.method}:{self.size}"


def command(argv: list[str]) -> int:
    """Run the table and write its page; exit status 1 where a run failed.

    Raises:
        UserError: no such table or row, options that a row's method does not have.
    """
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    if args.help:
        parser.print_help()
        return 0
    if not args.reproduce:
        raise UserError(f"--reproduce needs a table: one of {', '.join(tables())}")
    if len({*args.seeds}) < len(args.seeds):
        raise UserError("--seeds names a seed twice: each counts as a run of its own")
    rows = choose(args.reproduce, args.rows, args.stream, more)
    name = f"{args.reproduce}{f'_on_{args.stream}' if args.stream else ''}"
    places = {row.name: Path(args.results_path) / "reproduced" / name / row.name.replace(":", "_") for row in rows}
    seconds = sum(_expected(row, places[row.name]) for row in rows) * len(args.seeds) / args.jobs
    head = f"{args.reproduce}: {len(rows)} rows of {len(args.seeds)} seeds, {args.jobs} side by side"
    print(f"{head}: at least {_duration(seconds)} on this machine, less what is finished already", flush=True)
    for row in rows if args.dry_run else ():
        print(f"  {row.name:<16} python main.py {_typed(row.command)}")
    if args.dry_run:
        return 0
    begin = time.perf_counter()
    measure(rows, args.seeds, args.jobs, places)
    shown = [*(["--rows", *args.rows] if args.rows else []), *(["--stream", args.stream] if args.stream else []), *more]
    text = section(args.reproduce, args.stream, rows, args.seeds, time.perf_counter() - begin, shown)
    write_text(args.out, with_section(args.out.read_text(encoding="utf-8") if args.out.is_file() else TITLE, text))
    print(f"{text}\npage: {args.out}")
    return 1 if any(row.problems for row in rows) else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="main.py", description=__doc__, add_help=False)
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="show this and exit")
    add("--reproduce", nargs="?", metavar="TABLE", help="a stream with rows in best_args/")
    add("--rows", nargs="+", metavar="ROW", help="methods, as er, or er:500 for one buffer size (default: all)")
    add(
        "--seeds", nargs="+", type=seed_int, default=[0, 1, 2, 3, 4], metavar="S", help="one run each (default: 0 to 4)"
    )
    add("--jobs", type=positive_int, default=1, metavar="N", help="runs side by side")
    what = "another stream of the same tasks in the table's place, with its options after it, as seq-folder --folder X"
    add("--stream", metavar="NAME", help=what)
    add("--dry_run", action="store_true", help="print the hours and the commands, and run nothing")
    add("--results_path", default="./results", help="folder of the results; the runs lie in reproduced/TABLE below it")
    add("--out", type=Path, default=PAGE if PAGE.parent.is_dir() else Path("reproduced.md"), help="the page")
    return parser


# ---- which rows


def tables() -> list[str]:
    """Every stream that rows are stored for."""
    return sorted({dataset for _, dataset, _ in list_rows()})


def choose(table: str, names: Sequence[str] | None, stream: str | None, more: Sequence[str]) -> list[Row]:
    """The rows of a table, with the command of each checked as a run's own would be.

    Raises:
        UserError: no such table or row; a command that a run would refuse.
    """
    from palimpsest.utils.run.config import resolve

    known = {normalise(name): name for name in tables()}
    if normalise(table) not in known:
        raise UserError(f"--reproduce {table}: no row is stored for it; tables are {', '.join(known.values())}")
    rows = []
    for method in dict.fromkeys(method for method, _, _ in list_rows()):
        stored = next((r for d, r in load_rows(method).items() if normalise(d) == normalise(table)), [])
        rows += [Row(method, row.get("buffer_size"), row, []) for row in stored if row.get("published")]
    wanted = {name: [row for row in rows if name in (row.name, row.method)] for name in names or ()}
    if absent := [name for name, found in wanted.items() if not found]:
        there = ", ".join(row.name for row in rows) or "none"
        raise UserError(f"--rows {' '.join(absent)}: no published row of {table}; those are {there}")
    rows = [row for row in rows if not names or any(row in found for found in wanted.values())]
    if not rows:
        raise UserError(f"--reproduce {table}: none of its rows has a published score")
    for row in rows:
        row.command = _command_of(row, known[normalise(table)], stream, more)
        resolve(row.command)
    return rows


def _command_of(row: Row, table: str, stream: str | None, more: Sequence[str]) -> list[str]:
    size = [] if row.size is None else ["--buffer_size", str(row.size)]
    start = ["--model", row.method, "--dataset", stream or table]
    if not stream:
        return [*start, *size, "--load_best_args", *more]
    options = []  # the row is not stored for this stream
    for name, value in row.stored["args"].items():
        values = value if isinstance(value, list) else [value]
        options += [f"--{name}", *map(str, values)]
    return [*start, *size, *options, *more]


# ---- runs


def measure(rows: Sequence[Row], seeds: Sequence[int], jobs: int, places: dict[str, Path]) -> None:
    """Run what is not finished yet, and give every row its finished runs and its problems.

    Args:
        places: name of a row -> folder of its runs.
    """
    plan = [(row, seed) for seed in seeds for row in rows]  # the first seed of all rows comes first
    outcomes = run_all([_job(row, seed, places[row.name]) for row, seed in plan], jobs)
    for (row, seed), outcome in zip(plan, outcomes, strict=True):
        if outcome.state == "finished":
            row.runs += read_runs(outcome.folder)
        else:
            row.problems.append(f"seed {seed}: {outcome.state}, {outcome.reason}")


def _job(row: Row, seed: int, place: Path) -> Job:
    where = ["--seed", str(seed), "--results_path", str(place), "--resume", "--report", "off"]
    return Job(f"{row.name}, seed {seed}", [*row.command, *where])


def _expected(row: Row, place: Path) -> float:
    """Seconds of one run: of those that are there, or else of its training alone."""
    from palimpsest.utils.study.estimate import seconds_of

    known = [r.costs["seconds"] for r in read_runs(place) if "seconds" in r.costs] if place.is_dir() else []
    return sum(known) / len(known) if known else seconds_of(row.command)


# ---- the page


def judge(measured: Sequence[float], published: float, std: float | None, runs: int | None) -> tuple[str, float, float]:
    """Verdict and ends of the 95 % interval of measured minus published.

    Args:
        measured: a score for each seed.
        published: mean.
        std, runs: sample standard deviation and number of the published runs, where they are known: Welch's interval.
            Otherwise the published mean is taken as exact.

    Returns:
        'agrees', 'higher', 'lower', or 'too few seeds' without an interval (nan).
    """
    mean, deviation, half, n = spread(measured)
    if n < FEWEST:
        return "too few seeds", float("nan"), float("nan")
    if std is not None and runs is not None and runs > 1 and deviation + std > 0:
        from scipy.stats import t

        ours, theirs = deviation**2 / n, std**2 / runs
        degrees = (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (runs - 1))  # Welch and Satterthwaite
        half = float(t.ppf(0.975, degrees)) * (ours + theirs) ** 0.5
    low, high = mean - published - half, mean - published + half
    rounding = 0.05 if round(published, 1) == published else 0.005  # half the last digit that is printed
    if low > rounding:
        return "higher", low, high
    return ("lower" if high < -rounding else "agrees"), low, high


def section(
    table: str, stream: str | None, rows: Sequence[Row], seeds: Sequence[int], seconds: float, more: Sequence[str]
) -> str:
    """The section of a table: a line for each row and scenario, then the commands, then what failed."""
    commits = sorted({r.environment.get("commit", "unknown")[:10] for row in rows for r in row.runs}) or ["unknown"]
    title = f"{table} on {stream}" if stream else table
    again = ["--reproduce", table, *more]
    lines = [f"## {title}", "", f"{date.today()}, commit {', '.join(commits)}, {_duration(seconds)}, seeds "
             f"{' '.join(map(str, seeds))}: `python main.py {_typed(again)}`", ""]  # fmt: skip
    if stream:
        lines += [f"The data are those of {stream} (see the command), the published scores those of {table}.", ""]
    lines += ["| row | scenario | measured | n | published | difference | 95 % interval | verdict |", "|---" * 8 + "|"]
    for row in rows:
        for scenario, entry in row.stored["published"].items():
            lines.append(f"| {' | '.join(_cells(row, scenario, entry))} |")
    lines += ["", "| row | command, for each seed | seconds a run | source |", "|---|---|---|---|"]
    for row in rows:
        taken = [r.costs["seconds"] for r in row.runs if "seconds" in r.costs]
        each = f"{sum(taken) / len(taken):.0f}" if taken else "-"
        source = str(row.stored.get("source", "not given")).replace("|", "/")
        lines.append(f"| {row.name} | `{_typed(row.command)}` | {each} | {source} |")
    failed = [f"- {row.name}, {problem}" for row in rows for problem in row.problems]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else []), ""])


def _cells(row: Row, scenario: str, entry: dict[str, Any]) -> list[str]:
    values = [r.metrics[scenario]["acc"] for r in row.runs if r.metrics.get(scenario, {}).get("acc") is not None]
    shown = f"{entry['acc']:.2f}" + (f" ± {entry['std']:.2f}" if entry.get("std") is not None else "")
    if not values:
        why = "failed" if row.problems else "not measured"
        return [row.name, scenario, "-", "0", shown, "-", "-", why]
    mean, deviation, _, n = spread(values)
    measured = f"{mean:.2f}" if n == 1 else f"{mean:.2f} ± {deviation:.2f}"
    if not row.stored.get("comparable", True):
        return [row.name, scenario, measured, str(n), shown, "-", "-", "another protocol"]
    verdict, low, high = judge(values, entry["acc"], entry.get("std"), row.stored.get("runs"))
    interval = "-" if verdict not in VERDICTS else f"{low:+.2f} to {high:+.2f}"
    return [row.name, scenario, measured, str(n), shown, f"{mean - entry['acc']:+.2f}", interval, verdict]


def with_section(page: str, text: str) -> str:
    """A page with a section in the place of the one of the same title, or at its end."""
    title = text.split("\n", 1)[0]
    parts = re.split(r"(?m)^(?=## )", page.rstrip("\n") + "\n")
    same = [i for i, part in enumerate(parts) if part.split("\n", 1)[0] == title]
    parts = [text.rstrip("\n") + "\n" if i in same else part for i, part in enumerate(parts)]
    return "\n".join(part.rstrip("\n") + "\n" for part in (parts if same else [*parts, text]))


def _typed(command: Sequence[str]) -> str:
    return shlex.join(command)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
