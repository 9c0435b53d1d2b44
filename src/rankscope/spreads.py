"""How paired differences spread over items and over seeds, and what several arms say together about the seeds.

The model and why this estimator are in docs/statistics.md: a difference of seed s on item i is
`d_si = mu + a_s + b_i + e_si`.
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
# Below this p-value of Bartlett's test the arms are taken to spread unlike each other, and each is given its own share.
UNLIKE_LEVEL = 0.05
# The least share of a seed's effect that all arms are taken to have in common, whatever their few seeds say.
SHARED = 0.4
_LARGE_DF = 1e6  # as good as a common variance


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
    """How much each arm moves with the seed, measured from all arms together.

    Two or three seeds say little about one arm, but as many arms as there are say much about all. Where the arms spread
    alike, all have the pool's variance; one whose own is much the larger is given the mean of the two. Where they
    clearly do not (Bartlett's test), each leans on its own as far as the arms differ: see `moderated`.

    Returns:
        One for each spread; an arm that stands alone has its own, and without any repeated seed there is None.
    """
    own = [own_seed_variance(item) for item in spreads]
    pool = alike(spreads)
    if not pool:
        return own
    members = [spreads[index] for index in pool]
    shared = _pool([own[index] for index in pool])
    shared = replace(shared, df=_effective_df(members, shared))
    if spread_unlike(members):
        return _in_places(own, pool, moderated(members, shared.df), shared)
    return _in_places(own, pool, [leaned(shared, own[index]) for index in pool], shared)


def _in_places(
    own: Sequence[SeedVariance | None], pool: Sequence[int], found: Sequence[SeedVariance], shared: SeedVariance
) -> list[SeedVariance | None]:
    """What was found for the pool; an arm with one seed has what is shared, one that stands alone has its own."""
    result = [shared if item is None else item for item in own]
    for index, item in zip(pool, found, strict=True):
        result[index] = item
    return result


def spread_unlike(arms: Sequence[Spread]) -> bool:
    """Whether the variances over seeds are clearly not all of one size: Bartlett's test."""
    from scipy.special import chdtrc

    own = [item for arm in arms if (item := own_seed_variance(arm)) is not None]
    if len(own) < 2 or not any(item.between for item in own):
        return False
    values, dfs = np.array(_positive(arms)), np.array([item.df for item in own])
    total = float(dfs.sum())
    statistic = total * math.log(float(dfs @ values) / total) - float(dfs @ np.log(values))
    correction = 1.0 + (float((1.0 / dfs).sum()) - 1.0 / total) / (3.0 * (len(own) - 1))
    return bool(chdtrc(len(own) - 1, max(0.0, statistic) / correction) < UNLIKE_LEVEL)


def moderated(arms: Sequence[Spread], most_df: float) -> list[SeedVariance]:
    """Each arm's variance over seeds, moved towards what is common as far as the arms' own let one believe in it.

    Variances are taken as drawn from a scaled inverse chi-square distribution, whose centre and degrees of freedom are
    fitted to the logarithms of the arms' own (Smyth 2004, as limma does for genes). An arm with much more than the
    centre counts by Satterthwaite's degrees of freedom, since it is its own few seeds that say so.

    Args:
        arms: Arms with repeated seeds, at least two.
        most_df: The degrees of freedom of all arms together; none has more.
    """
    own = [item for arm in arms if (item := own_seed_variance(arm)) is not None]
    values, dfs = np.array(_positive(arms)), np.array([item.df for item in own])
    prior, centre = _fitted_prior(values, dfs)
    residual = _pool(own).residual
    found = []
    for item, value in zip(own, values, strict=True):
        between = (prior * centre + item.df * value) / (prior + item.df)
        df = prior + item.df
        if value > centre:
            df = min(df, (prior * centre + item.df * value) ** 2 / (prior * centre**2 + item.df * value**2))
        noise = (prior * residual + item.df * item.residual) / (prior + item.df)
        found.append(SeedVariance(float(between), float(noise), float(min(df, most_df))))
    return found


def _fitted_prior(values: Float[np.ndarray, " _arms"], dfs: Float[np.ndarray, " _arms"]) -> tuple[float, float]:
    """Degrees of freedom and centre of the arms' variances, from the moments of their logarithms."""
    from scipy.special import digamma, polygamma

    logs = np.log(values) - digamma(dfs / 2) + np.log(dfs / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, dfs / 2).mean())
    if excess <= 1e-3:
        return _LARGE_DF, float(values.mean())
    half = _inverse_trigamma(excess)
    return 2 * half, float(np.exp(logs.mean() + digamma(half) - math.log(half)))


