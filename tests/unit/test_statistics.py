"""Closed forms, independent references (scipy, statsmodels) and the awkward cases of rankscope.statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rankscope.spreads import (
    SeedVariance,
    Spread,
    alike,
    moderated,
    own_seed_variance,
    pooled_pair_variances,
    pooled_seed_variance,
    spread,
    spread_unlike,
)
from rankscope.statistics import (
    cluster_differences,
    compared,
    estimate,
    further_seeds,
    holm,
    items_factor,
    mcnemar_exact,
    ratio_differences,
    smallest_difference,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# One seed: the interval is Student's ---------------------------------------------------------------------------------


def test_one_seed_gives_the_paired_t_interval() -> None:
    differences = rng().normal(0.3, 1.0, size=(1, 40))
    result = estimate(spread([differences], is_bounded=False), None, 0.95)
    expected = stats.ttest_1samp(differences[0], 0.0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (result.num_items, result.num_seeds) == (40, 1)


def test_mean_over_tasks_weighs_tasks_alike_and_adds_their_variances() -> None:
    first, second = rng(1).normal(size=(1, 10)), rng(2).normal(1.0, 2.0, size=(1, 90))
    result = spread([first, second], is_bounded=False)
    assert result.value == pytest.approx((first.mean() + second.mean()) / 2)
    assert result.item_variance == pytest.approx((first.var(ddof=1) / 10 + second.var(ddof=1) / 90) / 4)
    assert result.num_items == 100
    welch = stats.ttest_ind(first[0], -second[0], equal_var=False)  # same degrees of freedom as Welch's test
    assert result.item_df == pytest.approx(welch.df)


# Several seeds: the two-way table ------------------------------------------------------------------------------------


def test_components_are_those_of_the_analysis_of_variance() -> None:
    table = rng(3).normal(size=(4, 25)) + rng(4).normal(size=(4, 1)) + rng(5).normal(size=25)
    result = spread([table], is_bounded=False)
    total = ((table - table.mean()) ** 2).sum()
    seeds = 25 * ((table.mean(axis=1) - table.mean()) ** 2).sum()
    items = 4 * ((table.mean(axis=0) - table.mean()) ** 2).sum()
    residual_mean_square = (total - seeds - items) / (3 * 24)
    own = own_seed_variance(result)
    assert result.residual_variance == pytest.approx(residual_mean_square / 25)
    assert own == SeedVariance(pytest.approx(seeds / 3 / 25), pytest.approx(residual_mean_square / 25), 3)
    assert own.variance == pytest.approx((seeds / 3 - (1 - 1 / 9) * residual_mean_square) / 25)


def test_components_recover_the_truth() -> None:
    generator, found = rng(6), []
    for _ in range(400):
        table = 0.3 * generator.normal(size=(3, 1)) + generator.normal(size=50) + generator.normal(size=(3, 50))
        found.append(spread([table], is_bounded=False))
    seeds = [own_seed_variance(item) for item in found]
    assert np.mean([item.item_variance for item in found]) == pytest.approx((1 + 1 / 3) / 50, rel=0.03)
    assert np.mean([item.between - item.residual for item in seeds]) == pytest.approx(0.09, rel=0.1)


def test_with_many_items_only_the_seeds_count_and_the_interval_is_students_over_them() -> None:
    means = np.array([[0.1], [0.2], [0.6]])
    table = means + np.zeros((3, 50))
    item = spread([table], is_bounded=False)
    result = estimate(item, own_seed_variance(item), 0.9)
    expected = stats.ttest_1samp(means[:, 0], 0.0).confidence_interval(0.9)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_seed_variance_is_pooled_over_arms_by_degrees_of_freedom() -> None:
    arms = [spread([rng(seed).normal(size=(count, 30))], is_bounded=False) for seed, count in enumerate((2, 3, 5, 1))]
    pooled = pooled_seed_variance(arms)
    own = [np.var(arm.seed_means, ddof=1) for arm in arms[:3]]
    # An arm with one seed borrows the others' variance.
    assert pooled[3].df == 1 + 2 + 4
    assert pooled[3].between == pytest.approx((own[0] + 2 * own[1] + 4 * own[2]) / 7)


def test_no_arm_with_two_seeds_means_no_seed_variance() -> None:
    assert pooled_seed_variance([spread([rng().normal(size=(1, 30))], is_bounded=False)]) == [None]


def test_an_arm_that_falls_apart_does_not_widen_the_others() -> None:
    generator = rng(7)
    calm = [spread([0.01 * generator.normal(size=(3, 1)) + np.zeros((3, 50))], is_bounded=True) for _ in range(5)]
    wild = spread([np.array([[-0.9], [-0.1], [0.3]]) + np.zeros((3, 50))], is_bounded=True)
    before, after = pooled_seed_variance(calm), pooled_seed_variance([*calm, wild])
    assert alike([*calm, wild]) == [0, 1, 2, 3, 4]
    assert after[:5] == before
    assert after[5] == own_seed_variance(wild)


def test_an_arm_with_several_times_the_pools_variance_leans_on_its_own() -> None:
    def steady(size: float) -> Spread:
        return spread([np.array([[-size], [0.0], [size]]) + np.zeros((3, 10))], is_bounded=False)

    arms = [*(steady(0.1) for _ in range(4)), steady(0.3)]
    pooled = pooled_seed_variance(arms)
    shared = (4 * 0.01 + 0.09) / 5
    assert alike(arms) == [0, 1, 2, 3, 4]
    assert [item.between for item in pooled] == pytest.approx([shared] * 4 + [(shared + 0.09) / 2])
    assert 2 < pooled[0].df == pooled[4].df < 10


def test_arms_that_move_together_say_no_more_than_one_of_them() -> None:
    arm = spread([np.array([[-0.1], [0.0], [0.1]]) + np.zeros((3, 10))], is_bounded=False)
    assert [item.df for item in pooled_seed_variance([arm] * 5)] == pytest.approx([2.0] * 5)


def test_arms_that_move_apart_add_degrees_of_freedom_but_some_of_it_counts_as_shared() -> None:
    # Over arms the seed means cancel, so nothing is shared and only the interaction's degrees of freedom are left.
    apart = np.array([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])[:, :, None] + np.zeros((2, 3, 10))
    pooled = pooled_seed_variance([spread([table], is_bounded=False) for table in apart])
    assert [item.df for item in pooled] == pytest.approx([2.0, 2.0])
    generator, found = rng(11), []
    for _ in range(100):
        arms = [spread([generator.normal(size=(4, 1)) + np.zeros((4, 2))], is_bounded=False) for _ in range(8)]
        found.append(pooled_seed_variance(arms)[0].df)
    # 40% shared: the mean over 8 arms has 0.4 + 0.6 / 8 of the variance with 3 degrees of freedom, the rest has 21.
    part = 0.4 + 0.6 / 8
    assert max(found) == pytest.approx(1 / (part**2 / 3 + (1 - part) ** 2 / 21))
    assert np.median(found) == pytest.approx(max(found), rel=0.05)


def test_with_one_degree_of_freedom_no_item_noise_is_taken_off() -> None:
    assert SeedVariance(0.03, 0.01, 1).variance == pytest.approx(0.03)
    assert SeedVariance(0.03, 0.01, 2).variance == pytest.approx(0.0225)
    assert SeedVariance(0.03, 0.01, 100).variance == pytest.approx(0.02, rel=1e-3)
    assert SeedVariance(0.01, 0.03, 100).variance == 0.0


def test_pairs_pool_to_the_interaction_mean_square() -> None:
    scores = rng(8).normal(size=(4, 3, 20)) + 5 * rng(9).normal(size=(3, 1))  # arm seed item; the seed's effect shared
    pairs = [spread([scores[a] - scores[b]], is_bounded=False) for a in range(4) for b in range(a)]
    means = scores.mean(axis=2)
    rest = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    pooled = pooled_pair_variances(pairs, 4, is_unlike=False)[0]
    assert pooled.df == (4 - 1) * (3 - 1)
    assert pooled.between == pytest.approx(2 * (rest**2).sum() / (3 * 2))


def test_without_repeated_seeds_pairs_have_no_seed_variance() -> None:
    assert pooled_pair_variances([spread([np.zeros((1, 5))], is_bounded=True)], 2, is_unlike=False) == [None]


# Arms that do not spread alike ---------------------------------------------------------------------------------------


def arm_of(deviations: list[float]) -> Spread:
    """An arm whose seed means are these, on many items without noise."""
    return spread([np.array(deviations)[:, None] + np.zeros((len(deviations), 10))], is_bounded=False)


def test_unlike_is_bartletts_test() -> None:
    for scale in (1.0, 1.5, 3.0, 10.0):
        tables = [rng(seed).normal(size=4) * (scale if seed > 2 else 1.0) for seed in range(6)]
        expected = stats.bartlett(*tables).pvalue < 0.05
        assert spread_unlike([arm_of(list(table)) for table in tables]) == expected
    assert not spread_unlike([arm_of([0.0, 0.0]), arm_of([0.0, 0.0])]), "nothing moves with the seed"
    assert not spread_unlike([arm_of([0.0, 1.0])])


def test_moderated_variances_recover_the_distribution_that_they_are_drawn_from() -> None:
    """With thousands of arms the fitted prior is the true one, and the moderated t has its nominal coverage."""
    generator, prior, centre, df = rng(12), 4.0, 0.5, 2
    true = prior * centre / generator.chisquare(prior, size=4000)
    own = true * generator.chisquare(df, size=4000) / df
    arms = [Spread(0.0, (-v, 0.0, v), 10, 0.0, 9.0, 0.0, None) for v in np.sqrt(own)]
    found = moderated(arms, math.inf)
    quiet = [item for item, value in zip(found, own, strict=True) if value < centre / 2]
    assert {round(item.df, 6) for item in quiet} == {round(quiet[0].df, 6)}
    assert quiet[0].df == pytest.approx(prior + df, rel=0.1)
    assert found[0].between == pytest.approx((prior * centre + df * own[0]) / (prior + df), rel=0.1)
    assert all(item.df <= quiet[0].df for item in found), "an arm that is loud by its own few seeds counts fewer"
    errors = generator.normal(size=4000) * np.sqrt(true / 3)
    half = [stats.t.ppf(0.975, item.df) * math.sqrt(item.between / 3) for item in found]
    assert np.mean(np.abs(errors) <= half) == pytest.approx(0.95, abs=0.02)


def test_of_a_very_loud_arm_moderation_leaves_the_arms_own() -> None:
    arms = [arm_of([-0.001, 0.001]), arm_of([-0.002, 0.002]), arm_of([-1.0, 1.0]), arm_of([-1.5, 1.5])]
    found = moderated(arms, 4.0)
    assert found[3].df == pytest.approx(1.0, abs=0.05)
    assert found[0].between < 0.01 * found[3].between


def test_two_arms_that_fall_apart_together_do_not_hide_behind_each_other() -> None:
    """A pool of all would give the quiet arms intervals as wide as the loud ones' (found by the demo)."""
    calm = [arm_of([-0.001, 0.001]), arm_of([-0.0015, 0.0015]), arm_of([-0.0008, 0.0008]), arm_of([-0.0012, 0.0012])]
    loud = [arm_of([-0.1, 0.1]), arm_of([-0.12, 0.12])]
    arms = [*calm, *loud]
    assert spread_unlike(arms)
    found = [estimate(arm, item, 0.95) for arm, item in zip(arms, pooled_seed_variance(arms), strict=True)]
    halves = [(item.high - item.low) / 2 for item in found]
    assert max(halves[:4]) < 0.02 < 0.2 < min(halves[4:])


