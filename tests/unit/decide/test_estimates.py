"""Adversarial studies, from scores to a verdict: whatever the scores are, the verdict is sensible."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rankscope.decide.differences import TaskScores
from rankscope.decide.estimates import arm_pairs, by_measure, measure
from rankscope.decide.rule import judge
from rankscope.decide.standing import Question, Standing
from rankscope.records import Verdict
from rankscope.spec import Decide

ARMS = ("r4", "r16", "full")


def question(seeds: int = 2) -> Question:
    tasks = {"score": ["taught"], "forgetting": ["general"], "forgetting_nats": []}
    decide = Decide(margin=0.05, forgetting_budget=0.05)
    return Question(base="b", training_set="t", decide=decide, score="gain", tasks=tasks, seeds=range(seeds))


def scores(name: str, base: np.ndarray, tuned: dict[str, list[np.ndarray]]) -> TaskScores:
    relation = "in_domain" if name == "taught" else "retention"
    by_seed = {arm: dict(enumerate(values)) for arm, values in tuned.items()}
    return TaskScores(task=name, relation=relation, unit="accuracy", base=base, tuned=by_seed)


def verdict(*tasks: TaskScores, order: tuple[str, ...] = ARMS, seeds: int = 2) -> Verdict:
    sizes = {"r4": 4, "r16": 16, "full": 900, "bad": 8}
    arms = [Standing(arm, "lora", num_trainable=sizes[arm]) for arm in order]
    standings, between = measure(tasks, arms, question(seeds))
    return judge(standings, between, question(seeds))


def same(value: float, n: int, seeds: int = 2, arms: tuple[str, ...] = ARMS) -> dict[str, list[np.ndarray]]:
    return {arm: [np.full(n, value)] * seeds for arm in arms}


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["none right", "all right"])
def test_where_nothing_changes_the_base_is_enough(value: float, seeds: int) -> None:
    ones = np.full(300, value)
    found = verdict(scores("taught", ones, same(value, 300, seeds)), scores("general", ones, same(value, 300, seeds)))
    assert found.arm == "base"
    assert all(arm.gain.low <= 0 <= arm.gain.high and arm.gain.value == 0.0 for arm in found.arms)


def test_from_none_right_to_all_right_is_the_smallest_arm() -> None:
    kept = np.ones(300)
    found = verdict(scores("taught", np.zeros(300), same(1.0, 300)), scores("general", kept, same(1.0, 300)))
    assert (found.decision, found.arm) == ("recommended", "r4")
    assert found.gain.high == 1.0 and 0.98 < found.gain.low < 1.0


def test_from_all_right_to_none_right_is_no_arm() -> None:
    taught = scores("taught", np.zeros(300), same(1.0, 300))
    found = verdict(taught, scores("general", np.ones(300), same(0.0, 300)))
    assert found.arm == "base"
    assert {arm.eligible for arm in found.arms if arm.arm != "base"} == {"no"}


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_item_decides_nothing(seeds: int) -> None:
    one = np.zeros(1)
    found = verdict(scores("taught", one, same(1.0, 1, seeds)), scores("general", one, same(0.0, 1, seeds)))
    assert found.decision == "undecided"
    gain = next(arm.gain for arm in found.arms if arm.arm == "r4")
    assert (gain.value, gain.low, gain.high) == (1.0, -1.0, 1.0)


def drawn(seed: int, levels: dict[str, float], n: int = 1500) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    hard = rng.random(n)

    def answers(level: float) -> np.ndarray:
        return (hard + rng.normal(0, 0.02, n) < level).astype(float)

    return {arm: [answers(level) for _ in range(3)] for arm, level in levels.items()}


GOOD = {"r4": 0.3, "r16": 0.6, "full": 0.61}


def study(levels: dict[str, float], kept: dict[str, float]) -> tuple[TaskScores, TaskScores]:
    taught, general = drawn(0, {"base": 0.2, **levels}), drawn(1, {"base": 0.8, **kept})
    return (
        scores("taught", taught.pop("base")[0], taught),
        scores("general", general.pop("base")[0], general),
    )


def test_neither_the_order_of_arms_nor_of_items_nor_of_seeds_matters() -> None:
    tasks = study(GOOD, dict.fromkeys(GOOD, 0.8))
    expected = verdict(*tasks, seeds=3)
    assert expected.arm == "r16"
    assert verdict(*tasks, order=("full", "r16", "r4"), seeds=3) == expected
    order = np.random.default_rng(5).permutation(1500)
    mixed = [
        TaskScores(
            task.task, task.relation, task.unit, task.base[order],
            {arm: {seed: values[2 - seed][order] for seed in values} for arm, values in task.tuned.items()},
        )
        for task in tasks
    ]  # fmt: skip
    found = verdict(*mixed, seeds=3)
    assert (found.arm, found.rule) == (expected.arm, expected.rule)
    for one, two in zip(expected.arms, found.arms, strict=True):
        assert (two.gain.low, two.gain.high) == pytest.approx((one.gain.low, one.gain.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.05, 0.9])
def test_an_arm_that_is_clearly_bad_changes_nothing(level: float) -> None:
    """One that learns nothing, one that falls apart, one that learns much and forgets everything."""
    expected = verdict(*study(GOOD, dict.fromkeys(GOOD, 0.8)), seeds=3)
    # Drawn last, so that the others' draws are the same.
    tasks = study({**GOOD, "bad": level}, {**dict.fromkeys(GOOD, 0.8), "bad": 0.1})
    found = verdict(*tasks, order=(*ARMS, "bad"), seeds=3)
    assert (found.decision, found.arm, found.runner_up) == (expected.decision, expected.arm, expected.runner_up)
    standing = {arm.arm: arm for arm in found.arms}
    for one in expected.arms:
        two = standing[one.arm]
        assert two.eligible == one.eligible
        if one.arm != "base":
            assert two.gain.value == one.gain.value
            assert two.gain.high - two.gain.low == pytest.approx(one.gain.high - one.gain.low, rel=0.25)


def test_tasks_are_put_to_the_measures_that_they_serve() -> None:
    tasks = study(GOOD, dict.fromkeys(GOOD, 0.8))
    found = by_measure(tasks)
    assert {key: [task.task for task in group] for key, group in found.items()} == {
        "gain": ["taught"], "gain_nats": [], "forgetting": ["general"], "forgetting_nats": [],
    }  # fmt: skip


def test_pairs_are_the_arms_means_apart_and_forgetting_counts_the_other_way() -> None:
    tasks = study(GOOD, {**dict.fromkeys(GOOD, 0.8), "full": 0.6})
    means = {
        (task.relation, arm): float(np.mean([values - task.base for values in seeds.values()]))
        for task in tasks
        for arm, seeds in task.tuned.items()
    }
    found = arm_pairs(tasks, ARMS, 0.95)
    assert {(pair.arm, pair.rival, pair.measure) for pair in found} == {
        (*pair, measure) for pair in combinations(ARMS, 2) for measure in ("gain", "forgetting")
    }
    for pair in found:
        relation, sign = ("in_domain", 1) if pair.measure == "gain" else ("retention", -1)
        expected = sign * (means[relation, pair.arm] - means[relation, pair.rival])
        assert pair.difference.value == pytest.approx(expected, abs=1e-12)
        assert pair.difference.low < pair.difference.value < pair.difference.high
    surely_more = [pair for pair in found if pair.rival == "full" and pair.measure == "forgetting"]
    assert surely_more and all(pair.difference.high < 0 for pair in surely_more), "full forgets more than any other"
