"""What the rule knows of each arm, and what can be said of one arm against another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rankscope.records import Interval
from rankscope.spec import Decide
from rankscope.statistics import Compared, Estimate, compared

BASE = "base"
Eligible = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Standing:
    """One arm at its chosen rate, as measured; what could not be measured is None.

    Attributes:
        forgetting: Base less tuned, mean over the accuracy tasks of retention: lower is better.
        forgetting_nats: Tuned less base, mean over the texts of retention: lower is better.
        lost_seeds: What became of seeds that gave no number at the chosen rate: `seed 2 diverged`.
        reason: Why there is nothing to judge, where there is not.
    """

    arm: str
    method: str
    rank: int | None = None
    learning_rate: float | None = None
    num_trainable: int | None = None
    gain: Estimate | None = None
    gain_nats: Estimate | None = None
    forgetting: Estimate | None = None
    forgetting_nats: Estimate | None = None
    lost_seeds: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked of one base and training set.

    Attributes:
        score: `gain` where a task in domain has right answers, else `gain_nats`.
        tasks: Names of the tasks by what they are for: `score`, `forgetting`, `forgetting_nats`.
        seconds_per_seed: What one more seed of all arms costs, where known.
        scoring_seconds: What scoring all arms on a task has cost, by task.
        cut: Tasks whose source may have more items than are scored.
    """

    base: str
    training_set: str
    decide: Decide
    score: Literal["gain", "gain_nats"]
    tasks: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    seconds_per_seed: float | None = None
    scoring_seconds: Mapping[str, float] = field(default_factory=dict)
    cut: Collection[str] = ()

    @property
    def margin(self) -> float:
        """The difference in the score that does not matter."""
        return self.decide.margin if self.score == "gain" else self.decide.margin_nats

    @property
    def budgets(self) -> dict[str, float]:
        """The forgetting accepted, for the kinds of retention that the study watches."""
        every = {
            "forgetting": self.decide.forgetting_budget,
            "forgetting_nats": self.decide.forgetting_budget_nats,
        }
        return {key: budget for key, budget in every.items() if self.tasks.get(key)}


class Field:
    """The arms of one verdict with the base among them, and what is settled between them."""

    def __init__(
        self, standings: Sequence[Standing], between: Mapping[tuple[str, str], Estimate], question: Question
    ) -> None:
        self.question = question
        self.arms = {item.arm: item for item in standings}
        self._between = between
        self.judged = [BASE, *(item.arm for item in standings if self._score(item) is not None)]
        self.eligible: dict[str, Eligible] = {arm: self._eligible(arm) for arm in self.judged}

    def _score(self, item: Standing) -> Estimate | None:
        return item.gain if self.question.score == "gain" else item.gain_nats

    def forgotten(self, arm: str, key: str) -> Estimate | None:
        """An arm's forgetting, `forgetting` or `forgetting_nats`."""
        return self.arms[arm].forgetting if key == "forgetting" else self.arms[arm].forgetting_nats

    def overspent(self, arm: str) -> list[str]:
        """The kinds of forgetting of which an arm surely forgets more than is accepted."""
        lost = {key: self.forgotten(arm, key) for key in self.question.budgets}
        return [
            key for key, item in lost.items() if item and item.low is not None and item.low > self.question.budgets[key]
        ]

    def _eligible(self, arm: str) -> Eligible:
        if arm == BASE:
            return "yes"  # it forgets nothing by definition
        found: list[Eligible] = []
        for key, budget in self.question.budgets.items():
            lost = self.forgotten(arm, key)
            if lost is None or lost.low is None or lost.high is None:
                found.append("unknown")
            else:
                found.append("yes" if lost.high <= budget else "no" if lost.low > budget else "unknown")
        return "no" if "no" in found else "unknown" if "unknown" in found else "yes"

    def num_trainable(self, arm: str) -> float:
        """The arm's size; one that is not known counts as the largest."""
        size = 0 if arm == BASE else self.arms[arm].num_trainable
        return float("inf") if size is None else size

    def score(self, arm: str) -> float:
        """The estimated gain; the base's is 0."""
        return 0.0 if arm == BASE else self._score(self.arms[arm]).value

    def difference(self, arm: str, other: str) -> Estimate | None:
        """Score of one arm less another's, paired by item and seed; None where they share no seed."""
        if other == BASE:
            return self._score(self.arms[arm])
        if arm == BASE:
            return self._score(self.arms[other]).negated()
        if (arm, other) in self._between:
            return self._between[arm, other]
        reverse = self._between.get((other, arm))
        return None if reverse is None else reverse.negated()

    def compare(self, arm: str, other: str) -> Compared:
        """Whether an arm is surely within the margin of another, surely worse than that, or neither."""
        difference = self.difference(arm, other)
        if difference is None:
            return "open"
        return compared(difference.low, difference.high, self.question.margin)


def interval(estimate: Estimate | None) -> Interval | None:
    """An estimate as records hold it."""
    if estimate is None:
        return None
    return Interval(
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        confidence=estimate.confidence,
        num_items=estimate.num_items,
        num_seeds=estimate.num_seeds,
    )
