"""What goes with what over the runs of a study: rank correlations, plain and at equal third, with honest intervals.

Seeds of one candidate (an arm at one rate) are near copies of each other, so they do not count as so many independent
runs: a correlation is over candidates, each with the mean of its seeds, and its interval counts candidates.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

# Below this many candidates an interval would be the whole range from -1 to 1.
FEWEST = 5
_EQUAL = 1e-9


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over candidates; `low` and `high` are None where there are too few for an interval."""

    value: float
    low: float | None
    high: float | None
    confidence: float
    num_candidates: int
    num_runs: int


def rank_correlation(x: Float[np.ndarray, " _n"], y: Float[np.ndarray, " _n"]) -> float | None:
    """Spearman's rank correlation; None where one of the two does not vary, or is not finite throughout."""
    if len(x) < 2 or not np.isfinite([x, y]).all():
        return None
    first, second = (pl.Series(values).rank("average").to_numpy() for values in (x, y))
    spread = float(first.std() * second.std())
    if spread < _EQUAL:
        return None
    return float(np.mean((first - first.mean()) * (second - second.mean())) / spread)


def partial_rank_correlation(
    x: Float[np.ndarray, " _n"], y: Float[np.ndarray, " _n"], given: Float[np.ndarray, " _n"]
) -> float | None:
    """The rank correlation of x and y that is left at equal `given`: of what its ranks leave of theirs.

    None where one of the three does not vary, or where `given` orders x or y completely, so that nothing is left.
    """
    pairs = rank_correlation(x, y), rank_correlation(x, given), rank_correlation(y, given)
    if any(pair is None for pair in pairs):
        return None
    xy, xz, yz = pairs
    left = (1.0 - xz**2) * (1.0 - yz**2)
    return (xy - xz * yz) / math.sqrt(left) if left > _EQUAL else None


def correlate(
    groups: Sequence[Hashable],
    x: Sequence[float],
    y: Sequence[float],
    confidence: float,
    given: Sequence[float] | None = None,
) -> Correlation | None:
    """A rank correlation over runs, with an interval by Fisher's transformation.

    The variance of the transformed value is `(1 + r^2 / 2) / (n - 3)` for rank correlations (Bonett and Wright,
    Psychometrika 2000), n less one more at equal `given`; n are the candidates.

    Args:
        groups: Of each run, its candidate.
        x: What might explain, of each run.
        y: What is to be explained.
        confidence: Of the interval.
        given: What is held equal; None for a plain correlation.

    Returns:
        None where nothing can be said, as where x does not vary.
    """
    columns = [np.asarray(column, dtype=float) for column in (x, y, *([] if given is None else [given]))]
    finite = np.isfinite(columns).all(axis=0)
    names = [group for group, keep in zip(groups, finite, strict=True) if keep]
    means = [_means(names, column[finite]) for column in columns]
    if len(means[0]) < 3:
        return None
    value = rank_correlation(*means) if given is None else partial_rank_correlation(*means)
    if value is None:
        return None
    value = max(-1.0, min(1.0, value))  # rounding may leave it a step outside
    low, high = _interval(value, len(means[0]) - (given is not None), confidence)
    return Correlation(value, low, high, confidence, len(means[0]), len(names))


def _means(groups: Sequence[Hashable], values: Float[np.ndarray, " _n"]) -> Float[np.ndarray, " _candidates"]:
    by_group: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        by_group.setdefault(group, []).append(float(value))
    return np.array([np.mean(members) for members in by_group.values()])


def _interval(value: float, count: int, confidence: float) -> tuple[float | None, float | None]:
    if count < FEWEST:
        return None, None
    from scipy.special import ndtri

    # At exactly 1 the transformation is infinite: the value is held a step away, and the interval stays wide.
    held = max(-1.0 + 1e-6, min(1.0 - 1e-6, value))
    half = float(ndtri(0.5 + confidence / 2.0)) * math.sqrt((1.0 + held**2 / 2.0) / (count - 3))
    centre = math.atanh(held) if abs(value) < 1.0 - 1e-6 else math.copysign(math.atanh(1.0 - 0.5 / count), value)
    # The end beyond a held value is the value itself: no interval leaves out what it is about.
    return min(math.tanh(centre - half), value), max(math.tanh(centre + half), value)
