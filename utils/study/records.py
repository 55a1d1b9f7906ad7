"""Many runs as their folders tell them, read without PyTorch: a thousand in less than a second."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.utils.errors import UserError

RUN, RESULT = "run.json", "result.yaml"  # what every run writes, and what it writes last


@dataclass
class Record:
    """One run.

    Attributes:
        folder: the run's folder.
        facts: what run.json holds, see `utils.log.run_file`.
        state: 'finished', 'failed' (see `reason`), or 'unfinished': it goes on, or was stopped.
    """

    folder: Path
    facts: dict[str, Any]
    state: str

    @property
    def model(self) -> str:
        return self.facts["model_name"]

    @property
    def dataset(self) -> str:
        return self.facts["dataset_name"]

    @property
    def setting(self) -> str:
        return self.facts["setting"]

    @property
    def seed(self) -> int:
        return self.facts["seed"]

    @property
    def options(self) -> dict[str, Any]:
        """Every resolved option by name."""
        return self.facts["config"]

    @property
    def environment(self) -> dict[str, str]:
        """Versions, files with the checksum of their content, data."""
        return self.facts["environment"]

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """scenario -> metric -> value, of the tasks so far."""
        return self.facts["metrics"]

    @property
    def matrices(self) -> dict[str, list[list[float | None]]]:
        """scenario -> R, None where nothing was evaluated."""
        return self.facts["matrices"]

    @property
    def costs(self) -> dict[str, Any]:
        """What the run cost, empty before its end."""
        return self.facts["costs"]

    @property
    def chosen_on(self) -> str:
        """What was seen to choose the options, see `utils.record.Run`."""
        return str(self.facts.get("chosen_on", "unknown"))

    @property
    def trial(self) -> bool:
        """Whether the run is there only to choose options, and no result."""
        return self.facts.get("trial") is True

    @property
    def leaks(self) -> list[str]:
        """What the leak detector found; a run with any belongs in no ranking without saying so."""
        return self.facts.get("leaks") or []

    @property
    def marks(self) -> list[str]:
        """Exceptions that the method or the stream declares; they stand in every table."""
        return self.facts.get("marks") or []

    @property
    def reason(self) -> str:
        """Why a run failed, in one line."""
        return self.facts.get("reason") or ""


KEYS = {"model_name": str, "dataset_name": str, "setting": str, "seed": int, "config": dict, "environment": dict}
KEYS |= {"metrics": dict, "matrices": dict, "costs": dict}


def read_runs(folder: Path, unread: list[Path] | None = None) -> list[Record]:
    """Every run in or below a folder, by the names of their folders; a file that is no run's is left out.

    Args:
        unread: takes the files that are left out.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = []
    for path, files in run_folders(folder):
        if record := read_run(path, files):
            found.append(record)
        elif unread is not None:
            unread.append(Path(path, RUN))
    return sorted(found, key=lambda record: str(record.folder))


def run_folders(folder: Path) -> Iterator[tuple[str, set[str]]]:
    """Folders with a run.json, and the names of their files; a run's folder is not searched further."""
    for path, below, files in os.walk(folder):
        if RUN in files:
            below.clear()
            yield path, set(files)


def read_run(path: str, files: set[str]) -> Record | None:
    """The run of a folder with these files, None where its run.json is no run's."""
    try:
        with open(os.path.join(path, RUN), encoding="utf-8") as f:
            facts = json.load(f)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name), kind) for name, kind in KEYS.items()):
        return None
    failed = "failed" if facts.get("reason") else "unfinished"
    return Record(Path(path), facts, "finished" if RESULT in files else failed)