def test_equal_counts_of_right_answers_are_no_sign_that_an_arm_does_not_move() -> None:
    """With few items two seeds are often equal by chance; the logarithm of their variance must not run away."""
    generator = rng(13)
    arms = [spread([generator.binomial(1, 0.3, size=(2, 100)).astype(float)], is_bounded=True) for _ in range(200)]
    assert any(len(set(arm.seed_means)) == 1 for arm in arms)
    assert sum(spread_unlike(arms[k : k + 5]) for k in range(0, 200, 5)) <= 6


# Awkward cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_no_flip_still_has_a_width_by_the_rule_of_three(num_seeds: int) -> None:
    item = spread([np.zeros((num_seeds, 200))], is_bounded=True)
    result = estimate(item, pooled_seed_variance([item])[0], 0.95)
    assert result.value == 0.0
    # Exactly: a share p of flips stays unseen in 200 items with chance 5% where (1 - p)^200 = 0.05, p = 0.0149.
    assert result.high == pytest.approx(1 - 0.05 ** (1 / 200), rel=0.02)
    assert result.low == -result.high


def test_all_items_flipped_alike_has_no_spread_but_a_width() -> None:
    result = estimate(spread([np.ones((2, 50))], is_bounded=True), None, 0.95)
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(1 - 3 / 50, abs=0.005)


