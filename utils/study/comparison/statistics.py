"""Statistics of a comparison: intervals, paired tests with Holm's correction, equivalence, two factors, ranks.

All of it is scipy's, statsmodels' or scikit-posthocs'; what is decided here is which test, on what, and when there is
none. One run is the unit. Functions over a last axis take any number of studies at once. The libraries are imported
where they are used.

References: Holm 1979; Pratt 1959 (zeros of Wilcoxon's test); Schuirmann 1987 (two one-sided tests); Efron 1987 (BCa);
Demsar 2006 (ranks over data sets, critical difference).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import nan

import numpy as np

from palimpsest.utils.metrics import FEWEST

LEVEL = 0.05  # of every test; intervals cover 1 - LEVEL
FEWEST_BOOTSTRAP = 10  # runs from which a BCa interval stands beside Student's t
MOST_EXACT = 25  # pairs up to which Wilcoxon's test is exact
FEW_ORDERS = 5  # class orders below which their variance is hardly known
RESAMPLES = 9999
DIGITS = 9  # to which differences are rounded: what is equal but for the last bits is a tie


@dataclass(frozen=True)
class Spread:
    """Values of one entry.

    Attributes:
        n: runs.
        mean, sd: their mean and sample standard deviation (nan of one run).
        low, high: ends of Student's t 95 % interval of the mean, nan below `FEWEST` runs.
        bootstrap: ends of the BCa bootstrap interval, None below `FEWEST_BOOTSTRAP` runs or where all are equal.
    """

    n: int
    mean: float
    sd: float
    low: float = nan
    high: float = nan
    bootstrap: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pair:
    """Two entries over the runs that share class order and seeds; of the differences a - b.

    Attributes:
        a, b: names.
        spread: of the differences.
        t, wilcoxon: p values of the paired t test and of Wilcoxon's signed rank test, nan where there is no test:
            fewer than `FEWEST` pairs, or differences that do not vary at all.
        t_holm, wilcoxon_holm: the same after Holm's correction over all pairs of the table.
        effect: d_z = mean / sd.
        margin, same: points, and the p value of "the means differ by `margin` or more"; nan without a margin.
    """

    a: str
    b: str
    spread: Spread
    t: float = nan
    wilcoxon: float = nan
    t_holm: float = nan
    wilcoxon_holm: float = nan
    effect: float = nan
    margin: float = nan
    same: float = nan


@dataclass(frozen=True)
class TwoFactors:
    """Seeds and class orders as two random factors: variances of a crossed layout with one run per cell.

    Attributes:
        orders, seeds: how many there are.
        order, seed, rest: variances in squared points, that of the orders, that of the seeds, and what both leave.
        naive, error: standard error of the mean if all runs were independent, and that of the two factors.
    """

    orders: int
    seeds: int
    order: float
    seed: float
    rest: float
    naive: float
    error: float


@dataclass(frozen=True)
class Ranks:
    """Entries over streams, rank 1 the best.

    Attributes:
        streams: how many.
        ranks: entry -> mean rank, the best first.
        statistic, p: Friedman's chi squared and its p value, nan of two entries.
        nemenyi, wilcoxon: (a, b) -> p value of Nemenyi's test, and of Wilcoxon's over streams after Holm's correction.
        critical: Nemenyi's critical difference of mean ranks at `LEVEL`.
    """

    streams: int
    ranks: dict[str, float]
    statistic: float
    p: float
    nemenyi: dict[tuple[str, str], float]
    wilcoxon: dict[tuple[str, str], float]
    critical: float


def student_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, sample standard deviation and ends of Student's t 95 % interval over the last axis of (..., n), n > 1."""
    from scipy import stats

    n, mean, sd = values.shape[-1], values.mean(-1), values.std(-1, ddof=1)
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * sd / n**0.5
    return mean, sd, mean - half, mean + half


def summarise(values: Sequence[float]) -> Spread:
    """Mean, spread and intervals of one entry's values, or of differences."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < FEWEST:
        return Spread(len(array), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else nan)
    bootstrap = bca_interval(array) if len(array) >= FEWEST_BOOTSTRAP and np.ptp(array) > 0 else None
    return Spread(len(array), *map(float, student_interval(array)), bootstrap)


def bca_interval(values: np.ndarray) -> tuple[float, float]:
    """Ends of the bias-corrected and accelerated bootstrap's 95 % interval of the mean of (n,); equal values give equal
    ends.
    """
    from scipy import stats

    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, confidence_level=1 - LEVEL, method="BCa",
                            rng=np.random.default_rng(0))  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_t(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """p values of the paired t test over the last axis of (..., n)."""
    from scipy import stats

    return stats.ttest_rel(a, b, axis=-1).pvalue


def signed_rank(differences: np.ndarray) -> float:
    """p value of Wilcoxon's signed rank test of (n,) differences, zeros by Pratt; exact up to `MOST_EXACT` pairs."""
    from scipy import stats

    if len(differences) > MOST_EXACT:
        return float(stats.wilcoxon(differences, zero_method="pratt", method="asymptotic").pvalue)
    sizes = np.abs(differences)
    if 0 in sizes or len(np.unique(sizes)) < len(sizes):
        return _exact_with_ties(differences)
    return float(stats.wilcoxon(differences, zero_method="pratt", method="exact").pvalue)


