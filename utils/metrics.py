"""Continual-learning metrics: pure functions of the score matrix R.

R[t, i] is the score on task i after training task t, in percent, higher is better, shape (T, T); entries that were
not evaluated are nan. Every function returns a float, nan where the metric is not defined for this R.

References: Lopez-Paz & Ranzato 2017 (BWT, FWT), Chaudhry et al. 2018 (forgetting), De Lange et al. 2023 (min-ACC,
WC-ACC).
"""

from collections.abc import Sequence

import numpy as np


def _mean(values: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()) if values.size else float("nan")


def average_accuracy(R: np.ndarray) -> float:
    """ACC = mean_i R[T-1, i]."""
    return _mean(R[-1])


def average_incremental_accuracy(R: np.ndarray) -> float:
    """AAA = mean_t mean_{i<=t} R[t, i]."""
    return _mean([_mean(R[t, : t + 1]) for t in range(len(R))])


def backward_transfer(R: np.ndarray) -> float:
    """BWT = mean_{i<T-1} (R[T-1, i] - R[i, i])."""
    return _mean(R[-1, :-1] - np.diag(R)[:-1])


def forgetting(R: np.ndarray) -> float:
    """F = mean_{i<T-1} (max_{i<=t<=T-1} R[t, i] - R[T-1, i]); the maximum includes the last row, so each term is >=
    0.
    """
    return _mean([R[i:, i].max() - R[-1, i] for i in range(len(R) - 1)])


def forgetting_chaudhry(R: np.ndarray) -> float:
    """mean_{i<T-1} (max_{i<=t<T-1} R[t, i] - R[T-1, i]); the maximum excludes the last row, so a term may be negative.

    Chaudhry et al. 2018, section 3; the "FM" of prototype-augmented hypernetworks.
    """
    return _mean([R[i:-1, i].max() - R[-1, i] for i in range(len(R) - 1)])


def forward_transfer(R: np.ndarray, baseline: np.ndarray) -> float:
    """FWT = mean_{i>=1} (R[i-1, i] - b_i), b the scores (T,) of the untrained network."""
    return _mean([R[i - 1, i] - baseline[i] for i in range(1, len(R))])


def learning_accuracy(R: np.ndarray) -> float:
    """LA = mean_i R[i, i]."""
    return _mean(np.diag(R))


def min_accuracy(history: Sequence[tuple[int, Sequence[float]]]) -> float:
    """min-ACC: mean over all tasks but the last of the lowest score each had after it was learned.

    Args:
        history: every evaluation in order as (task being trained, scores on tasks 0..n-1); those during tasks count.
    """
    last = max(task for task, _ in history)
    lows = [min(scores[i] for task, scores in history if task > i) for i in range(last)]
    return _mean(lows)


def worst_case_accuracy(history: Sequence[tuple[int, Sequence[float]]]) -> float:
    """WC-ACC = (1/k) * (last score on the current task k) + (1 - 1/k) * min-ACC."""
    task, scores = history[-1]
    k = task + 1
    return float(scores[task] if k == 1 else scores[task] / k + (1 - 1 / k) * min_accuracy(history))


def summarise(
    R: np.ndarray,
    baseline: np.ndarray | None = None,
    history: Sequence[tuple[int, Sequence[float]]] = (),
) -> dict[str, float]:
    """All metrics that are defined for this R, by their short names.

    A stopped run (rows missing at the end) is summarised over the tasks it trained; a joint run (one row, the last)
    has ACC only.

    Args:
        R: score matrix (T, T), percent.
        baseline: scores (T,) of the untrained network, for forward transfer.
        history: evaluations during tasks included, for min-ACC and WC-ACC.
    """
    R = np.asarray(R, dtype=np.float64)
    trained = np.flatnonzero(~np.isnan(R).all(axis=1))
    if trained.size == 0:
        return {}
    if np.isnan(R).all(axis=1)[: trained[-1]].any():  # joint training, or a run started at a later task
        return {"acc": float(np.nanmean(R[trained[-1]]))}
    n = trained[-1] + 1
    R = R[:n, :n]
    out = {"acc": average_accuracy(R), "aaa": average_incremental_accuracy(R), "la": learning_accuracy(R)}
    if n > 1:
        out |= {
            "bwt": backward_transfer(R),
            "forgetting": forgetting(R),
            "forgetting_chaudhry": forgetting_chaudhry(R),
        }
        if baseline is not None:
            out["fwt"] = forward_transfer(R, np.asarray(baseline))
        if history:
            out |= {"min_acc": min_accuracy(history), "wc_acc": worst_case_accuracy(history)}
    return {name: value for name, value in out.items() if not np.isnan(value)}