def test_one_item_says_nothing_of_accuracy() -> None:
    result = estimate(spread([np.array([[1.0]])], is_bounded=True), None, 0.95)
    assert (result.value, result.low, result.high) == (1.0, -1.0, 1.0)


def test_one_text_gives_no_interval() -> None:
    result = estimate(spread([np.array([[0.3], [0.2]])], is_bounded=False), None, 0.95)
    assert (result.value, result.low, result.high) == (0.25, None, None)
    assert further_seeds(result, 0.1) is None
    assert items_factor(result, 0.1) is None


def test_identical_losses_are_identical_models() -> None:
    result = estimate(spread([np.zeros((2, 50))], is_bounded=False), None, 0.95)
    assert (result.low, result.high) == (0.0, 0.0)


@pytest.mark.parametrize(
    "tasks",
    [[], [np.zeros((0, 3))], [np.zeros((2, 0))], [np.zeros((2, 3)), np.zeros((3, 3))], [np.full((1, 3), np.nan)]],
)
def test_what_cannot_be_compared_is_refused(tasks: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="comparison needs"):
        spread(tasks, is_bounded=True)


def test_few_flips_are_never_missed_much_more_often_than_said() -> None:
    """Exact coverage over the number of flips, one side, for rare flips where a plain t interval misses up to 60%."""
    n = 100
    intervals = []
    for flips in range(n + 1):
        values = np.zeros((1, n))
        values[0, :flips] = -1.0
        intervals.append(estimate(spread([values], is_bounded=True), None, 0.95))
    for share in np.linspace(0.002, 0.2, 60):
        inside = [stats.binom.pmf(k, n, share) for k, item in enumerate(intervals) if item.low <= -share <= item.high]
        assert sum(inside) > 0.88


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 30))
def test_order_of_items_and_seeds_does_not_matter_and_negation_mirrors(seed: int, num_seeds: int, n: int) -> None:
    table = rng(seed).integers(-1, 2, size=(num_seeds, n)).astype(float)
    mixed = table[rng(seed + 1).permutation(num_seeds)][:, rng(seed + 2).permutation(n)]
    results = []
    for values in (table, mixed, -table):
        item = spread([values], is_bounded=True)
        results.append(estimate(item, pooled_seed_variance([item])[0], 0.9))
    one, two, mirrored = results
    assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=1e-12)
    back = mirrored.negated()
    assert (back.low, back.value, back.high) == pytest.approx((one.low, one.value, one.high), abs=1e-12)
    assert -1 <= one.low <= one.value <= one.high <= 1


