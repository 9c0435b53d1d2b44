"""Numbers are worded as a reader expects them."""

from __future__ import annotations

import pytest

from rankscope.records import Interval
from rankscope.report.wording import (
    amount,
    arm_in_words,
    between,
    beyond,
    counted,
    duration,
    evidence,
    probability,
    rate,
    short_count,
    signed,
)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.5, 1, "+0.5"),
        (-0.5, 1, "\N{MINUS SIGN}0.5"),
        (0.04, 1, "0.0"),
        (-0.04, 1, "0.0"),
        (float("nan"), 1, "not finite"),
    ],
)
def test_signs(value, digits, text):
    assert signed(value, digits) == text


def test_fractions_are_shown_in_points_and_nats_as_they_are():
    interval = Interval(value=0.35, low=0.31, high=-0.0125, confidence=0.95, num_items=200, num_seeds=3)
    assert amount(interval, "gain") == "+35.0 points (31.0 to \N{MINUS SIGN}1.2)"
    assert amount(interval, "forgetting_nats") == "+0.350 nats (0.310 to \N{MINUS SIGN}0.013)"
    assert between(None, None, "gain") == ""


@pytest.mark.parametrize(
    ("base_value", "low", "high", "measure", "is_said"),
    [
        (0.2, -0.1, 0.8, "accuracy", False),
        (0.2, -0.3, 0.1, "accuracy", True),
        (0.7, 0.1, 0.4, "accuracy", True),
        (0.7, None, None, "accuracy", False),
        (0.7, 0.1, 0.4, "loss_nats_per_token", False),
    ],
)
def test_an_interval_beyond_what_the_base_leaves_room_for_is_said_and_not_cut(base_value, low, high, measure, is_said):
    assert ("set no limit" in beyond(base_value, low, high, measure)) == is_said


def test_evidence_and_counts():
    assert evidence(0.95, 1200, 1, "decide/record.json") == "95% interval, 1,200 items, 1 seed; decide/record.json"
    pooled = evidence(0.95, 20, 2, "decide/record.json", "seeds pooled over arms")
    assert pooled == "95% interval (seeds pooled over arms), 20 items, 2 seeds; decide/record.json"
    assert (short_count(999), short_count(36_000), short_count(1_234_567)) == ("999", "36k", "1.23M")
    assert (counted(1, "seed"), counted(2, "seed")) == ("1 seed", "2 seeds")
    assert (duration(4.25), duration(600.0), duration(10_800.0)) == ("4.2 s", "10 min", "3.0 h")
    assert (rate(1e-5), rate(3e-4), rate(0.01)) == ("1e-5", "0.0003", "0.01")
    assert (probability(0.0004), probability(0.05), probability(None)) == ("<0.001", "0.050", "\N{EN DASH}")
    assert (arm_in_words("lora-r4"), arm_in_words("full"), arm_in_words("mine")) == (
        "LoRA of rank 4",
        "full fine-tuning",
        "mine",
    )
