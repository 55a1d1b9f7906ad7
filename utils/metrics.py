"""Continual-learning metrics: pure functions of the score matrix R, each one entry of `METRICS`.

R[t, i] is the score on task i after training task t, in percent, higher is better, shape (T, T); entries that were
not evaluated are nan. A metric is the mean of its terms; a term that is not defined (an entry it needs is nan) is left
out and counted by `excluded`, and a metric without any defined term is nan. A task that no evaluation has a score of
(it has no test examples) has no term of its own, and the means over tasks are those over the others.

A history is every evaluation in order as (task being trained, scores on tasks 0..n-1), those during tasks included: of
whole evaluations, or of any-time evaluations (`steps` are then their iterations), never of both.

Summary, console, report, seeds table, mean_accs.csv and the page docs/results.md are made from the table.

References: Lopez-Paz & Ranzato 2017 (BWT, FWT), Chaudhry et al. 2018 (forgetting, intransigence), De Lange et al. 2023
(min-ACC, WC-ACC, windowed forgetting and plasticity, stability gap), Caccia et al. 2020 and Koh et al. 2022 (anytime
accuracy, A_AUC).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

History = Sequence[tuple[int, Sequence[float]]]
WINDOW = 10  # evaluations, the shorter window of De Lange et al. 2023
RECOVERED = 0.95  # of the score that is reached later
FEWEST = 3  # runs, or test images, for an interval: of two, Student's t is wider than most scores differ


@dataclass(frozen=True)
class Scores:
    """What a metric is computed from: R (n, n) over the trained tasks, the scores (T,) of the untrained network or
    None, and the history, empty without evaluations during tasks, with its iterations where it is of points.
    """

    R: np.ndarray
    baseline: np.ndarray | None = None
    history: History = ()
    steps: Sequence[int] = ()

    @property
    def n_tasks(self) -> int:
        """Tasks trained, as far as scores tell."""
        return max([len(self.R), *(task + 1 for task, _ in self.history)])


@dataclass(frozen=True)
class Metric:
    """One metric: the mean of its terms.

    Attributes:
        name: short name, in the console, in files and in best_args rows.
        title, definition: in words with the unit, for a score called accuracy.
        formula: in the symbols of docs/results.md.
        terms: scores -> (k,), nan where a term is not defined.
        needs: what must be there besides one trained task, names of `NEEDS`.
        better: 'higher' or 'lower'.
        column: its column of mean_accs.csv, '' for none.
        ends: smallest and largest value that scores between 0 and 100 can give.
    """

    name: str
    title: str
    definition: str
    formula: str
    terms: Callable[[Scores], Sequence[float] | np.ndarray]
    needs: tuple[str, ...] = ()
    better: str = "higher"
    column: str = ""
    ends: tuple[float, float] = (0.0, 100.0)


# What a metric may need -> (whether it is there, the reason told where it is not).
NEEDS: dict[str, tuple[Callable[[Scores], bool], str]] = {
    "two tasks": (lambda scores: scores.n_tasks > 1, "needs two trained tasks"),
    "untrained": (lambda scores: scores.baseline is not None, "needs --enable_other_metrics"),
    "history": (lambda scores: bool(scores.history), "needs --eval_every or --eval_epochs"),
    "points": (lambda scores: bool(scores.steps), "needs --eval_every"),
    "rows": (lambda scores: len(scores.R) > 0, "needs a score after every task"),
}


# ---- terms that take more than a line


def best_minus_last(R: np.ndarray, last_counts: bool) -> np.ndarray:
    """max_t R[t, i] - R[T-1, i] for tasks i < T-1, over i <= t <= T-1, or i <= t < T-1 unless the last row counts."""
    end = len(R) if last_counts else len(R) - 1
    return np.array([_known(max, R[i:end, i]) - R[-1, i] for i in range(len(R) - 1)])


def min_accuracy_terms(history: History) -> np.ndarray:
    """Lowest score of each task after it was learned, for all tasks but the last."""
    last = max(task for task, _ in history)
    return np.array([_known(min, [scores[i] for task, scores in history if task > i]) for i in range(last)])


def worst_case_accuracy(history: History) -> float:
    """WC-ACC = (1/k) * (last score on the current task k) + (1 - 1/k) * min-ACC."""
    task, scores = history[-1]
    k = task + 1
    return float(scores[task] if k == 1 else scores[task] / k + (1 - 1 / k) * _mean(min_accuracy_terms(history)))


def anytime_terms(history: History) -> np.ndarray:
    """Mean over the tasks seen at each evaluation; over those that some evaluation has a score of."""
    scored = {i for _, scores in history for i, score in enumerate(scores) if not np.isnan(score)}
    seen = [[scores[i] for i in range(task + 1) if i in scored] for task, scores in history]
    return np.array([np.mean(scores) if scores else np.nan for scores in seen])


def windowed_terms(history: History, window: int, falling: bool) -> np.ndarray:
    """Largest fall (or rise) of each task's score within `window` consecutive evaluations, 0 where it never falls."""
    sign = -1.0 if falling else 1.0
    out = []
    for i in range(max(task for task, _ in history) + 1):
        curve = [scores[i] for task, scores in history if task >= i and not np.isnan(scores[i])]
        changes = [sign * (later - a) for m, a in enumerate(curve) for later in curve[m : m + window]]
        out.append(max(changes, default=float("nan")))
    return np.array(out)


