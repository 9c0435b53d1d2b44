"""The rule by hand-made cases: each number of docs/statistics.md's table of cases is a test here."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import pytest

from rankscope.decide.rule import judge
from rankscope.decide.standing import Question, Standing
from rankscope.records import ArmResult, DecideRecord, Verdict
from rankscope.spec import Decide
from rankscope.spreads import SeedVariance, Spread
from rankscope.statistics import Estimate
from rankscope.terminal import verdict_tables

MARGIN, BUDGET = 0.02, 0.03


def est(value: float, half: float | None = 0.005, num_seeds: int = 3) -> Estimate:
    low, high = (None, None) if half is None else (value - half, value + half)
    variance = (half or 0.0) ** 2 / 8
    spread = Spread(value, (value,) * num_seeds, 400, variance, 399.0, 2 * variance, 1e-6)
    return Estimate(value, low, high, 0.95, 400, num_seeds, spread, SeedVariance(3 * variance, 2 * variance, 10))


def arm(name: str, size: int | None, gain: Estimate | None, forgets: Estimate | None = None) -> Standing:
    forgets = est(0.0) if forgets is None else forgets
    return Standing(name, "lora", size, 1e-4, size, gain=gain, forgetting=forgets)


def question(**changes: object) -> Question:
    values = {
        "base": "small",
        "training_set": "new",
        "decide": Decide(margin=MARGIN, forgetting_budget=BUDGET),
        "score": "gain",
        "tasks": {"score": ["taught"], "forgetting": ["general", "work"], "forgetting_nats": []},
        "seeds": (0, 1, 2),
        "seconds_per_seed": 60.0,
    }
    return Question(**{**values, **changes})


def verdict(*arms: Standing, half: float = 0.005, **changes: object) -> Verdict:
    """Judge arms whose differences from one another have one width."""
    pairs = {}
    for one, two in itertools.combinations([item for item in arms if item.gain], 2):
        pairs[one.arm, two.arm] = est(one.gain.value - two.gain.value, half)
    pairs |= changes.pop("pairs", {})
    return judge(arms, pairs, question(**changes))


def result(found: Verdict, name: str) -> ArmResult:
    return next(item for item in found.arms if item.arm == name)


# The smallest arm that is good enough --------------------------------------------------------------------------------


def test_the_smallest_arm_within_the_margin_of_the_best_is_recommended() -> None:
    found = verdict(arm("r4", 4, est(0.10)), arm("r16", 16, est(0.29)), arm("full", 900, est(0.30)))
    assert (found.decision, found.arm, found.learning_rate) == ("recommended", "r16", 1e-4)
    assert found.gain.value == pytest.approx(0.29)
    assert found.forgetting.value == 0.0
    assert found.needed is None
    assert found.runner_up == "full"
    assert result(found, "r16").behind_best.value == pytest.approx(0.01)
    assert result(found, "full").behind_best is None


def test_a_smaller_arm_worse_than_the_margin_is_passed_over() -> None:
    found = verdict(arm("r4", 4, est(0.27)), arm("r16", 16, est(0.30)))
    assert found.arm == "r16"


def test_the_base_is_recommended_where_nothing_gains() -> None:
    found = verdict(arm("r4", 4, est(0.0)), arm("r16", 16, est(0.01)))
    assert (found.decision, found.arm, found.learning_rate) == ("recommended", "base", None)
    assert (found.gain.value, found.gain.low, found.gain.high) == (0.0, 0.0, 0.0)
    assert "No arm that may be eligible is better than the base" in found.rule


def test_the_base_is_recommended_where_every_arm_forgets_too_much() -> None:
    found = verdict(arm("r4", 4, est(0.2), est(0.1)), arm("full", 900, est(0.5), est(0.3)))
    assert found.arm == "base"
    assert [item.eligible for item in found.arms] == ["yes", "no", "no"]


def test_the_base_is_recommended_where_arms_make_it_worse() -> None:
    assert verdict(arm("r4", 4, est(-0.2))).arm == "base"


def test_an_arm_that_forgets_too_much_sets_no_standard() -> None:
    found = verdict(arm("r16", 16, est(0.30)), arm("full", 900, est(0.60), est(0.2)))
    assert found.arm == "r16"


def test_of_arms_of_one_size_the_better_estimate_is_taken() -> None:
    found = verdict(arm("a", 16, est(0.300)), arm("b", 16, est(0.305)))
    assert found.arm == "b"


def test_tied_arms_of_one_size_go_by_name() -> None:
    assert verdict(arm("b", 16, est(0.3)), arm("a", 16, est(0.3))).arm == "a"


def test_tied_arms_of_different_size_go_to_the_smaller() -> None:
    assert verdict(arm("large", 64, est(0.3)), arm("small", 16, est(0.3))).arm == "small"


# What is unknown and could change the answer -------------------------------------------------------------------------


def test_a_smaller_arm_that_may_be_eligible_keeps_it_open() -> None:
    found = verdict(arm("r4", 4, est(0.30), est(0.03, 0.01)), arm("r16", 16, est(0.30)))
    assert (found.decision, found.arm, found.gain) == ("undecided", None, None)


def test_a_smaller_arm_that_may_be_eligible_but_is_surely_worse_does_not() -> None:
    found = verdict(arm("r4", 4, est(0.10), est(0.03, 0.01)), arm("r16", 16, est(0.30)))
    assert found.arm == "r16"


def test_a_larger_arm_that_may_be_eligible_and_better_keeps_it_open() -> None:
    found = verdict(arm("r16", 16, est(0.30)), arm("full", 900, est(0.40), est(0.025, 0.01)))
    assert found.decision == "undecided"
    assert found.runner_up == "full", "what the estimates favour"
    assert "full forgets 2.5 points (1.5 to 3.5), and the budget is 3 points" in found.needed


def test_while_it_is_open_a_safe_arm_is_named_with_what_stands_against_it() -> None:
    full = arm("full", 900, est(0.40), est(0.025, 0.01))
    found = verdict(arm("r4", 4, est(0.285)), arm("r16", 16, est(0.30)), full)
    assert (found.decision, found.safe_arm) == ("undecided", "r16")
    assert found.because == (
        "Until it is decided r16 is safe to use: it gains 30.0 points (29.5 to 30.5) and forgets 0.0 points "
        "(\N{MINUS SIGN}0.5 to 0.5) of at most 3 points. It is not recommended yet because r4 may do as well with "
        "fewer parameters, and full may be better by more than the margin."
    )
    alone = verdict(full)
    assert alone.safe_arm == "base"
    assert alone.because.startswith("Until it is decided the base is the safe choice")
    assert verdict(full, arm("r4", 4, est(0.01, 0.02))).safe_arm == "base", "r4 may be worse than the base"
    assert verdict(arm("r16", 16, est(0.30))).because is None, "decided"


def test_where_the_base_wins_the_arm_that_came_nearest_is_named_with_its_numbers() -> None:
    weak = verdict(arm("r4", 4, est(0.001)), arm("full", 900, est(0.4), est(0.2)))
    assert weak.arm == "base"
    assert weak.because == (
        "Of the arms that may keep within the accepted forgetting r4 gained most: 0.1 points "
        "(\N{MINUS SIGN}0.4 to 0.6); the margin is 2 points. 1 more forgot more than is accepted."
    )
    lost = verdict(arm("r4", 4, est(0.3), est(0.1)), arm("full", 900, est(0.4), est(0.2)))
    assert lost.because == (
        "Every arm forgot more than is accepted; r4 the least: it forgets 10.0 points (9.5 to 10.5) "
        "of at most 3 points."
    )


def test_the_arm_that_forgot_least_is_that_of_the_budget_it_overspends_most() -> None:
    """Right answers are kept by both, and the loss is not: that of r16 least of all, whatever its answers say."""
    both = {"score": ["taught"], "forgetting": ["kept"], "forgetting_nats": ["text"]}
    found = verdict(
        replace(arm("r1", 1, est(0.3), est(0.0)), forgetting_nats=est(0.5)),
        replace(arm("r16", 16, est(0.4), est(-0.1)), forgetting_nats=est(3.0)),
        tasks=both,
    )
    assert found.because == (
        "Every arm forgot more than is accepted; r1 the least: it forgets 0.500 nats per token (0.495 to 0.505) "
        "of at most 0.05 nats per token."
    )


def test_a_larger_arm_that_may_be_eligible_but_no_better_does_not() -> None:
    found = verdict(arm("r16", 16, est(0.30)), arm("full", 900, est(0.31), est(0.03, 0.01)))
    assert found.arm == "r16"


def test_an_arm_whose_own_eligibility_is_unknown_is_not_recommended() -> None:
    found = verdict(arm("r16", 16, est(0.30), est(0.02, 0.02)))
    assert found.decision == "undecided"
    assert found.runner_up == "r16"


def test_a_smaller_arm_whose_difference_straddles_the_margin_keeps_it_open() -> None:
    found = verdict(arm("r4", 4, est(0.28)), arm("r16", 16, est(0.30)))
    assert found.decision == "undecided"
    assert "r4 is 2.0 points (1.5 to 2.5) behind r16, and the margin is 2 points" in found.needed


def test_a_larger_arm_whose_difference_straddles_the_margin_keeps_it_open() -> None:
    found = verdict(arm("r4", 4, est(0.10)), arm("r16", 16, est(0.30)), arm("full", 900, est(0.318)))
    assert found.decision == "undecided"


def test_worse_only_than_an_arm_that_may_not_be_eligible_is_not_out() -> None:
    found = verdict(arm("r4", 4, est(0.10)), arm("full", 900, est(0.40), est(0.03, 0.01)))
    assert found.decision == "undecided", "r4 is the answer if full forgets too much, full if not"


def test_a_gain_that_straddles_the_margin_keeps_base_or_arm_open() -> None:
    found = verdict(arm("r4", 4, est(0.02, 0.01)))
    assert found.decision == "undecided"
    assert result(found, "base").eligible == "yes"


def test_equal_arms_within_noise_are_undecided() -> None:
    arms = [arm(f"r{size}", size, est(0.2, 0.1)) for size in (4, 16, 64)]
    found = verdict(*arms, half=0.1)
    assert found.decision == "undecided"
    assert found.runner_up == "r4"


def test_arms_that_share_no_seed_cannot_be_compared() -> None:
    arms = (arm("r4", 4, est(0.29)), arm("r16", 16, est(0.30)))
    found = judge(arms, {}, question())
    assert found.decision == "undecided"
    assert "share no seed" in found.needed


# Budgets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "nats", "eligible"),
    [
        (est(0.0), est(0.0), "yes"),
        (est(0.0), est(0.1), "no"),
        (est(0.1), est(0.0), "no"),
        (est(0.03), est(0.0), "unknown"),
        (est(0.0), est(0.05), "unknown"),
        (est(0.03), est(0.1), "no"),
        (est(0.0), None, "unknown"),
        (est(0.0), est(0.0, None), "unknown"),
        (est(0.0249), est(0.0449), "yes"),
    ],
)
def test_both_budgets_count(accuracy: Estimate, nats: Estimate | None, eligible: str) -> None:
    tasks = {"score": ["taught"], "forgetting": ["general"], "forgetting_nats": ["text"]}
    standing = Standing("r4", "lora", 4, 1e-4, 4, gain=est(0.3), forgetting=accuracy, forgetting_nats=nats)
    found = judge([standing], {}, question(tasks=tasks))
    assert result(found, "r4").eligible == eligible


def test_a_budget_without_tasks_does_not_apply_and_says_so() -> None:
    found = verdict(arm("r4", 4, est(0.3)))
    assert "No retention task measures text, so that budget does not apply." in found.rule


def test_without_retention_tasks_every_arm_is_eligible_with_a_warning() -> None:
    tasks = {"score": ["taught"], "forgetting": [], "forgetting_nats": []}
    found = verdict(arm("r4", 4, est(0.3), est(0.9)), tasks=tasks)
    assert found.arm == "r4"
    assert any("nothing watches what is forgotten" in text for text in found.warnings)


def test_where_nothing_has_a_right_answer_the_loss_and_its_margin_decide() -> None:
    arms = [
        Standing("r4", "lora", 4, 1e-4, 4, gain_nats=est(0.100, 0.002), forgetting=est(0.0)),
        Standing("r16", "lora", 16, 1e-4, 16, gain_nats=est(0.106, 0.002), forgetting=est(0.0)),
    ]
    found = judge(arms, {("r4", "r16"): est(-0.006, 0.002)}, question(score="gain_nats"))
    assert found.arm == "r4"
    assert "by more than 0.01 nats per token" in found.rule
    assert found.gain_nats.value == 0.1
    assert found.gain is None


# Arms that are missing or bad ----------------------------------------------------------------------------------------


def test_an_arm_whose_every_rate_diverged_has_no_score_and_says_why() -> None:
    gone = Standing("r64", "lora", 64, num_trainable=64, reason="no rate can be chosen: 0.1 diverged")
    found = verdict(arm("r16", 16, est(0.3)), gone)
    assert found.arm == "r16"
    assert result(found, "r64").gain is None
    assert result(found, "r64").reason == "no rate can be chosen: 0.1 diverged"
    assert "r64: no rate can be chosen: 0.1 diverged; not judged" in found.warnings


def test_an_arm_that_lost_a_seed_is_not_recommended_silently() -> None:
    found = verdict(replace(arm("r16", 16, est(0.3)), lost_seeds=("seed 2 diverged",)), arm("full", 900, est(0.3)))
    assert found.arm == "r16"
    assert found.warnings[0].startswith("r16 is recommended on the seeds that gave a number: seed 2 diverged")
    assert "seed 2 diverged at this rate" in result(found, "r16").reason
    assert result(found, "r16").lost_seeds == ("seed 2 diverged",)
    (_, said, *_) = verdict_tables(record_of(found))
    assert "r16 at rate 0.0001" in said and "seed 2 diverged" in said
    # Another arm's lost seed is in its own reason, and is not put before what the verdict rests on.
    found = verdict(arm("r16", 16, est(0.3)), replace(arm("full", 900, est(0.3)), lost_seeds=("seed 1 failed",)))
    assert found.arm == "r16" and not found.warnings
    assert "seed 1 failed" in result(found, "full").reason


def record_of(found: Verdict) -> DecideRecord:
    common = {"status": "complete", "settings_hash": "h", "provenance": {}, "started_at": "t", "seconds": 1.0}
    return DecideRecord(**common, verdicts=(found,))


def test_without_any_judged_arm_nothing_is_decided_and_the_warnings_say_why() -> None:
    found = judge([Standing("r64", "lora", 64, reason="diverged")], {}, question())
    assert (found.decision, found.arm, found.runner_up) == ("undecided", None, None)
    assert found.warnings == ("r64: diverged; not judged",)
    assert "No arm could be judged" in found.needed


def test_a_clearly_bad_arm_changes_nothing() -> None:
    good = [arm("r4", 4, est(0.10)), arm("r16", 16, est(0.29)), arm("full", 900, est(0.30))]
    before = verdict(*good)
    for bad in (arm("bad", 8, est(-0.3), est(0.5)), arm("bad", 8, est(-0.3)), arm("bad", 1, est(0.6), est(0.5))):
        after = verdict(*good, bad)
        same = {"decision", "arm", "learning_rate", "gain", "forgetting", "rule", "runner_up", "needed"}
        assert before.model_dump(include=same) == after.model_dump(include=same)


def test_the_order_of_the_arms_changes_nothing() -> None:
    arms = [
        arm("r4", 4, est(0.10)),
        arm("r8", 8, est(0.285), est(0.03, 0.01)),
        arm("r16", 16, est(0.29)),
        arm("dora", 16, est(0.29)),
        arm("full", 900, est(0.30)),
        Standing("gone", "lora", 3, num_trainable=3, reason="diverged"),
    ]
    expected = verdict(*arms)
    for seed in range(20):
        assert verdict(*random.Random(seed).sample(arms, len(arms))) == expected


def test_a_size_that_is_not_known_counts_as_the_largest() -> None:
    assert verdict(arm("r4", 4, est(0.3)), arm("odd", None, est(0.3))).arm == "r4"


# What would decide ---------------------------------------------------------------------------------------------------


def test_needed_names_the_seeds_the_time_and_the_line_of_the_study_file() -> None:
    found = verdict(arm("r4", 4, est(0.28)), arm("r16", 16, est(0.2955, 0.005)), half=0.006)
    assert found.decision == "undecided"
    assert "further seeds would decide with a chance of 80%, about" in found.needed
    assert "`seeds: [0, 1, 2, 3, 4" in found.needed


def test_needed_asks_for_items_where_seeds_cannot_help() -> None:
    items_only = Spread(0.02, (0.02,) * 3, 400, 3e-5, 399.0, 1e-9, 1 / 400)
    wide = Estimate(0.02, 0.01, 0.032, 0.95, 400, 3, items_only, SeedVariance(0.0, 0.0, 9))
    seconds = {"general": 600.0, "work": 300.0, "taught": 1e6}
    found = verdict(arm("r16", 16, est(0.30), wide), scoring_seconds=seconds)
    assert found.decision == "undecided"
    assert "Seeds alone would not decide" in found.needed
    times, minutes = map(float, re.search(r"; ([\d.]+) times .* about (\d+) minutes of scoring", found.needed).groups())
    assert minutes == pytest.approx(times * 15, abs=1.6)
    assert "a larger source for general and work, where no more items are left." in found.needed
    found = verdict(arm("r16", 16, est(0.30), wide), cut=["work", "taught"])
    assert "a larger `max_examples` for work, and a larger source for general, where no" in found.needed


def test_needed_says_when_the_difference_lies_at_its_limit() -> None:
    found = verdict(arm("r16", 16, est(0.30), est(BUDGET, 0.02)))
    assert "the difference lies too near its limit" in found.needed


def test_needed_leaves_out_what_will_not_matter_once_the_favourite_is_settled() -> None:
    found = verdict(arm("r4", 4, est(0.10), est(0.03, 0.01)), arm("r16", 16, est(0.30), est(0.02, 0.02)))
    assert found.runner_up == "r16"
    assert "r16 forgets" in found.needed
    assert "r4" not in found.needed


def test_the_rule_is_stated_with_its_numbers() -> None:
    found = verdict(arm("r16", 16, est(0.30)))
    for words in ("more than 2 points", "mean over taught", "at most 3 points (mean over general and work)", "95%"):
        assert words in found.rule


def test_one_seed_is_warned_of() -> None:
    found = verdict(arm("r16", 16, est(0.30, num_seeds=1)))
    assert any(text.startswith("num_seeds=1") for text in found.warnings)


def test_one_comparison_is_stated_once_whichever_way_it_is_asked() -> None:
    # r4 and r16 are open both ways: r4 may be worse by more than the margin, and so may r16.
    found = verdict(arm("r4", 4, est(0.285)), arm("r16", 16, est(0.31)), half=0.05)
    assert found.decision == "undecided"
    assert "r4 is 2.5 points (\N{MINUS SIGN}2.5 to 7.5) behind r16, and the margin is 2 points either way" in (
        found.needed
    )
    assert "r16 is" not in found.needed


def test_a_number_that_rounds_to_zero_has_no_sign() -> None:
    tiny = est(-0.0001, 0.0404)
    found = verdict(arm("r4", 4, est(0.3), tiny))
    assert "r4 forgets 0.0 points (\N{MINUS SIGN}4.0 to 4.0)" in found.needed
    (table, *_) = verdict_tables(record_of(found))
    assert "-0.0" not in " ".join(str(cell) for column in table.columns for cell in column.cells)