def _inverse_trigamma(value: float) -> float:
    """The x whose trigamma function is `value`, by Newton's method on the reciprocal, which is nearly linear."""
    from scipy.special import polygamma

    x = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1.0 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-12 * x:
            break
    return x


def _positive(arms: Sequence[Spread]) -> list[float]:
    """The arms' variances over seeds, none below what item noise alone makes them on average.

    Two seeds are often equal by chance, and the logarithm of their variance must not run away: less than the item
    noise, which is known well, says nothing more of an arm; nor do equal counts of right answers.
    """
    found = [(arm, item) for arm in arms if (item := own_seed_variance(arm)) is not None]
    middle = float(np.median([item.between for _, item in found]))
    largest = max(item.between for _, item in found)
    return [
        max(item.between, item.residual, (arm.flip or 0.0) ** 2 / 12, 1e-5 * middle, 1e-12 * largest)
        for arm, item in found
    ]


def _effective_df(pool: Sequence[Spread], shared: SeedVariance) -> float:
    """Degrees of freedom of a pooled variance whose arms move together, since one seed gives all the same examples.

    `between` is MS_seeds / K + MS_interaction (K - 1) / K of the table arms x seeds; the first part has S - 1 degrees
    of freedom only, however many arms there are. Two or three seeds say little of how large it is: where they lie close
    by chance all arms look quiet and independent at once. So it is taken to be no less than goes with `SHARED`.
    """
    num_arms, counts = len(pool), {item.num_seeds for item in pool}
    if num_arms < 2 or len(counts) > 1 or shared.between == 0.0:
        return shared.df
    means = np.array([item.seed_means for item in pool])  # arm seed
    together = float(np.var(means.mean(axis=0), ddof=1)) / shared.between
    df, least = counts.pop() - 1, SHARED + (1.0 - SHARED) / num_arms
    squares = [part**2 / df + (1.0 - part) ** 2 / ((num_arms - 1) * df) for part in (together, max(together, least))]
    return min(shared.df, 1.0 / max(squares))


def leaned(shared: SeedVariance, own: SeedVariance) -> SeedVariance:
    """The pool's variance, moved halfway to a comparison's own where that is several times as large."""
    if own.between <= LEAN * shared.between:
        return shared
    between, residual = (shared.between + own.between) / 2, (shared.residual + own.residual) / 2
    return SeedVariance(between, residual, shared.df)


def pooled_pair_variances(pairs: Sequence[Spread], num_arms: int, *, is_unlike: bool) -> list[SeedVariance | None]:
    """How much the difference between two arms moves with the seed, for each pair, from all pairs.

    With every pair of K arms over S seeds the pool is twice the interaction mean square of the table arms x seeds, with
    its (K - 1)(S - 1) degrees of freedom: an effect of the seed that all arms share cancels.

    Args:
        pairs: Differences between two arms each.
        num_arms: How many arms they are between.
        is_unlike: The arms spread unlike each other, so that each pair leans on its own as far as pairs differ.
    """
    own = [own_seed_variance(pair) for pair in pairs]
    known = [item for item in own if item is not None]
    if not known:
        return [None] * len(pairs)
    mean_df = sum(item.df for item in known) / len(known)
    shared = replace(_pool(known), df=mean_df * (num_arms - 1))
    repeated = [index for index, item in enumerate(own) if item is not None]
    if is_unlike and len(known) > 1:
        return _in_places(own, repeated, moderated([pairs[index] for index in repeated], shared.df), shared)
    return _in_places(own, repeated, [leaned(shared, item) for item in known], shared)


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
