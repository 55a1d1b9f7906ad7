"""Sweeps of many quick runs, and what must be there in the end."""

import collections
from pathlib import Path

import yaml

from palimpsest.utils.study.plan import read_plan
from palimpsest.utils.study.records import read_runs
from palimpsest.utils.study.trials import Trials

QUICK = {"debug_mode": True, "report": "off", "tensorboard": False, "num_threads": 1, "device": "cpu"}


def write_grid(folder: Path, seeds: int) -> Path:
    """A grid of two methods x two learning rates x `seeds`, with results below the folder."""
    options = QUICK | {"results_path": str(folder / "results")}
    space = {"lr": [0.05, 0.1], "buffer_size": [50]}
    facts = {"model": ["sgd", "er"], "dataset": "seq-digits", "options": options, "space": space}
    file = folder / "many.yaml"
    file.write_text(yaml.safe_dump(facts | {"seeds": list(range(seeds))}))
    return file


def finished(results: Path) -> int:
    """How many runs are finished."""
    return len(list(results.glob("*/*/*/*/result.yaml")))


def check_complete(file: Path, n: int) -> None:
    """Every run is there, finished, once, with the score that its trial tells; no lock of a trial is left."""
    trials = Trials(read_plan(file))
    assert [trial.state.name for _, trial in trials.all()] == ["COMPLETE"] * n
    records = read_runs(file.parent / "results")
    once = collections.Counter((r.model, r.options["lr"], r.seed) for r in records)
    assert len(once) == n and set(once.values()) == {1}
    assert all(record.state == "finished" for record in records)
    tables = list((file.parent / "results").glob("class-il/*/*/mean_accs.csv"))
    assert sum(len(table.read_text().splitlines()) - 1 for table in tables) == n
    assert not list((trials.plan.folder / "locks").iterdir())
    scores = {(r.model, r.options["lr"], r.seed): r.metrics["class-il"]["acc"] for r in records}
    for case, trial in trials.all():
        key = (case.names["model"], trial.user_attrs["values"]["lr"], trial.user_attrs["seeds"][0])
        assert trial.value == scores[key]
