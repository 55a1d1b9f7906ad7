"""Whether a task was forgotten: its score at the end against the one at the end of its own stage.

"At most 5 % lost" has two readings, and they differ: five points of the score, or a twentieth of it.
"""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from math import isclose, isnan, nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.utils.record import Run

READINGS = ("absolute", "relative")
COLUMNS = (
    *("task", "score", "baseline", "achieved", "delta"),
    *("target (abs.)", "absolute", "target (rel.)", "relative", "floor", "kept %"),
)


def target(baseline: float, tolerance: float = 5.0, reading: str = "absolute") -> float:
    """The score that is still enough.

    Args:
        baseline: score at the end of the task's own stage, percent.
        tolerance: what may be lost: points ('absolute'), or percent of the baseline ('relative').
    """
    return baseline - tolerance if reading == "absolute" else baseline * (1 - tolerance / 100)


@dataclass
class Verdict:
    """One task: the scores, and target and verdict by each reading.

    Attributes:
        baseline, achieved, delta: percent; delta = achieved - baseline. The baseline is nan for a task that had no
            stage of its own (joint training); then `passed` is empty.
        metric: name of the score.
        floor: what a trivial predictor scores, percent.
        interval: 95 % interval of `achieved`, where its score has one.
        targets, passed: by reading; raw numbers, nothing is rounded but the last bits of the arithmetic.
        kept: (achieved - floor) / (baseline - floor) in percent: scores of different kinds on one scale; nan where the
            task's own stage did not come above the floor. The scale should end at the score of a network for this task
            alone; its own stage stands in for that.
    """

    task: str
    baseline: float
    achieved: float
    metric: str = ""
    floor: float = nan
    interval: tuple[float, float] = (nan, nan)
    tolerance: InitVar[float] = 5.0
    delta: float = field(init=False)
    targets: dict[str, float] = field(init=False)
    passed: dict[str, bool] = field(init=False)
    kept: float = field(init=False)

    def __post_init__(self, tolerance: float):
        self.delta = self.achieved - self.baseline
        self.targets = {reading: target(self.baseline, tolerance, reading) for reading in READINGS}
        self.passed = {
            reading: self.achieved >= goal or isclose(self.achieved, goal, rel_tol=1e-12)
            for reading, goal in self.targets.items()
            if not isnan(self.baseline)
        }
        above = self.baseline > self.floor
        self.kept = 100 * (self.achieved - self.floor) / (self.baseline - self.floor) if above else nan


def of_run(run: "Run") -> list[Verdict]:
    """Verdicts on the tasks that a run on a vision stream has trained, after the last of them; empty for other runs.

    A task's baseline is its score at the first evaluation at its stage's end, before any fine-tuning.
    """
    ends = [evaluation for evaluation in run.history if evaluation.epoch is None and evaluation.task >= 0]
    if not run.tasks or not ends:
        return []
    last, (scenario,) = ends[-1], run.matrices
    # All tasks trained at once, or a checkpoint that is only scored: no stage can be told from another.
    stages = [] if run.config.get("joint") or run.config.get("inference_only") else ends
    bases = {e.task: e.scores[scenario][e.task] for e in reversed(stages)}
    rows = []
    for task, (name, metric) in enumerate(list(run.tasks.items())[: last.task + 1]):
        low, high, floor = (
            last.others[what][scenario][task] if what in last.others else nan
            for what in (f"{metric} low", f"{metric} high", "floor")
        )
        scores = (bases.get(task, nan), last.scores[scenario][task])
        rows.append(Verdict(name, *scores, metric, floor, (low, high), tolerance_of(run)))
    return rows


def tolerance_of(run: "Run") -> float:
    """What a task may lose in this run; 5 where its method has no option for it."""
    return run.config.get("tolerance", 5.0)


def overall(rows: Sequence[Verdict], reading: str) -> bool | None:
    """Whether all tasks pass; None where none has a baseline."""
    passed = [row.passed[reading] for row in rows if row.passed]
    return all(passed) if passed else None


def cells(row: Verdict) -> list[str]:
    """The entries of a `Verdict` in the order of `COLUMNS`."""
    low, high = row.interval
    interval = "" if isnan(low) else f" [{low:.1f}, {high:.1f}]"
    judged = [c for r in READINGS for c in (_number(row.targets[r]), word(row.passed.get(r)))]
    measured = [_number(row.baseline), f"{row.achieved:.2f}{interval}", _number(row.delta, "+.2f")]
    return [row.task, row.metric, *measured, *judged, _number(row.floor), _number(row.kept, ".1f")]


def word(passed: bool | None) -> str:
    """'PASS', 'FAIL', or '-' where there is nothing to judge."""
    return "-" if passed is None else "PASS" if passed else "FAIL"


def remarks(run: "Run", rows: Sequence[Verdict]) -> list[str]:
    """What to read with the table: the overall verdict, what the columns are, and what a verdict does not say."""
    both = {r: overall(rows, r) for r in READINGS}
    if both["absolute"] is None:
        return ["No stage of a task of its own is part of this run: there are no baselines to judge by."]
    chosen, tolerance = run.config.get("criterion", "absolute"), tolerance_of(run)
    other = next(r for r in READINGS if r != chosen)
    differ = [row.task for row in rows if row.passed and len(set(row.passed.values())) > 1]
    out = [
        f"Overall: {word(both[chosen])} by the {chosen} reading, {word(both[other])} by the {other} one; "
        f"tolerance {tolerance:g} points (absolute) or percent of the baseline (relative)."
    ]
    if differ:
        out.append(f"The two readings differ on {', '.join(differ)}.")
    if missed := [row.task for row in rows if row.targets[chosen] <= row.floor]:
        out.append(f"The target is no higher than the floor, so that a PASS says nothing: {', '.join(missed)}.")
    if run.config.get("validation"):
        out.append("All scores are of training images that were held out (--validation), none of test images.")
    kept = [row.kept for row in rows if not isnan(row.kept)]
    mean = f" Their mean is {sum(kept) / len(kept):.1f} %." if kept else ""
    out.append(
        "Baseline: test score at the end of the task's own stage. Floor: the best answer without a look at the image. "
        f"Kept: (achieved - floor) / (baseline - floor), the own stage in place of a network for one task.{mean}"
    )
    return out


def as_facts(run: "Run") -> dict[str, Any] | None:
    """The table as plain values; None for a run that has none."""
    rows = of_run(run)
    if not rows:
        return None
    return {
        "tolerance": tolerance_of(run),
        "reading": run.config.get("criterion", "absolute"),
        "overall": {reading: overall(rows, reading) for reading in READINGS},
        "tasks": [vars(row) for row in rows],
    }


def _number(value: float, form: str = ".2f") -> str:
    return "-" if isnan(value) else format(value, form)
