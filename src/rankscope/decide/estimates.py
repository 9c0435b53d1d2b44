"""From the scores of one training set's tasks to every number that its verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankscope.decide.differences import TaskScores, between_arms, from_base
from rankscope.decide.standing import Question, Standing, interval
from rankscope.records import ArmPair
from rankscope.statistics import Estimate

_MEASURES = {
    "gain": ("in_domain", "accuracy"),
    "gain_nats": ("in_domain", "nats"),
    "forgetting": ("retention", "accuracy"),
    "forgetting_nats": ("retention", "nats"),
}


def by_measure(tasks: Sequence[TaskScores]) -> dict[str, list[TaskScores]]:
    """The tasks that each of gain and forgetting, in accuracy and in nats, is the mean over."""
    return {key: [task for task in tasks if (task.relation, task.unit) == kind] for key, kind in _MEASURES.items()}


def measure(
    tasks: Sequence[TaskScores], arms: Sequence[Standing], question: Question
) -> tuple[list[Standing], Mapping[tuple[str, str], Estimate]]:
    """What each arm gained and forgot, and how the arms' scores differ.

    Args:
        tasks: The scores of the base and of the arms at their chosen rates.
        arms: The arms, without numbers.
        question: Says by which score arms are compared, and the confidence.

    Returns:
        The arms with their numbers, and the score of the first less the second for each pair.
    """
    confidence = question.decide.confidence
    names = [arm.arm for arm in arms]
    groups = by_measure(tasks)
    found = {key: from_base(group, names, confidence) for key, group in groups.items()}
    # Forgetting is base less tuned; differences are tuned less base.
    lost = {key: {arm: item.negated() for arm, item in found[key].items()} for key in ("forgetting", "forgetting_nats")}
    measured = {**found, **lost}
    standings = [replace(arm, **{key: values.get(arm.arm) for key, values in measured.items()}) for arm in arms]
    return standings, between_arms(groups[question.score], names, confidence)


def arm_pairs(tasks: Sequence[TaskScores], arms: Sequence[str], confidence: float) -> tuple[ArmPair, ...]:
    """Every arm less every other one in every measure that the tasks give, paired by item and by seed."""
    pairs = []
    for key, group in by_measure(tasks).items():
        for (arm, rival), found in between_arms(group, arms, confidence).items():
            # Forgetting is base less tuned; differences are tuned less base.
            difference = interval(found.negated() if key.startswith("forgetting") else found)
            assert difference is not None, "an estimate has an interval"
            pairs.append(ArmPair(arm=arm, rival=rival, measure=key, difference=difference))
    return tuple(pairs)
