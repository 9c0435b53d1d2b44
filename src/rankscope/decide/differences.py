"""From scores by item to gain, forgetting and differences between arms, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from rankscope.spreads import (
    Spread,
    alike,
    own_seed_variance,
    pooled_pair_variances,
    pooled_seed_variance,
    spread,
    spread_unlike,
)
from rankscope.statistics import Estimate, cluster_differences, estimate, ratio_differences


@dataclass(frozen=True)
class Flips:
    """How many items of right and wrong changed, and how many clusters did so on balance."""

    lost: int
    gained: int
    clusters_lost: int
    clusters_gained: int


@dataclass(frozen=True)
class TaskScores:
    """One task's items, of the base and of every arm's seeds, all in one order of items.

    Attributes:
        base: Right (1) or wrong (0), or the text's negative log-likelihood in nats.
        tuned: The same by arm and seed.
        num_tokens: Scored tokens of each text; None for right and wrong.
        categories: One for each item, where the task has some.
        clusters: A number for each item, the same for items that are no independent evidence; None: all are.
    """

    task: str
    relation: Literal["in_domain", "out_of_domain", "retention"]
    unit: Literal["accuracy", "nats"]
    base: Float[np.ndarray, " _items"]
    tuned: dict[str, dict[int, Float[np.ndarray, " _items"]]] = field(default_factory=dict)
    num_tokens: Float[np.ndarray, " _items"] | None = None
    categories: np.ndarray | None = None
    clusters: Int[np.ndarray, " _items"] | None = None

    def select(self, keep: Bool[np.ndarray, " _items"]) -> TaskScores:
        """The same task with some of its items."""
        return TaskScores(
            task=self.task,
            relation=self.relation,
            unit=self.unit,
            base=self.base[keep],
            tuned={arm: {s: values[keep] for s, values in seeds.items()} for arm, seeds in self.tuned.items()},
            num_tokens=None if self.num_tokens is None else self.num_tokens[keep],
            categories=None if self.categories is None else self.categories[keep],
            clusters=None if self.clusters is None else self.clusters[keep],
        )

    @property
    def base_value(self) -> float:
        """The base's accuracy, or its loss in nats per token."""
        if self.num_tokens is None:
            return float(self.base.mean())
        return float(self.base.sum() / self.num_tokens.sum())

    def differences(self, arm: str, seeds: Sequence[int]) -> Float[np.ndarray, "_seeds _independent"]:
        """Arm less base for each seed and item (or cluster), higher better; means are the task's differences."""
        tuned = np.stack([self.tuned[arm][seed] for seed in seeds])
        if self.num_tokens is None:
            values = tuned - self.base
        else:
            values = ratio_differences(self.base, tuned, self.num_tokens)
        return values if self.clusters is None else cluster_differences(values, self.clusters)

    def flips(self, arm: str, seed: int) -> Flips:
        """Items that one seed lost and gained, and the same of what is independent: items, or clusters on balance."""
        change = self.tuned[arm][seed] - self.base
        if self.clusters is None:
            net = change
        else:
            _, codes = np.unique(self.clusters, return_inverse=True)
            net = np.bincount(codes, weights=change)
        counts = [int(part.sum()) for part in (change < 0, change > 0, net < 0, net > 0)]
        return Flips(*counts)


def shared_seeds(tasks: Sequence[TaskScores], *arms: str) -> list[int]:
    """The seeds on which every one of the arms has every one of the tasks."""
    sets = [set(task.tuned.get(arm, {})) for task in tasks for arm in arms]
    return sorted(set.intersection(*sets)) if sets else []


def arm_spread(tasks: Sequence[TaskScores], arm: str, rival: str | None = None) -> Spread | None:
    """Arm less base, or arm less rival, over tasks; None where no seed has them all."""
    seeds = shared_seeds(tasks, arm) if rival is None else shared_seeds(tasks, arm, rival)
    if not seeds:
        return None
    arrays = [task.differences(arm, seeds) for task in tasks]
    if rival is not None:
        arrays = [own - task.differences(rival, seeds) for own, task in zip(arrays, tasks, strict=True)]
    return spread(arrays, is_bounded=tasks[0].unit == "accuracy")


def from_base(tasks: Sequence[TaskScores], arms: Sequence[str], confidence: float) -> dict[str, Estimate]:
    """Each arm less the base, mean over the tasks, with the seeds' variance pooled over the arms."""
    spreads = {arm: item for arm in arms if tasks and (item := arm_spread(tasks, arm)) is not None}
    pooled = pooled_seed_variance(list(spreads.values()))
    return {arm: estimate(item, seeds, confidence) for (arm, item), seeds in zip(spreads.items(), pooled, strict=True)}


def between_arms(
    tasks: Sequence[TaskScores], arms: Sequence[str], confidence: float
) -> dict[tuple[str, str], Estimate]:
    """Each arm less each other one, paired by item and by seed, with the seeds' variance pooled over the pairs."""
    spreads = {arm: item for arm in arms if tasks and (item := arm_spread(tasks, arm)) is not None}
    regular = {list(spreads)[index] for index in alike(list(spreads.values()))}
    pairs = {
        (arm, rival): item
        for arm, rival in combinations(spreads, 2)
        if (item := arm_spread(tasks, arm, rival)) is not None
    }
    own = {pair: own_seed_variance(item) for pair, item in pairs.items()}
    inside = {pair: item for pair, item in pairs.items() if own[pair] is None or regular.issuperset(pair)}
    is_unlike = spread_unlike([spreads[arm] for arm in sorted(regular)])
    pooled = pooled_pair_variances(list(inside.values()), len(regular), is_unlike=is_unlike)
    # A pair with an arm that stands alone has its own seeds only.
    seeds = own | dict(zip(inside, pooled, strict=True))
    return {pair: estimate(item, seeds[pair], confidence) for pair, item in pairs.items()}