def after_switches(scores: Scores) -> Iterator[tuple[float, int, list[tuple[int, float]]]]:
    """For every task but the last: its score at the last point before the next task, the iteration there, and
    (iteration, score) of the task at the points within the next one; all without missing scores.
    """
    points = [(step, task, row) for step, (task, row) in zip(scores.steps, scores.history, strict=True)]
    for i in range(max(task for _, task, _ in points)):
        before = [(step, row[i]) for step, task, row in points if task == i and not np.isnan(row[i])]
        during = [(step, row[i]) for step, task, row in points if task == i + 1 and not np.isnan(row[i])]
        step, score = before[-1] if before else (0, float("nan"))
        yield score, step, during


def stability_gaps(scores: Scores) -> np.ndarray:
    """How far each task falls after the switch to the next one: score before minus the lowest within that one."""
    return np.array([before - _known(min, [a for _, a in during]) for before, _, during in after_switches(scores)])


def recovery_terms(scores: Scores) -> np.ndarray:
    """Iterations from each switch until the task that was trained before it is back, after its lowest score, at 95 % of
    the highest that it reaches later within the next task.
    """
    out = []
    for before, switch, during in after_switches(scores):
        values = [a for _, a in during]
        later = during[int(np.argmin(values)) :] if values and not np.isnan(before) else []
        goal = RECOVERED * max((a for _, a in later), default=float("nan"))
        out.append(next((step - switch for step, a in later if a >= goal), float("nan")))
    return np.array(out, dtype=np.float64)


# ---- the table

