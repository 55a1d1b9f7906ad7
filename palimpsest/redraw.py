"""`--report FOLDER`: the page of a finished run, or of its seeds, drawn from what the folder holds."""

import json
from pathlib import Path

from palimpsest.utils.args import ArgumentParser
from palimpsest.utils.errors import UserError
from palimpsest.utils.log.report import summarise_run, write_report
from palimpsest.utils.log.seeds import SUMMARY, summarise_seeds, write_seeds_report
from palimpsest.utils.run.finished import load_run


def redraw(argv: list[str]) -> None:
    """Write report.html into the folder once more and say where it is.

    Raises:
        UserError: no folder of a finished run, or of seeds; another option than --figures.
    """
    parser = ArgumentParser(prog="main.py", add_help=False)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--figures", choices=["png", "pdf"])
    args = parser.parse_args(argv)
    folder = args.report
    if not folder.is_dir():
        raise UserError(f"--report {folder}: no such folder; during a run it is end, live or off")
    if (folder / SUMMARY).is_file():
        names, failed = _runs(folder / SUMMARY)
        runs = [load_run(folder.parent / name) for name in names]
        page = write_seeds_report(folder, runs, summarise_seeds([summarise_run(run) for run in runs]), failed)
    else:
        run = load_run(folder)
        run.config["figures"] = args.figures
        page = write_report(run, summarise_run(run))
        if run.tasks:
            print("the pictures of predictions are drawn only at the end of a run itself")
    print(f"report: {page}")


def _runs(path: Path) -> tuple[list[str], dict[int, str]]:
    """Names of the runs' folders in the summary of their seeds, each beside the summary's folder; seed -> why its run
    failed.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        names, failed = facts["runs"], {int(row["seed"]): str(row["reason"]) for row in facts.get("failed", ())}
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("names of folders are missing")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is not what a run writes ({type(e).__name__})") from None
    return names, failed
