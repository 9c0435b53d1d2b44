"""How sure a difference is: intervals over items and seeds, exact tests, and what it would take to decide.

The model, why this estimator and how well it covers are in docs/statistics.md. A difference of seed s on item i is
`d_si = mu + a_s + b_i + e_si`; everything here estimates `mu`, or the mean of several tasks' `mu`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

# An arm whose seeds spread so much more than the other arms' stands alone; the level is shared among the arms.
OUTLIER_LEVEL = 0.01
# One with so many times the others' variance leans on its own. Both were chosen by simulation (docs/statistics.md).
LEAN = 3.0
POWER = 0.8
MAX_SEEDS = 50
MAX_ITEM_FACTOR = 100.0


@dataclass(frozen=True)
class Spread:
    """What the paired differences of one comparison say by themselves, before seeds of other arms are asked.

    Attributes:
        value: The mean over tasks of the mean difference over items and seeds.
        seed_means: The same for each seed, in the order of the seeds given.
        item_variance: Squared standard error of `value` from the choice of items alone; None with too few to tell.
        item_df: Its degrees of freedom.
        residual_variance: The part of a seed mean's variance that is only e_si; None with one seed.
        flip: How much one flipped item moves `value` at most; None for differences without bounds (nats).
    """

    value: float
    seed_means: tuple[float, ...]
    num_items: int
    item_variance: float | None
    item_df: float
    residual_variance: float | None
    flip: float | None

    @property
    def num_seeds(self) -> int:
        """How many seeds were compared."""
        return len(self.seed_means)


@dataclass(frozen=True)
class SeedVariance:
    """How much a comparison moves with the seed, measured from several arms together.

    Attributes:
        between: Mean variance of the seed means, item noise included.
        residual: The part of it that is item noise.
        df: Degrees of freedom of `between`.
    """

    between: float
    residual: float
    df: float

    @property
    def variance(self) -> float:
        """The seeds' own variance, sigma_a^2: never negative.

        With one or two degrees of freedom the difference would often be 0 by chance, so less is subtracted.
        """
        return max(0.0, self.between - (1.0 - 1.0 / self.df**2) * self.residual)


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


def spread(tasks: Sequence[Float[np.ndarray, "_seeds _items"]], *, is_bounded: bool) -> Spread:
    """Summarise the differences of one comparison over one or several tasks.

    Args:
        tasks: One array a task, seeds x items, the same seeds in the same order; items of tasks are independent.
        is_bounded: Differences of right and wrong, within -1 and 1; not so for nats.

    Raises:
        ValueError: No task, no item, no seed, other seeds in one task, or a number that is not finite.
    """
    if not tasks or any(0 in task.shape or task.shape[0] != tasks[0].shape[0] for task in tasks):
        raise ValueError("a comparison needs tasks with items, all over the same seeds")
    if not all(np.isfinite(task).all() for task in tasks):
        raise ValueError("a comparison needs finite differences; leave diverged runs out")
    num_seeds, weight = tasks[0].shape[0], 1.0 / len(tasks)
    seed_means = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    variances = [_item_variance(task, is_bounded=is_bounded) for task in tasks]
    residuals = [_residual_variance(task) for task in tasks]
    known = [variance for variance in variances if variance is not None]
    total = weight**2 * sum(known) if len(known) == len(tasks) else None
    squares = sum((weight**2 * v) ** 2 / max(1, task.shape[1] - 1) for v, task in zip(known, tasks, strict=False))
    smallest = min(task.shape[1] for task in tasks)
    return Spread(
        value=float(seed_means.mean()),
        seed_means=tuple(float(mean) for mean in seed_means),
        num_items=sum(task.shape[1] for task in tasks),
        item_variance=total,
        item_df=total**2 / squares if total and squares else float(max(1, smallest - 1)),
        residual_variance=weight**2 * sum(residuals) if num_seeds > 1 else None,
        flip=weight / smallest if is_bounded else None,
    )


def _item_variance(task: Float[np.ndarray, "_seeds _items"], *, is_bounded: bool) -> float | None:
    num_items = task.shape[1]
    if num_items == 1:
        return 0.0 if is_bounded else None  # bounded differences have the floor of `estimate`
    return float(task.mean(axis=0).var(ddof=1) / num_items)


def _residual_variance(task: Float[np.ndarray, "_seeds _items"]) -> float:
    """sigma_e^2 / n, from what neither the seed nor the item explains."""
    num_seeds, num_items = task.shape
    if num_seeds == 1 or num_items == 1:
        return 0.0
    rest = task - task.mean(axis=1, keepdims=True) - task.mean(axis=0) + task.mean()
    return float((rest**2).sum() / ((num_seeds - 1) * (num_items - 1)) / num_items)


def alike(spreads: Sequence[Spread]) -> list[int]:
    """Which arms move with the seed about as much as one another, by index; those without repeated seeds are not in it.

    An arm whose variance is significantly larger than the others' (F test) neither borrows nor lends: one that is
    falling apart must not widen the intervals of the rest.
    """
    own = [own_seed_variance(item) for item in spreads]
    pool = [index for index, item in enumerate(own) if item is not None]
    while len(pool) > 2:
        widest = max(pool, key=lambda index: own[index].between)
        rest = [index for index in pool if index != widest]
        if not _is_outlier(own[widest], _pool([own[index] for index in rest]), OUTLIER_LEVEL / len(pool)):
            break
        pool = rest
    return pool


def pooled_seed_variance(spreads: Sequence[Spread]) -> list[SeedVariance | None]:
    """How much each arm moves with the seed, measured from all arms that move alike.

    Two or three seeds say little about one arm, but as many arms as there are say much about all. Arms are not quite
    alike, though, so one whose own variance is much the larger is given the mean of the pool's and its own.

    Returns:
        One for each spread; an arm that stands alone has its own, and without any repeated seed there is None.
    """
    own = [own_seed_variance(item) for item in spreads]
    pool = alike(spreads)
    shared = _pool([own[index] for index in pool]) if pool else None
    if shared is not None:
        shared = replace(shared, df=_effective_df([spreads[index] for index in pool], shared))
    return [
        item if item is not None and index not in pool else leaned(shared, item) for index, item in enumerate(own)
    ]


def _effective_df(pool: Sequence[Spread], shared: SeedVariance) -> float:
    """Degrees of freedom of a pooled variance whose arms move together, since one seed gives all the same examples.

    `between` is MS_seeds / K + MS_interaction (K - 1) / K of the table arms x seeds; the first part has S - 1 degrees
    of freedom only, however many arms there are.
    """
    num_arms, counts = len(pool), {item.num_seeds for item in pool}
    if num_arms < 2 or len(counts) > 1:
        return shared.df
    means = np.array([item.seed_means for item in pool])  # arm seed
    together = float(np.var(means.mean(axis=0), ddof=1))
    apart = shared.between - together
    df = counts.pop() - 1
    squares = together**2 / df + apart**2 / ((num_arms - 1) * df)
    return min(shared.df, shared.between**2 / squares) if squares > 0.0 else shared.df


def leaned(shared: SeedVariance | None, own: SeedVariance | None) -> SeedVariance | None:
    """The pool's variance, moved halfway to a comparison's own where that is several times as large."""
    if shared is None or own is None or own.between <= LEAN * shared.between:
        return shared
    between, residual = (shared.between + own.between) / 2, (shared.residual + own.residual) / 2
    return SeedVariance(between, residual, shared.df)


def pooled_pair_variance(pairs: Sequence[Spread], num_arms: int) -> SeedVariance | None:
    """How much a difference between two arms moves with the seed, from all pairs of arms that move alike.

    With every pair of K arms over S seeds this is twice the interaction mean square of the table arms x seeds, with
    its (K - 1)(S - 1) degrees of freedom: an effect of the seed that all arms share cancels.
    """
    own = [item for pair in pairs if (item := own_seed_variance(pair)) is not None]
    if not own:
        return None
    mean_df = sum(item.df for item in own) / len(own)
    return replace(_pool(own), df=mean_df * (num_arms - 1))


def own_seed_variance(item: Spread) -> SeedVariance | None:
    """How much one comparison moves with the seed, from its own seeds only; None where none was repeated."""
    if item.num_seeds < 2 or item.residual_variance is None:
        return None
    between = float(np.var(item.seed_means, ddof=1))
    return SeedVariance(between, item.residual_variance, item.num_seeds - 1)


def _pool(items: Sequence[SeedVariance]) -> SeedVariance:
    df = sum(item.df for item in items)
    between = sum(item.df * item.between for item in items) / df
    residual = sum(item.df * item.residual for item in items) / df
    return SeedVariance(between, residual, df)


def _is_outlier(item: SeedVariance, rest: SeedVariance, level: float) -> bool:
    from scipy.special import fdtrc  # scipy only where it computes: importing it would slow `status` down

    if rest.between == 0.0:
        return item.between > 0.0 and rest.residual > 0.0
    return bool(fdtrc(item.df, rest.df, item.between / rest.between) < level)


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


def mcnemar_exact(num_lost: int, num_gained: int) -> float:
    """How likely a split at least so uneven is if items flip either way alike: McNemar's exact test, two-sided."""
    from scipy.special import bdtr

    flips = num_lost + num_gained
    return 1.0 if flips == 0 else min(1.0, 2.0 * float(bdtr(min(num_lost, num_gained), flips, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the p-values of a family, raised so that any false one among them has the stated chance."""
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
