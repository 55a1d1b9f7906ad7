"""Statistics of comparisons: equal to scipy's and statsmodels', to numbers worked by hand, and what they promise."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from palimpsest.utils.study.comparison import statistics as ours

# acc of er with 200 examples on seq-digits after one epoch a task, seeds 0 to 39: what real runs spread like.
ER = np.array([
    58.79, 51.69, 61.61, 65.46, 54.92, 51.0, 45.67, 48.05, 42.81, 41.05, 48.86, 64.9, 53.69, 48.34, 50.7, 54.52, 60.93,
    74.05, 40.74, 63.61, 33.38, 63.63, 49.0, 65.87, 53.83, 46.12, 43.59, 62.32, 69.31, 60.96, 48.52, 51.92, 54.54,
    59.46, 75.11, 46.12, 57.85, 43.35, 53.86, 56.73,
])  # fmt: skip
OTHER = ER[::-1] + 1.5
STUDIES = 2000


def test_intervals_are_students_and_bcas():
    for n in (3, 5, 9, 10, 40):
        spread = ours.summarise(ER[:n])
        wanted = stats.ttest_1samp(ER[:n], 0).confidence_interval(0.95)
        assert (spread.low, spread.high) == pytest.approx((wanted.low, wanted.high))
        assert (spread.n, spread.mean, spread.sd) == (
            n,
            pytest.approx(ER[:n].mean()),
            pytest.approx(ER[:n].std(ddof=1)),
        )
        assert (spread.bootstrap is None) == (n < 10)
    found = stats.bootstrap((ER,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert spread.bootstrap == pytest.approx((found.low, found.high))


def test_too_few_and_equal_values():
    one, two = ours.summarise([3.0]), ours.summarise([3.0, 4.0])
    assert math.isnan(one.sd) and math.isnan(two.low) and two.sd == pytest.approx(0.5**0.5)
    equal = ours.summarise([7.0] * 12)
    assert (equal.low, equal.high, equal.sd, equal.bootstrap) == (7.0, 7.0, 0.0, None)


@pytest.mark.parametrize("n", [3, 5, 12, 25, 40])
def test_paired_tests_equal_the_libraries(n):
    a, b = ER[:n], OTHER[:n]
    pair = ours.compare_pair("a", "b", a, b, margin=20.0)
    assert pair.t == pytest.approx(stats.ttest_rel(a, b).pvalue)
    d = np.round(a - b, 9)
    assert (0 in d) + (len(set(abs(d))) < n) == 0 or n == 40
    method = "exact" if n <= 25 else "asymptotic"
    assert pair.wilcoxon == pytest.approx(stats.wilcoxon(d, zero_method="pratt", method=method).pvalue)
    assert pair.same == pytest.approx(ttost_paired(a, b, -20, 20)[0])
    one_sided = [stats.ttest_1samp(d, m, alternative=s).pvalue for m, s in ((-20, "greater"), (20, "less"))]
    assert pair.same == pytest.approx(max(one_sided))


def test_four_differences_by_hand():
    pair = ours.compare_pair("a", "b", [11.0, 22.0, 33.0, 44.0], [10.0, 20.0, 30.0, 40.0])  # 1, 2, 3, 4
    assert pair.spread.mean == 2.5 and pair.spread.sd == pytest.approx((5 / 3) ** 0.5)
    assert pair.effect == pytest.approx(2.5 / (5 / 3) ** 0.5)
    half = 3.182446 * (5 / 3) ** 0.5 / 2  # t of 3 degrees of freedom
    assert (pair.spread.low, pair.spread.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)
    assert pair.wilcoxon == 2 / 2**4 and pair.t == pytest.approx(2 * stats.t.sf(2 * 2.5 / (5 / 3) ** 0.5, 3))
    assert math.isnan(pair.same)


def test_ranks_of_zeros_and_ties_by_hand():
    # Pratt: the zero takes rank 1 and goes; ranks 2, 3, 4, all positive: 2 of 8 signs are as extreme.
    assert ours.signed_rank(np.array([0.0, 1.0, 2.0, 3.0])) == 2 / 8
    # Mean ranks 2, 2, 2, 4: negative sum 2; sums up to 2 have 1 + 3 of 16 signs, on both sides.
    assert ours.signed_rank(np.array([1.0, 1.0, -1.0, 2.0])) == 8 / 16


def test_exact_with_ties_equals_all_signs():
    rng = np.random.default_rng(1)
    for n in (3, 6, 9):
        for _ in range(5):
            d = rng.integers(-3, 4, n).astype(float)
            d[0] = 2.0
            signs = np.array(list(product((-1, 1), repeat=n)))
            ranks = stats.rankdata(abs(d)) * (d != 0)
            sums = (ranks * (signs > 0)).sum(1)
            own = (ranks * (d > 0)).sum()
            wanted = min(1.0, 2 * min((sums <= own).mean(), (sums >= own).mean()))
            assert ours.signed_rank(d) == pytest.approx(wanted)
            assert ours.signed_rank(d) == pytest.approx(stats.wilcoxon(
                d, zero_method="pratt", method=stats.PermutationMethod(n_resamples=2**n)).pvalue)  # fmt: skip


def test_differences_that_do_not_vary_have_no_test():
    for shift in (0.0, 0.1):
        pair = ours.compare_pair("a", "b", ER[:5] + shift, ER[:5], margin=1.0)  # 0.1 differs in its last bits
        assert pair.spread.sd == 0 and pair.spread.mean == pytest.approx(shift)
        assert all(map(math.isnan, (pair.t, pair.wilcoxon, pair.effect, pair.same)))
    pair = ours.compare_pair("a", "b", ER[:2], OTHER[:2], margin=1.0)
    assert math.isnan(pair.t) and math.isnan(pair.spread.low)


def test_holm_over_the_tests_that_there_are():
    assert ours.holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert all(map(math.isnan, ours.holm([math.nan])))
    values = {name: dict(enumerate(ER[k : k + 5])) for k, name in enumerate("abc")}
    values["c"] = {9: 1.0}  # shares no run with the others
    (pair,) = ours.compare_pairs(values)
    assert (pair.a, pair.b, pair.spread.n) == ("a", "b", 5) and pair.t_holm == pair.t
    values["c"] = {4: 50.0, 0: 40.0, 3: 45.0, 7: 1.0}
    pairs = ours.compare_pairs(values)
    assert [(p.a + p.b, p.spread.n) for p in pairs] == [("ab", 5), ("ac", 3), ("bc", 3)]
    assert pairs[1].spread.mean == pytest.approx(np.mean([ER[4] - 50, ER[0] - 40, ER[3] - 45]))
    order = np.argsort([p.t for p in pairs])
    wanted = np.maximum.accumulate([pairs[k].t * (3 - i) for i, k in enumerate(order)]).clip(max=1)
    assert [pairs[k].t_holm for k in order] == pytest.approx(list(wanted))


def test_two_factors_by_hand():
    found = ours.two_factors(np.array([[1.0, 2.0], [5.0, 6.0]]))
    # Mean squares: orders 2 (2^2 + 2^2) = 16, seeds 2 (0.5^2 + 0.5^2) = 1, the rest 0.
    assert (found.order, found.seed, found.rest) == pytest.approx((8.0, 0.5, 0.0), abs=1e-9)
    assert found.error == pytest.approx((8 / 2 + 0.5 / 2) ** 0.5)
    assert found.naive == pytest.approx(np.std([1, 2, 5, 6], ddof=1) / 2)
    assert (found.orders, found.seeds) == (2, 2)


def test_two_factors_are_found_again():
    rng = np.random.default_rng(0)
    layout = 5 * rng.normal(size=(40, 1)) + 2 * rng.normal(size=(1, 40)) + rng.normal(size=(40, 40))
    found = ours.two_factors(layout)
    assert found.order**0.5 == pytest.approx(5, rel=0.25) and found.seed**0.5 == pytest.approx(2, rel=0.25)
    assert found.rest == pytest.approx(1, rel=0.1) and found.error > 4 * found.naive


def test_ranks_over_streams():
    scores = {name: ER[k * 10 : k * 10 + 10] + 12 * k for k, name in enumerate("abcd")}
    found = ours.rank_entries(scores)
    wanted = stats.friedmanchisquare(*scores.values())
    assert (found.statistic, found.p) == pytest.approx((wanted.statistic, wanted.pvalue))
    table = np.array(list(scores.values()))
    means = stats.rankdata(-table, axis=0).mean(1)
    assert found.ranks == pytest.approx(dict(zip("abcd", means, strict=True))) and list(found.ranks)[0] == "d"
    q = (means[0] - means[3]) / (4 * 5 / (6 * 10)) ** 0.5
    assert found.nemenyi["d", "a"] == pytest.approx(stats.studentized_range.sf(q * 2**0.5, 4, np.inf))
    signed = [stats.wilcoxon(scores[a] - scores[b], method="exact").pvalue for a, b in combinations(found.ranks, 2)]
    assert list(found.wilcoxon.values()) == pytest.approx(ours.holm(signed))
    assert ours.rank_entries(scores, "lower").ranks == pytest.approx({n: 5 - r for n, r in found.ranks.items()})


def test_critical_difference_of_the_literature():
    # Demsar 2006, 3.2.2: four classifiers on 14 data sets, q = 2.569, critical difference 1.25.
    scores = {name: np.arange(14.0) + k for k, name in enumerate("abcd")}
    assert ours.rank_entries(scores).critical == pytest.approx(1.25, abs=0.005)
    two = ours.rank_entries({"a": [1.0, 2.0], "b": [1.0, 3.0]})
    assert math.isnan(two.p) and two.ranks == {"b": 1.25, "a": 1.75} and two.wilcoxon["b", "a"] == 1.0
    equal = ours.rank_entries(dict.fromkeys("abc", [1.0, 2.0]))
    assert set(equal.ranks.values()) == {2.0} and math.isnan(equal.p)


def equal_studies(n: int, studies: int, seed: int, methods: int = 2) -> np.ndarray:
    """(methods, studies, n) scores of methods that are equal, with the spread of er."""
    return np.random.default_rng(seed).normal(ER.mean(), ER.std(ddof=1), (methods, studies, n))


def at_most_the_level(alarms: np.ndarray) -> bool:
    """Whether studies speak for at most 5 % of false alarms. The t test has 5.00 % (a test below), of which 2,000
    studies show 4 to 6 %: a strict bound would be that of a lucky seed.
    """
    return stats.binomtest(int(alarms.sum()), alarms.size, ours.LEVEL, "greater").pvalue > 0.01


@pytest.mark.parametrize("n", [3, 5, 10])
def test_two_equal_methods_and_the_coverage_of_intervals(n):
    a, b = equal_studies(n, STUDIES, 0)
    assert at_most_the_level(ours.paired_t(a, b) < ours.LEVEL)
    for values, truth in ((a, ER.mean()), (a - b, 0.0)):
        _, _, low, high = ours.student_interval(values)
        assert 0.935 <= ((low <= truth) & (truth <= high)).mean() <= 0.965


def test_the_level_is_five_percent():
    a, b = equal_studies(5, 100_000, 0)
    assert (ours.paired_t(a, b) < ours.LEVEL).mean() == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("n", [5, 10])
def test_er_against_er(n):
    """Real scores: two sets of n of the 40 runs, as if they were two methods."""
    drawn = np.random.default_rng(0).permuted(np.tile(ER, (STUDIES, 1)), axis=1)[:, : 2 * n]
    assert at_most_the_level(ours.paired_t(drawn[:, :n], drawn[:, n:]) < ours.LEVEL)
    again = np.random.default_rng(0).choice(ER, (10 * STUDIES, n))
    _, _, low, high = ours.student_interval(again)
    assert 0.935 <= ((low <= ER.mean()) & (ER.mean() <= high)).mean() <= 0.965


def test_a_table_of_five_equal_methods_raises_no_more_alarms_than_one_pair():
    scores = equal_studies(5, STUDIES, 1, methods=5)
    p = np.stack([ours.paired_t(scores[i], scores[j]) for i, j in combinations(range(5), 2)], axis=1)
    assert (p.min(1) < ours.LEVEL).mean() > 0.25  # what an uncorrected table would claim
    corrected = p.min(1) * p.shape[1]  # the first step of Holm
    assert min(ours.holm(p[0].tolist())) == pytest.approx(min(corrected[0], 1))
    assert at_most_the_level(corrected < ours.LEVEL)


def test_sameness_is_claimed_as_often_as_it_may_be():
    """Two methods exactly a margin apart: 'the same within it' is wrong, and said in at most 5 % of studies."""
    a, b = equal_studies(10, 400, 0)
    claims = np.array([ours.equivalence(x, y + 12.0, 12.0) < ours.LEVEL for x, y in zip(a, b, strict=True)])
    assert at_most_the_level(claims)
    assert ours.equivalence(a[0], a[0] + 0.1 * b[0] / 100, 12.0) < 1e-6
