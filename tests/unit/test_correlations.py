"""Rank correlations against scipy and statsmodels, what they must ignore, and how often their intervals hold."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import rankdata, spearmanr

from rankscope.correlations import correlate, partial_rank_correlation, rank_correlation

RNG = np.random.default_rng(0)
Z = RNG.normal(size=40)
X, Y = Z + RNG.normal(size=40), -Z + RNG.normal(size=40)


def test_what_is_not_finite_has_no_rank():
    assert rank_correlation(np.array([1.0, np.nan, 3.0]), np.array([1.0, 2.0, 3.0])) is None


def test_plain_is_scipys():
    assert rank_correlation(X, Y) == pytest.approx(spearmanr(X, Y).statistic)
    tied = np.round(X)
    assert rank_correlation(tied, Y) == pytest.approx(spearmanr(tied, Y).statistic)


def test_partial_is_the_correlation_of_residuals_of_ranks():
    design = sm.add_constant(rankdata(Z))
    rests = [sm.OLS(rankdata(values), design).fit().resid for values in (X, Y)]
    expected = np.corrcoef(*rests)[0, 1]
    assert partial_rank_correlation(X, Y, Z) == pytest.approx(expected)
    assert abs(expected) < abs(rank_correlation(X, Y)) / 2  # Z made most of it


def test_only_the_order_counts():
    assert rank_correlation(np.exp(X), Y**3) == pytest.approx(rank_correlation(X, Y))
    assert partial_rank_correlation(X, Y, np.exp(Z)) == pytest.approx(partial_rank_correlation(X, Y, Z))


def test_what_does_not_vary_explains_nothing():
    assert rank_correlation(np.ones(5), np.arange(5.0)) is None
    assert partial_rank_correlation(np.arange(5.0), np.ones(5), np.arange(5.0)) is None
    assert partial_rank_correlation(np.arange(6.0), np.array([1, 0, 2, 5, 3, 4.0]), np.arange(6.0)) is None
    assert correlate("aabb", [1, 1, 2, 2], [1, 2, 3, 4], 0.95) is None  # two candidates


def test_seeds_of_one_candidate_count_once():
    alone = correlate(range(8), range(8), [1, 0, 2, 4, 3, 5, 7, 6], 0.95)
    values = np.array([1, 0, 2, 4, 3, 5, 7, 6.0])
    noise = np.array([0.1, -0.1])
    seeds = correlate(
        [i for i in range(8) for _ in range(2)],
        [float(i) for i in range(8) for _ in range(2)],
        [float(v + e) for v in values for e in noise],
        0.95,
    )
    assert (alone.num_runs, seeds.num_runs, seeds.num_candidates) == (8, 16, 8)
    assert (seeds.low, seeds.high) == pytest.approx((alone.low, alone.high))


def test_few_candidates_have_a_wide_interval_or_none():
    assert correlate(range(4), [1, 2, 3, 4], [1, 2, 3, 4], 0.95).low is None
    five = correlate(range(5), [1, 2, 3, 4, 5], [1, 3, 2, 4, 5], 0.95)
    many = correlate(range(50), range(50), [i ^ 1 for i in range(50)], 0.95)
    assert five.high - five.low > 0.9 and many.high - many.low < 0.1
    perfect = correlate(range(6), range(6), range(6), 0.95)
    assert perfect.value == pytest.approx(1.0) and perfect.low < 0.7
    equal = correlate(range(6), range(6), [1, 0, 2, 3, 5, 4], 0.95, given=[3, 1, 2, 5, 4, 0])
    plain = correlate(range(6), range(6), [1, 0, 2, 3, 5, 4], 0.95)
    widths = [np.arctanh(one.high) - np.arctanh(one.low) for one in (plain, equal)]
    assert equal.num_candidates == 6 and widths[1] > 1.2 * widths[0]


@pytest.mark.parametrize("count", [5, 6, 9, 40])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_interval_holds_its_own_value(count, sign):
    """Also where the order is perfect, where Fisher's transformation has no end."""
    ranks = np.arange(float(count))
    found = correlate(range(count), ranks, sign * ranks, 0.95)
    assert found.value == pytest.approx(sign)
    assert found.low <= found.value <= found.high
    inner, outer = sorted((found.low, found.high), key=abs)
    assert outer == found.value and abs(inner) < 1.0, "it ends at the value and stays wide"
    rng = np.random.default_rng(count)
    third = np.where(rng.permutation(count) < count // 2, ranks, 0.0)
    equal = correlate(range(count), ranks, sign * ranks, 0.95, given=third)
    assert abs(equal.value) <= 1.0 and (equal.low is None or equal.low <= equal.value <= equal.high)


def test_what_is_not_finite_is_left_out():
    found = correlate(range(7), [1, 2, 3, 4, 5, 6, np.nan], [1, 3, 2, 4, 6, 5, 9], 0.9)
    assert found.num_runs == 6


@pytest.mark.parametrize("rho", [0.0, 0.6])
@pytest.mark.parametrize("count", [8, 25])
def test_intervals_hold_about_as_often_as_they_say(rho, count):
    """Of a normal pair the rank correlation's true value is known: 6 / pi asin(rho / 2)."""
    rng, truth, hits = np.random.default_rng(1), 6 / np.pi * np.arcsin(rho / 2), 0
    for _ in range(300):
        x = rng.normal(size=count)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=count)
        found = correlate(range(count), x, y, 0.9)
        hits += found.low <= truth <= found.high
    assert 0.85 <= hits / 300 <= 0.98


def test_the_interval_is_bonett_and_wrights():
    found = correlate(range(8), range(8), [1, 0, 2, 3, 5, 4, 7, 6], 0.95)
    half = 1.959964 * ((1.0 + found.value**2 / 2.0) / 5.0) ** 0.5
    ends = np.tanh([np.arctanh(found.value) - half, np.arctanh(found.value) + half])
    assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-6)