# Ratio of losses -----------------------------------------------------------------------------------------------------


def test_mean_of_the_linearised_differences_is_the_ratio() -> None:
    tokens = rng(1).integers(1, 100, 30).astype(float)
    base, tuned = tokens * rng(2).random(30), tokens * rng(3).random((2, 30))
    differences = ratio_differences(base, tuned, tokens)
    expected = base.sum() / tokens.sum() - tuned.sum(axis=1) / tokens.sum()
    assert differences.mean(axis=1) == pytest.approx(expected)


def test_linearised_variance_matches_the_jackknife() -> None:
    tokens = rng(1).integers(20, 100, 200).astype(float)
    base, tuned = tokens * (1 + 0.1 * rng(2).random(200)), tokens * (1 + 0.1 * rng(3).random((1, 200)))
    saved = (base - tuned)[0]
    left_out = (saved.sum() - saved) / (tokens.sum() - tokens)
    jackknife = 199 / 200 * ((left_out - left_out.mean()) ** 2).sum()
    result = spread([ratio_differences(base, tuned, tokens)], is_bounded=False)
    assert result.item_variance == pytest.approx(jackknife, rel=0.03)


# Clusters ------------------------------------------------------------------------------------------------------------


def test_clusters_of_one_change_nothing() -> None:
    differences = rng(1).normal(size=(2, 50))
    by_cluster = cluster_differences(differences, rng(2).permutation(50))
    assert np.sort(by_cluster, axis=1) == pytest.approx(np.sort(differences, axis=1))


def test_clusters_have_the_cluster_robust_variance_of_statsmodels() -> None:
    clusters = np.repeat(np.arange(60), rng(1).integers(1, 9, 60))
    values = rng(2).normal(size=60)[clusters] + rng(3).normal(0.3, 1.0, len(clusters))
    result = spread([cluster_differences(values[None], clusters)], is_bounded=False)
    fit = statsmodels.api.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    assert result.value == pytest.approx(fit.params[0])
    assert (result.num_items, result.item_df) == (60, 59.0)
    # statsmodels divides by the number of clusters, the variance here by one less.
    assert result.item_variance == pytest.approx(float(fit.cov_params()[0][0]) * 60 / 59)


