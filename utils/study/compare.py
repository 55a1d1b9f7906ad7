"""`main.py --compare FOLDER...`: methods side by side, from the run.json files below the folders.

main.py --compare results                                           everything below results/, on the terminal
main.py --compare results --models er derpp --within 1 --out paper  and as files: tables, pictures, a page
"""

import difflib
from collections.abc import Sequence
from math import nan
from pathlib import Path

from palimpsest.utils.args import ArgumentParser, refuse_repeats
from palimpsest.utils.errors import UserError
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.option_types import positive_float
from palimpsest.utils.study.comparison.blocks import CONTROLS, compare
from palimpsest.utils.study.comparison.files import FORMATS, PRINTED, terminal, text_of, write_files
from palimpsest.utils.study.records import Record, read_runs

SCENARIOS = ("class-il", "task-il", "domain-il", "general-continual")


def command(argv: list[str]) -> int:
    """Exit status 0.

    Raises:
        UserError: bad input, or nothing to compare.
    """
    parser = _parser()
    refuse_repeats(argv, parser)
    args = parser.parse_args(argv)
    if args.format and not args.out and (len(args.format) > 1 or args.format[0] not in PRINTED):
        raise UserError(
            f"--format {' '.join(args.format)} needs --out DIR: the terminal takes one of {', '.join(PRINTED)}"
        )
    unread: list[Path] = []
    runs = _chosen(_read(args.compare, unread), args.models, args.datasets)
    found = compare(runs, args.metric, args.scenario or "", args.within or nan)
    found.notes += [_told(unread)] if unread else []
    if args.format and not args.out:
        print(text_of(found, PRINTED[args.format[0]]), end="")
        return 0
    print(terminal(found), end="")
    if args.out:
        write_files(found, args.out, args.format or FORMATS)
        print(f"comparison: {args.out}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="main.py",
        description="Compare methods: tables with intervals and costs, paired tests, ranks over streams, pictures.",
        epilog="docs/study.md explains what is compared with what, and why a run is left out.",
    )
    add = parser.add_argument
    add("--compare", nargs="*", metavar="FOLDER", help="folders with runs in or below them")
    add("--models", nargs="+", metavar="NAME", help="these methods alone; class-IL tables keep their two controls")
    add("--datasets", nargs="+", metavar="NAME", help="these streams alone")
    add(
        "--metric", choices=list(METRICS), default="acc", metavar="NAME", help=f"what is compared: {', '.join(METRICS)}"
    )
    add("--scenario", choices=SCENARIOS, help="scores of this scenario (default: that of each stream)")
    add(
        "--within",
        type=positive_float,
        metavar="M",
        help="also say of which pairs the means differ by less than M points",
    )
    add("--out", type=Path, metavar="DIR", help="write the tables, the page and the pictures into this folder")
    few = f"these alone of {', '.join(FORMATS)}; without --out one of the first three, on the terminal"
    add("--format", nargs="+", choices=FORMATS, metavar="F", help=few)
    return parser


def _told(unread: Sequence[Path]) -> str:
    more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
    return f"Left out, for it is damaged or no run's: {unread[0]}{more}."


def _read(folders: Sequence[str], unread: list[Path]) -> list[Record]:
    if not folders:
        raise UserError("--compare needs a folder with runs in or below it, as results")
    runs = {run.folder.resolve(): run for folder in folders for run in read_runs(Path(folder), unread)}
    if not runs:
        why = f". {_told(unread)[:-1]}" if unread else ": nothing to compare"
        raise UserError(f"no {'whole ' * bool(unread)}run.json in or below {', '.join(map(str, folders))}{why}")
    return list(runs.values())


def _chosen(runs: Sequence[Record], models: Sequence[str] | None, datasets: Sequence[str] | None) -> list[Record]:
    """The runs that were asked for, and the controls where there is a class-IL stream among them."""

    def one(name: str) -> str:
        return Path(name).stem.replace("-", "_")

    for what, asked, there in (("models", models, {one(r.model): one(r.model) for r in runs}),
                               ("datasets", datasets, {one(r.dataset): r.dataset for r in runs})):  # fmt: skip
        for name in asked or ():
            if one(name) not in there:
                near = difflib.get_close_matches(one(name), there, 1)
                hint = f"did you mean {there[near[0]]}?" if near else f"they have {', '.join(sorted(there.values()))}"
                raise UserError(f"--{what} {name}: no run in the folders; {hint}")
    if datasets:
        runs = [run for run in runs if one(run.dataset) in map(one, datasets)]
    if models:
        wanted = {one(name) for name in models}
        kept = [run for run in runs if one(run.model) in wanted]
        streams = {run.dataset for run in kept if run.setting == "class-il"}
        controls = [r for r in runs if one(r.model) in CONTROLS.keys() - wanted and r.dataset in streams]
        runs = kept + controls
    return list(runs)
