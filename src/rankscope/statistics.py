"""How sure a difference is: intervals over items and seeds, exact tests, and what it would take to decide.

The model, why this estimator and how well it covers are in docs/statistics.md. A difference of seed s on item i is
`d_si = mu + a_s + b_i + e_si`; everything here estimates `mu`, or the mean of several tasks' `mu`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from rankscope.spreads import SeedVariance, Spread

Compared = Literal["within", "worse", "open"]

POWER = 0.8
MAX_SEEDS = 50
MAX_ITEM_FACTOR = 100.0


@dataclass(frozen=True)
class Estimate:
    """A difference with its interval; `low` and `high` are None where the data cannot give one."""

    value: float
    low: float | None
    high: float | None
    confidence: float
    num_items: int
    num_seeds: int
    spread: Spread
    seeds: SeedVariance | None

    def negated(self) -> Estimate:
        """The same difference, seen from the other side."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        means = tuple(-mean for mean in self.spread.seed_means)
        spread = replace(self.spread, value=-self.spread.value, seed_means=means)
        return replace(self, value=-self.value, low=low, high=high, spread=spread)


def estimate(item: Spread, seeds: SeedVariance | None, confidence: float) -> Estimate:
    """A two-sided interval for a difference, over items and, where seeds were repeated, over seeds.

    Half-width: Student's t, with Satterthwaite's degrees of freedom, times sqrt(items' variance + sigma_a^2 / S). For
    right and wrong the items' part has a floor: no flip among n items leaves a share of flips up to ln(1 / (1 -
    confidence)) / n possible, so a difference of exactly zero still has a width.

    Args:
        item: The differences, summarised.
        seeds: The seeds' variance; None: the interval is over items only.
        confidence: Within 0 and 1; each end is missed with half the rest.
    """
    variance = _items_part(item, confidence)
    low = high = None
    if variance is not None:
        half = _t_quantile(confidence, _degrees(item, seeds, variance)) * math.sqrt(
            variance + (seeds.variance / item.num_seeds if seeds else 0.0)
        )
        low, high = item.value - half, item.value + half
        if item.flip is not None:
            low, high = max(-1.0, low), min(1.0, high)
    return Estimate(item.value, low, high, confidence, item.num_items, item.num_seeds, item, seeds)


def _items_part(item: Spread, confidence: float) -> float | None:
    if item.item_variance is None or item.flip is None:
        return item.item_variance
    floor = (-math.log(1.0 - confidence) * item.flip / _normal_quantile(0.5 + confidence / 2)) ** 2
    return max(item.item_variance, floor)


def _degrees(item: Spread, seeds: SeedVariance | None, items_part: float) -> float:
    """Satterthwaite's degrees of freedom of the sum of the items' and the seeds' variance."""
    if seeds is None or seeds.variance == 0.0:
        return item.item_df
    total = items_part + seeds.variance / item.num_seeds
    squares = items_part**2 / item.item_df + (seeds.between / item.num_seeds) ** 2 / seeds.df
    return max(1.0, total**2 / squares)


def _t_quantile(confidence: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + confidence / 2))


def _normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def compared(low: float | None, high: float | None, margin: float) -> Compared:
    """How a difference stands to a margin: surely not worse than that, surely worse, or neither.

    Args:
        low: The lower end of its interval; None where there is none.
        high: The upper end.
        margin: How much worse, above 0, does not matter.
    """
    if low is None or high is None:
        return "open"
    if low >= -margin:
        return "within"
    return "worse" if high < -margin else "open"