def test_what_stands_there_twice_makes_no_interval_narrower() -> None:
    differences = rng(1).choice([-1.0, 0.0, 1.0], size=(2, 40))
    once = spread([differences], is_bounded=True)
    twice = spread([cluster_differences(np.tile(differences, 2), np.tile(np.arange(40), 2))], is_bounded=True)
    assert twice == once


# Tests and corrections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 1), (3, 10), (10, 3), (7, 7), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


# Power ---------------------------------------------------------------------------------------------------------------


def seeds_only() -> Spread:
    return Spread(0.0, (0.0, 0.1, 0.2), 10_000, 1e-9, 9999.0, 0.0, None)


def test_further_seeds_is_the_smallest_number_that_is_enough() -> None:
    own = SeedVariance(0.01, 0.0, 20)
    result = estimate(seeds_only(), own, 0.95)
    count = further_seeds(result, 0.1)

    def width(num_seeds: int) -> float:
        df = 20 * (num_seeds - 1) / 2
        return (stats.t.ppf(0.975, df) + stats.norm.ppf(0.8)) * math.sqrt(0.01 / num_seeds + 1e-9)

    assert width(3 + count) <= 0.1 < width(3 + count - 1)


def test_seeds_cannot_settle_what_items_leave_open() -> None:
    item = Spread(0.0, (0.0, 0.0), 100, 0.01, 99.0, 0.0, None)
    result = estimate(item, SeedVariance(0.0001, 0.0, 5), 0.95)
    assert further_seeds(result, 0.1) is None
    factor = items_factor(result, 0.1)
    width = stats.t.ppf(0.975, 5) + stats.norm.ppf(0.8)
    assert width * math.sqrt(0.01 / factor + 0.0001 / 2) == pytest.approx(0.1)


def test_nothing_settles_a_difference_at_its_limit() -> None:
    result = estimate(seeds_only(), SeedVariance(0.01, 0.0, 20), 0.95)
    assert further_seeds(result, 0.0) is None
    assert items_factor(result, 1e-4) is None


def test_smallest_difference_in_the_limits() -> None:
    unit = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    only_items = smallest_difference([1_000_000], 1, flipped=0.2, seed_sd=0.0)
    assert only_items == pytest.approx(unit * math.sqrt(0.2 / 1_000_000), rel=1e-3)
    only_seeds = smallest_difference([10**9], 3, num_arms=6, flipped=0.2, seed_sd=0.01)
    assert only_seeds == pytest.approx((stats.t.ppf(0.975, 10) + stats.norm.ppf(0.8)) * 0.01 / math.sqrt(3), rel=1e-3)
    assert smallest_difference([400], 5) < smallest_difference([400], 2) < smallest_difference([100], 2)
    assert smallest_difference([1], 1) > 0.5


def test_smallest_difference_is_of_the_mean_over_tasks_at_the_study_s_confidence() -> None:
    unit = stats.norm.ppf(0.95) + stats.norm.ppf(0.8)
    found = smallest_difference([10**4, 10**6], 1, confidence=0.9, flipped=0.2, seed_sd=0.0)
    assert found == pytest.approx(unit * math.sqrt((0.2 / 10**4 + 0.2 / 10**6) / 4), rel=1e-3)
    alone = smallest_difference([40], 3)
    assert smallest_difference([40, 40], 3, seed_sd=0.0) < smallest_difference([40], 3, seed_sd=0.0) < alone
    # Two tasks of 20 items are as good as one of 40, but for the degrees of freedom.
    assert smallest_difference([20, 20], 3) == pytest.approx(smallest_difference([40], 3), rel=0.01)


# How a difference stands to a margin ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.02, 0.5, "within"),  # at the margin it is not beyond
        (-0.03, -0.02, "open"),
        (-0.05, -0.03, "worse"),
        (-0.03, 0.5, "open"),
        (None, None, "open"),
    ],
)
def test_a_difference_is_within_the_margin_beyond_it_or_neither(
    low: float | None, high: float | None, expected: str
) -> None:
    assert compared(low, high, 0.02) == expected