_TABLE = (
    Metric("acc", "Average accuracy (ACC)", "mean over all tasks after the last one was trained (%)",
           "mean_i R[T-1][i]", lambda s: s.R[-1], ("rows",)),
    Metric("aaa", "Average incremental accuracy (AAA)",
           "mean over the tasks' ends of the mean accuracy on the tasks seen so far; also called AIA (%)",
           "mean_t mean_{i<=t} R[t][i]: the tasks' ends alone",
           lambda s: seen_means(s.R), ("rows",)),
    Metric("la", "Learning accuracy (LA)", "plasticity: mean accuracy on each task right after it was trained (%)",
           "mean_i R[i][i]", lambda s: np.diag(s.R), ("rows",), column="learning_accuracy"),
    Metric("anytime", "Anytime accuracy",
           "mean over all evaluations, those during tasks included, of the mean accuracy on the tasks seen so far; "
           "called AAA in online learning, and A_AUC (%)",
           "mean_n mean_{i<=k(n)} a_n(i): all evaluation points",
           lambda s: anytime_terms(s.history), ("history",)),
    Metric("wf10", "Windowed forgetting (WF10)",
           "largest fall of a task's accuracy within 10 evaluations, mean over tasks; De Lange et al. 2023 (points)",
           "mean_i of the largest a_m(i) - a_n(i), m <= n < m + 10, from the training of task i on",
           lambda s: windowed_terms(s.history, WINDOW, falling=True), ("history",), "lower"),
    Metric("wp10", "Windowed plasticity (WP10)", "largest rise of a task's accuracy within 10 evaluations (points)",
           "the same of a_n(i) - a_m(i): the largest rise (De Lange et al. 2023)",
           lambda s: windowed_terms(s.history, WINDOW, falling=False), ("history",)),
    Metric("bwt", "Backward transfer (BWT)",
           "last accuracy on a task minus that right after it was trained; mean over all tasks but the last (points)",
           "mean_{i<T-1} (R[T-1][i] - R[i][i])", lambda s: s.R[-1, :-1] - np.diag(s.R)[:-1],
           ("rows", "two tasks"), column="backward_transfer", ends=(-100.0, 100.0)),
    Metric("forgetting", "Forgetting",
           "best minus last accuracy on a task, mean over all tasks but the last; the best includes the last "
           "evaluation, so it is never below 0 (points)",
           "mean_{i<T-1} (max_{i<=t<=T-1} R[t][i] - R[T-1][i]): the last row counts, never below 0",
           lambda s: best_minus_last(s.R, last_counts=True), ("rows", "two tasks"), "lower", "forgetting"),
    Metric("forgetting_chaudhry", "Forgetting (Chaudhry)",
           "the same with the best taken before the last task was trained, so it may be below 0; "
           "Chaudhry et al. 2018, the FM of prototype-augmented hypernetworks (points)",
           'the same with max over i<=t<T-1: may be negative (Chaudhry et al. 2018; "FM" of PAH)',
           lambda s: best_minus_last(s.R, last_counts=False), ("rows", "two tasks"), "lower", "forgetting_chaudhry",
           (-100.0, 100.0)),
    Metric("stability", "Stability", "100 minus forgetting (Chaudhry) (%)",
           "100 - `forgetting_chaudhry`: above 100 where tasks learned later helped",
           lambda s: 100.0 - best_minus_last(s.R, last_counts=False), ("rows", "two tasks"), ends=(0.0, 200.0)),
    Metric("fwt", "Forward transfer (FWT)",
           "accuracy on a task just before it is trained, minus the untrained network's (points)",
           "mean_{i>=1} (R[i-1][i] - b_i)", lambda s: [s.R[i - 1, i] - s.baseline[i] for i in range(1, len(s.R))],
           ("rows", "two tasks", "untrained"), column="forward_transfer", ends=(-100.0, 100.0)),
    Metric("min_acc", "Minimum accuracy (min-ACC)",
           "lowest accuracy of a task after it was learned, evaluations during tasks included (%)",
           "mean over all tasks but the last of the lowest score each had after it was learned",
           lambda s: min_accuracy_terms(s.history), ("two tasks", "history")),
    Metric("wc_acc", "Worst-case accuracy (WC-ACC)",
           "accuracy on the last task weighed with min-ACC; De Lange et al. 2023 (%)",
           "R[T-1][T-1] / T + (1 - 1/T) `min_acc` (De Lange et al. 2023)",
           lambda s: [worst_case_accuracy(s.history)], ("two tasks", "history")),
    Metric("stability_gap", "Stability gap",
           "accuracy on a task when the next one begins minus the lowest within that one, mean over all tasks but the "
           "last; De Lange et al. 2023 (points)",
           "mean_{i<T-1} (a_m(i) - min_n a_n(i)): m the last point of task i, n those of task i+1",
           stability_gaps, ("two tasks", "points"), "lower", ends=(-100.0, 100.0)),
    Metric("recovery", "Recovery",
           "iterations from the beginning of the next task until a task is back, after its lowest accuracy, at 95 % of "
           "the highest that it reaches later within that task, mean over all tasks but the last",
           "mean_{i<T-1} of the first n after the minimum with a_n(i) >= 0.95 max of those after it, in iterations",
           recovery_terms, ("two tasks", "points"), "lower", ends=(0.0, np.inf)),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _TABLE}


# ---- values


def intransigence(R: np.ndarray, reference: np.ndarray) -> float:
    """I = mean_i (a_i - R[i, i]): how much worse a task is learned than it could be; negative where it is better.

    Chaudhry et al. 2018, section 3. The final score of joint training on all tasks is no such reference: in class-IL
    it is lower, since classes compete that task i was never measured with.

    Args:
        reference: a (T,), percent: a_i on task i of a network trained on tasks 0..i together and scored as R[i, i] is.
    """
    return _mean(np.asarray(reference) - np.diag(R))