def mcnemar_exact(num_lost: int, num_gained: int) -> float:
    """How likely a split at least so uneven is if items flip either way alike: McNemar's exact test, two-sided.

    Examples:
        >>> mcnemar_exact(5, 0)  # five items lost, none gained: 2 / 2**5
        0.0625
    """
    from scipy.special import bdtr

    flips = num_lost + num_gained
    return 1.0 if flips == 0 else min(1.0, 2.0 * float(bdtr(min(num_lost, num_gained), flips, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the p-values of a family, raised so that any false one among them has the stated chance.

    Examples:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = running
    return corrected


def ratio_differences(
    base_nats: Float[np.ndarray, " _items"],
    tuned_nats: Float[np.ndarray, "_seeds _items"],
    num_tokens: Float[np.ndarray, " _items"],
) -> Float[np.ndarray, "_seeds _items"]:
    """What each text adds to a difference of nats per token, so that plain means and variances serve for the ratio.

    The mean over texts is exactly `sum(base - tuned) / sum(tokens)`; the variance is the ratio estimator's, linearised.
    """
    saved = base_nats - tuned_nats  # seed item
    ratio = saved.sum(axis=1, keepdims=True) / num_tokens.sum()
    return ratio + (saved - ratio * num_tokens) / num_tokens.mean()


def cluster_differences(
    differences: Float[np.ndarray, "_seeds _items"], clusters: Int[np.ndarray, " _items"]
) -> Float[np.ndarray, "_seeds _clusters"]:
    """What each cluster of items adds to a difference, so that plain means and variances serve for correlated items.

    The mean over clusters is exactly the mean over items; the variance is the ratio estimator's, linearised, which is
    the cluster-robust one (Liang and Zeger 1986, with the mean as the only coefficient).
    """
    _, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    means = differences.mean(axis=1, keepdims=True)
    totals = np.stack([np.bincount(codes, weights=row) for row in differences])  # seed cluster
    return means + (totals - means * sizes) * (len(sizes) / len(clusters))


def further_seeds(result: Estimate, distance: float) -> int | None:
    """How many more seeds would make the interval narrower than `distance` with a chance of 80%; None: no 50 would."""
    item, seeds = result.spread, result.seeds
    variance = _items_part(item, result.confidence)
    if variance is None or distance <= 0.0:
        return None
    residual = item.residual_variance or 0.0
    own = seeds.variance if seeds else 0.0
    fixed = max(0.0, variance - residual / item.num_seeds)
    for num_seeds in range(item.num_seeds + 1, MAX_SEEDS + 1):
        df = _df_at(item, seeds, num_seeds)
        width = _t_quantile(result.confidence, df) + _normal_quantile(POWER)
        if width * math.sqrt(fixed + (residual + own) / num_seeds) <= distance:
            return num_seeds - item.num_seeds
    return None


def _df_at(item: Spread, seeds: SeedVariance | None, num_seeds: int) -> float:
    if seeds is None or item.num_seeds < 2:
        return item.item_df
    return seeds.df * (num_seeds - 1) / (item.num_seeds - 1)


def items_factor(result: Estimate, distance: float) -> float | None:
    """How many times the items would do the same as `further_seeds`, seeds left alone; None: no 100 times would."""
    item, seeds = result.spread, result.seeds
    variance = _items_part(item, result.confidence)
    if variance is None or distance <= 0.0:
        return None
    own = seeds.variance / item.num_seeds if seeds else 0.0
    df = seeds.df if seeds and own else item.item_df
    width = _t_quantile(result.confidence, df) + _normal_quantile(POWER)
    left = (distance / width) ** 2 - own
    factor = variance / left if left > 0.0 else math.inf
    return factor if factor <= MAX_ITEM_FACTOR else None


def smallest_difference(
    sizes: Sequence[int],
    num_seeds: int,
    *,
    confidence: float = 0.95,
    num_arms: int = 2,
    flipped: float = 0.2,
    seed_sd: float = 0.005,
) -> float:
    """The smallest difference in accuracy between two arms that a study will find with a chance of 80%.

    Said before anything is measured, so it rests on assumptions: two arms of one seed disagree on a share `flipped` of
    the items, half of that belongs to the items and half to the seed, and the difference itself moves by `seed_sd`
    from seed to seed. The difference is the mean over tasks, of which `sizes` are the numbers of items, so a small
    task weighs as much as a large one.
    """
    parts = [0.5 * flipped / num_items / len(sizes) ** 2 for num_items in sizes]
    residual = sum(parts)
    variance = residual * (1.0 + 1.0 / num_seeds)
    item_df = residual**2 / sum(part**2 / max(1, size - 1) for part, size in zip(parts, sizes, strict=True))
    items = Spread(0.0, (0.0,) * num_seeds, sum(sizes), variance, item_df, residual, None)
    df = (num_arms - 1) * (num_seeds - 1)
    # With one seed nothing measures the seeds' variance; it is there all the same.
    seeds = SeedVariance(seed_sd**2 + residual, residual, df or math.inf)
    total = variance + seeds.variance / num_seeds
    return (_t_quantile(confidence, _degrees(items, seeds, variance)) + _normal_quantile(POWER)) * math.sqrt(total)
