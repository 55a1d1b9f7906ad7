"""`--rerun FOLDER`: the run of a folder once more from its stored configuration, and whether the result is the same."""

import csv
from pathlib import Path
from typing import Any

from palimpsest.utils.config_file import plain_yaml, read_config
from palimpsest.utils.errors import UserError
from palimpsest.utils.run import config as configuration
from palimpsest.utils.run.environment import differences
from palimpsest.utils.run.experiment import execute
from palimpsest.utils.run.finished import RESULT

SHOWN = 5
KEY = ("step", "task_trained", "task_evaluated", "scenario", "metric", "epoch")


def rerun(folder: str, argv: list[str]) -> bool:
    """Repeat a run in a new folder and print what differs; whether the results are identical.

    Raises:
        UserError: no run's folder, an altered configuration, options that would make it another run.
    """
    old = Path(folder)
    facts = read_config(old / "config.yaml")
    rows = _scores(old)
    unfinished = not (old / RESULT).is_file()
    before = {} if unfinished else _result(old)
    config = configuration.from_stored(facts["options"], argv, old / "config.yaml")
    config.chosen_on, config.trial = str(facts.get("chosen_on", "unknown")), facts.get("trial") is True
    if config.args.disable_log:
        raise UserError("--rerun compares two folders: drop --disable_log")
    print(configuration.describe(config), flush=True)
    run, _ = execute(config)
    print(f"repeated {old}")
    changed = differences(facts["environment"], run.environment)
    for name, (then, now) in changed.items():
        print(f"  {name}: then {then}, now {now}")
    new_rows = _scores(run.folder)
    if unfinished:
        print(f"  it had not finished: its {len(rows)} scores are compared, not the weights")
        new_rows = {key: value for key, value in new_rows.items() if key in rows}
    different = [key for key in rows.keys() | new_rows.keys() if rows.get(key) != new_rows.get(key)]
    for key in sorted(different)[:SHOWN]:
        print(f"  {' '.join(key)}: then {rows.get(key, 'absent')}, now {new_rows.get(key, 'absent')}")
    if len(different) > SHOWN:
        print(f"  and {len(different) - SHOWN} more scores")
    now = {} if unfinished else _result(run.folder)
    states = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if states:
        print(f"  different at the end: {', '.join(states)}")
    same = not different and not states
    print("identical: every score and every bit of the state" if same and not unfinished else
          "identical as far as it goes" if same else "not identical")  # fmt: skip
    return same


def _result(folder: Path) -> dict[str, Any]:
    facts = plain_yaml(folder / RESULT)
    if not isinstance(facts, dict) or not all(type(name) is str for name in facts):
        raise UserError(f"{folder / RESULT} is not what a run writes")
    return facts


def _scores(folder: Path) -> dict[tuple[str, ...], str]:
    """metrics.csv as (step, task trained, task evaluated, scenario, metric, epoch) -> value. What is in older files and
    newer ones alike: the model, the dataset and the seed are the configuration's.
    """
    path = folder / "metrics.csv"
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f, strict=True))
        if any(type(text) is not str for row in rows for text in (*row, *row.values())):
            raise ValueError("a row with too many or too few columns")
        return {tuple(row[name] for name in KEY): row["value"] for row in rows}
    except (OSError, csv.Error, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