def summarise(
    R: np.ndarray, baseline: np.ndarray | None = None, history: History = (), steps: Sequence[int] = ()
) -> dict[str, float]:
    """All metrics that are defined for this R, by their short names.

    A stopped run (rows missing at the end) is summarised over the tasks it trained; a joint run (one row, the last)
    has ACC only. With one task there is no transfer and no forgetting.

    Args:
        R: score matrix (T, T), percent.
        baseline: scores (T,) of the untrained network, for forward transfer.
        history: evaluations during tasks included, for the metrics that look at them.
        steps: iterations of the history, where it is of points.
    """
    R = np.asarray(R, dtype=np.float64)
    rows = np.flatnonzero(~np.isnan(R).all(axis=1))
    values = {"acc": float(np.nanmean(R[rows[-1]]))} if rows.size else {}
    values |= {name: _mean(found) for name, found in terms(R, baseline, history, steps).items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def excluded(
    R: np.ndarray, baseline: np.ndarray | None = None, history: History = (), steps: Sequence[int] = ()
) -> dict[str, int]:
    """How many undefined terms `summarise` left out of a metric, those with none not listed."""
    counts = {name: int(np.isnan(found).sum()) for name, found in terms(R, baseline, history, steps).items()}
    return {name: count for name, count in counts.items() if count}


def trained_part(R: np.ndarray) -> np.ndarray:
    """R over the n tasks that were trained one after the other, (n, n); (0, 0) where the first rows are missing (joint
    training, a run that started at a later task).
    """
    R = np.asarray(R, dtype=np.float64)
    known = ~np.isnan(R)
    rows = np.flatnonzero(known.any(axis=1))
    # No score is expected before the first task that has one at all.
    first = int(known.any(axis=0).argmax())
    n = rows[-1] + 1 if rows.size and known[first : rows[-1] + 1].any(axis=1).all() else 0
    return R[:n, :n]


def seen_means(R: np.ndarray) -> np.ndarray:
    """(T,) mean of each row over the tasks up to its own; nan where a score is missing, but for tasks without any."""
    R = np.asarray(R, dtype=np.float64)
    scored = ~np.isnan(R).all(axis=0)
    seen = [R[t, : t + 1][scored[: t + 1]] for t in range(len(R))]
    return np.array([row.mean() if row.size else np.nan for row in seen])


def reason(
    name: str, R: np.ndarray, baseline: np.ndarray | None = None, history: History = (), steps: Sequence[int] = ()
) -> str:
    """Why a metric is not defined, in words; arguments as of `summarise`."""
    scores = Scores(trained_part(R), baseline, history, steps)
    if np.isnan(R).all():
        return "nothing evaluated yet"
    missing = [NEEDS[need] for need in METRICS[name].needs]
    return next((why for is_there, why in missing if not is_there(scores)), "some scores are missing")


def spread(values: Sequence[float]) -> tuple[float, float, float, int]:
    """Mean over runs, sample standard deviation, half width of Student's t 95 % interval, number of runs. One run has
    no deviation, and fewer than `FEWEST` have no interval: nan.
    """
    n, half = len(values), float("nan")
    std = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    if n >= FEWEST:
        from scipy.stats import t

        half = float(t.ppf(0.975, n - 1)) * std / n**0.5
    return float(np.mean(values)), std, half, n


def ends(metric: str, score: str = "accuracy") -> tuple[float, float]:
    """Smallest and largest value that a metric can have.

    Args:
        metric: a name of `METRICS`.
        score: what R holds: R^2 has no lower end, and differences of it have no end at all.
    """
    entry = METRICS[metric]
    low, high = entry.ends
    if score == "r2":
        low, high = -np.inf, high if "(%)" in entry.definition and high == 100 else np.inf
    return low, high


def interval(metric: str, mean: float, half: float, score: str = "accuracy") -> tuple[float, float]:
    """Ends of an interval, cut to the values that the metric can have; nan where it is withheld.

    Args:
        metric, score: as of `ends`.
        mean, half: of `spread`.
    """
    low, high = ends(metric, score)
    return float(np.clip(mean - half, low, high)), float(np.clip(mean + half, low, high))


def plus_minus(mean: float, std: float) -> str:
    """'72.00 ± 2.83', or the mean alone where there is no deviation."""
    return f"{mean:.2f}" if np.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def markdown_table() -> str:
    """`METRICS` as the table of docs/results.md."""
    rows = [("name", "definition", "better", "needs", "column of mean_accs.csv"), ("---",) * 5]
    rows += [
        (
            f"`{m.name}`",
            m.formula,
            m.better,
            ", ".join(need for need in m.needs if need != "rows"),
            f"`{m.column}`" if m.column else "",
        )
        for m in METRICS.values()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def terms(
    R: np.ndarray, baseline: np.ndarray | None = None, history: History = (), steps: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """Terms of every metric whose needs are there; arguments as of `summarise`."""
    scores = Scores(trained_part(R), baseline, history, steps)
    if not (len(scores.R) or steps):  # joint training, of which whole evaluations have one row
        return {}
    there = {need for need, (is_there, _) in NEEDS.items() if is_there(scores)}
    chosen = [metric for metric in METRICS.values() if there.issuperset(metric.needs)]
    return {metric.name: np.asarray(metric.terms(scores), dtype=np.float64) for metric in chosen}


def _mean(values: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _known(choose: Callable, values: Sequence[float] | np.ndarray) -> float:
    """The largest or smallest (`choose`) of the values that are defined."""
    return choose((float(v) for v in values if not np.isnan(v)), default=float("nan"))
