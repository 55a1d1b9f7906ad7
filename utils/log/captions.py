"""What to see in a picture, in one or two sentences."""

from collections.abc import Mapping

import numpy as np

from palimpsest.utils.log.plots import worded

TASKS = (
    "Each line begins where its task was trained. How far it falls from there is what later tasks made the network "
    "forget."
)
POINTS = (
    "Any-time evaluation: accuracy on a fixed part of each task's test images in training; a dotted line is the end "
    "of a task. A dip right behind one is the stability gap."
)
BARS = {
    "forgetting": "What each task lost: its best accuracy minus its last. High bars are tasks that were overwritten.",
    "fwt": "How much better a task was than with the untrained network just before its own training.",
}
CONFUSION = (
    "Test examples at the end, each row one true class. What lies beside the diagonal is wrong; dark columns are "
    "classes that the network names too often, mostly those of the last tasks."
)
STAGES = "Loss and held-out score over the epochs of each stage; a star is the epoch that early stopping went back to."
LOSS = "Terms of the loss over training; a dotted line is the end of a task."
FINAL = "Accuracy on each task at the end, one mark per seed. Where the marks lie apart, the seed decides."


def matrix(matrix: np.ndarray, score: str) -> str:
    """How to read the score matrix, with the task that lost most."""
    text = "A row per task trained, a column per task tested: read a column downwards to see a task being forgotten."
    rows = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    if len(rows) < 2:
        return text
    last = rows[-1]
    best = np.array([_best(matrix[i : last + 1, i]) for i in range(last)])
    lost = best - matrix[last, :last]
    if not np.isnan(lost).all() and (worst := int(np.nanargmax(lost))) >= 0 and lost[worst] >= 0.05:
        text += f" Task {worst + 1} lost most: {best[worst]:.1f} to {matrix[last, worst]:.1f}."
    return worded(text, score)


def average(curves: Mapping[str, np.ndarray], score: str) -> str:
    """Where the mean over the tasks seen began and ended, per scenario; curves as of `plots.average_curves`."""
    parts = []
    for name, values in curves.items():
        known = values.mean(0)[~np.isnan(values.mean(0))]
        if known.size > 1:
            parts.append(f"{name} from {known[0]:.1f} to {known[-1]:.1f}")
    told = f": {', '.join(parts)}" if parts else ""
    return worded(f"Mean accuracy on the tasks seen so far, after each of them{told}.", score)


def _best(scores: np.ndarray) -> float:
    return float(np.nanmax(scores)) if not np.isnan(scores).all() else float("nan")