def _exact_with_ties(differences: np.ndarray) -> float:
    """What scipy's exact test does not have: the sum of the positive ranks over all 2^n signs, ties with mean ranks,
    ranks of zeros dropped. Twice the ranks are whole numbers, so the distribution is a product of polynomials.
    """
    from scipy import stats

    ranks = (2 * stats.rankdata(np.abs(differences))).astype(int)[differences != 0]
    ways = np.ones(1)
    for rank in ranks:
        ways = np.convolve(ways, np.eye(1, rank + 1, 0)[0] + np.eye(1, rank + 1, rank)[0])
    positive = int(ranks[differences[differences != 0] > 0].sum())
    smaller = min(positive, ranks.sum() - positive)
    return float(min(1.0, 2 * ways[: smaller + 1].sum() / ways.sum()))


def equivalence(a: np.ndarray, b: np.ndarray, margin: float) -> float:
    """p value of two one-sided paired t tests of (n,): small where the means differ by less than `margin` points."""
    from statsmodels.stats.weightstats import ttost_paired

    return float(ttost_paired(a, b, -margin, margin)[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction over the tests that there are; nan, of which there is none, stays."""
    from statsmodels.stats.multitest import multipletests

    out, array = np.full(len(p_values), nan), np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(array)
    if tested.any():
        out[tested] = multipletests(array[tested], LEVEL, method="holm")[1]
    return out.tolist()


def compare_pair(a: str, b: str, x: Sequence[float], y: Sequence[float], margin: float = nan) -> Pair:
    """Two entries over n pairs of runs, without the correction that needs all pairs.

    Args:
        a, b: names.
        x, y: (n,) values of a and of b, in the same order of pairs.
        margin: points, for the statement of equivalence.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    differences = np.round(x - y, DIGITS)
    pair = Pair(a, b, summarise(differences), margin=margin)
    if len(differences) < FEWEST or np.ptp(differences) == 0:
        return pair
    same = equivalence(differences, np.zeros_like(differences), margin) if margin > 0 else nan
    effect = pair.spread.mean / pair.spread.sd
    t = float(paired_t(differences, np.zeros_like(differences)))
    return replace(pair, t=t, wilcoxon=signed_rank(differences), effect=effect, same=same)


def compare_pairs(values: Mapping[str, Mapping[object, float]], margin: float = nan) -> list[Pair]:
    """All pairs of entries that share a run at least, corrected over all of them.

    Args:
        values: entry -> what a pair shares (class order, seeds) -> value.
        margin: points within which two entries are called the same; nan for no such statement.
    """
    pairs = []
    for a, b in combinations(values, 2):
        shared = [key for key in values[a] if key in values[b]]
        if shared:
            pairs.append(compare_pair(a, b, *([values[name][key] for key in shared] for name in (a, b)), margin))
    t, wilcoxon = holm([pair.t for pair in pairs]), holm([pair.wilcoxon for pair in pairs])
    return [replace(p, t_holm=t[k], wilcoxon_holm=wilcoxon[k]) for k, p in enumerate(pairs)]


def two_factors(values: np.ndarray) -> TwoFactors:
    """Variances of class orders and of seeds.

    Args:
        values: (orders, seeds), at least 2 x 2, one run in every cell.
    """
    import pandas
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    orders, seeds = values.shape
    places = np.indices(values.shape).reshape(2, -1)
    frame = pandas.DataFrame({"value": values.ravel(), "order": places[0], "seed": places[1]})
    squares = anova_lm(ols("value ~ C(order) + C(seed)", frame).fit())["mean_sq"]
    rest = float(squares["Residual"])
    order = max(0.0, (float(squares["C(order)"]) - rest) / seeds)
    seed = max(0.0, (float(squares["C(seed)"]) - rest) / orders)
    error = (order / orders + seed / seeds + rest / values.size) ** 0.5
    return TwoFactors(orders, seeds, order, seed, rest, float(values.std(ddof=1)) / values.size**0.5, error)


def rank_entries(scores: Mapping[str, Sequence[float]], better: str = "higher") -> Ranks:
    """Mean ranks over streams, Friedman's test and what follows it.

    Args:
        scores: entry -> (streams,) mean values, two entries and two streams at least.
        better: 'higher' or 'lower'.
    """
    import pandas
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy import stats

    names, table = list(scores), np.round(np.array(list(scores.values())).T, DIGITS)  # (streams, entries)
    n, k = table.shape
    ranks = stats.rankdata(-table if better == "higher" else table, axis=1)
    mean = dict(sorted(zip(names, ranks.mean(0).tolist(), strict=True), key=lambda item: item[1]))
    statistic = p = nan
    if k > 2 and (ranks != ranks[:, :1]).any():
        statistic, p = map(float, stats.friedmanchisquare(*table.T))
    matrix = posthoc_nemenyi_friedman(pandas.DataFrame(ranks, columns=names))
    pairs = list(combinations(mean, 2))
    columns = dict(zip(names, table.T, strict=True))
    signed = [signed_rank(d) if (d := columns[a] - columns[b]).any() else 1.0 for a, b in pairs]
    critical = float(stats.studentized_range.ppf(1 - LEVEL, k, np.inf)) * (k * (k + 1) / (12 * n)) ** 0.5
    nemenyi = {(a, b): float(matrix.loc[a, b]) for a, b in pairs}
    return Ranks(n, mean, statistic, p, nemenyi, dict(zip(pairs, holm(signed), strict=True)), critical)
