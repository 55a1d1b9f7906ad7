"""Whether a task was forgotten: its score at the end against the one at the end of its own stage.

"At most 5 % lost" has two readings, and they differ: five points of the score, or a twentieth of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose

READINGS = ("absolute", "relative")


def target(baseline: float, tolerance: float = 5.0, reading: str = "absolute") -> float:
    """The score that is still enough.

    Args:
        baseline: score at the end of the task's own stage, percent.
        tolerance: what may be lost: points ('absolute'), or percent of the baseline ('relative').
    """
    return baseline - tolerance if reading == "absolute" else baseline * (1 - tolerance / 100)


def passes(baseline: float, value: float, tolerance: float = 5.0, reading: str = "absolute") -> bool:
    """Whether `value` is at least the target; raw numbers, nothing is rounded but the last bits of the arithmetic."""
    goal = target(baseline, tolerance, reading)
    return value >= goal or isclose(value, goal, rel_tol=1e-12)


@dataclass
class Verdict:
    """One task: the scores, and target and verdict by each reading.

    Attributes:
        baseline, achieved, delta: percent; delta = achieved - baseline.
        targets, passed: by reading.
    """

    task: str
    baseline: float
    achieved: float
    delta: float
    targets: dict[str, float]
    passed: dict[str, bool]


def verdicts(names: Sequence[str], baselines: Sequence[float], values: Sequence[float], tolerance: float = 5.0):
    """A `Verdict` for each task."""
    return [
        Verdict(
            name,
            baseline,
            value,
            value - baseline,
            {r: target(baseline, tolerance, r) for r in READINGS},
            {r: passes(baseline, value, tolerance, r) for r in READINGS},
        )
        for name, baseline, value in zip(names, baselines, values, strict=True)
    ]
