"""Each arm against full fine-tuning: signs, words and the place on the page."""

from __future__ import annotations

import re

import pytest

from rankscope.records import ArmPair, ArmResult, Interval, Verdict
from rankscope.report.against_full import against_full
from rankscope.report.tables import make_tables
from rankscope.spec import Decide

ARMS = ("full", "lora-r4", "lora-r8", "lora-r16")


def interval(low, high):
    return Interval(value=(low + high) / 2, low=low, high=high, confidence=0.95, num_items=300, num_seeds=3)


def pair(arm, rival, measure, low, high):
    return ArmPair(arm=arm, rival=rival, measure=measure, difference=interval(low, high))


def verdict(*pairs, method="full"):
    arms = [
        ArmResult(
            arm=arm, method=method if arm == "full" else "lora", rank=None, learning_rate=1e-4, num_trainable=1,
            gain=interval(0.0, 0.1), gain_nats=None, forgetting=None, forgetting_nats=None, eligible="yes",
        )
        for arm in ARMS
    ]  # fmt: skip
    return Verdict(
        base="b", training_set="t", decision="undecided", arm=None, learning_rate=None, gain=None, forgetting=None,
        rule="", runner_up=None, needed=None, arms=tuple(arms), pairs=pairs,
    )  # fmt: skip


GAINS = (
    pair("full", "lora-r4", "gain", 0.05, 0.15),  # so rank 4 is 5 to 15 points behind
    pair("full", "lora-r8", "gain", -0.01, 0.03),
    pair("lora-r16", "full", "gain", -0.02, 0.04),
    pair("lora-r4", "lora-r8", "gain", -0.9, -0.8),  # full fine-tuning is not in it
)


def test_each_arm_stands_less_full_fine_tuning_whichever_way_its_pair_was_written():
    found = against_full(verdict(*GAINS), Decide(margin=0.02), ARMS, "decide/record.json")
    rows = {arm: cells for arm, cells in found.rows}
    assert list(rows) == ["lora-r4", "lora-r8", "lora-r16"]
    assert [(cells[0].value[0], cells[0].small) for cells in rows.values()] == [
        ("\N{MINUS SIGN}", "\N{MINUS SIGN}15.0 to \N{MINUS SIGN}5.0"),
        ("\N{MINUS SIGN}", "\N{MINUS SIGN}3.0 to 1.0"),
        ("+", "\N{MINUS SIGN}2.0 to 4.0"),
    ]
    title = "gain: 95% interval (seeds pooled over arms), 300 items, 3 seeds; decide/record.json"
    assert rows["lora-r4"][0].title == title


def test_as_much_means_within_the_margin_and_no_answer_is_not_equality():
    found = against_full(verdict(*GAINS), Decide(margin=0.02), ARMS, "f")
    assert found.answer == (
        "Learned as much: LoRA of rank 16. Learned less: LoRA of rank 4. "
        "As much or less, cannot be told: LoRA of rank 8."
    )
    assert found.limit == "2 points"
    wider = against_full(verdict(*GAINS), Decide(margin=0.04), ARMS, "f")
    assert wider.answer.startswith("Learned as much: LoRA of rank 8, LoRA of rank 16.")
    better = against_full(verdict(pair("full", "lora-r8", "gain", -0.03, -0.01)), Decide(margin=0.02), ARMS, "f")
    assert better.answer == "Surely learned more: LoRA of rank 8."
    assert "earned" not in against_full(verdict(*GAINS), None, ARMS, "f").answer, "no margin, no equality"


def test_forgetting_is_said_where_no_measure_of_it_speaks_against():
    forgot = (
        pair("full", "lora-r4", "forgetting", 0.1, 0.2),
        pair("full", "lora-r4", "forgetting_nats", -0.1, 0.1),
        pair("full", "lora-r8", "forgetting", 0.1, 0.2),
        pair("full", "lora-r8", "forgetting_nats", -0.2, -0.1),
        pair("full", "lora-r16", "forgetting", -0.2, -0.1),
    )
    found = against_full(verdict(*forgot), Decide(), ARMS, "f")
    assert found.answer == (
        "Surely forgot less: LoRA of rank 4 (\N{MINUS SIGN}15.0 points). "
        "Surely forgot more: LoRA of rank 16 (+15.0 points)."
    )
    assert [name for _, name, _ in found.columns] == ["Forgotten", "Forgotten"]
    assert [cell.value for cell in found.rows[2][1]] == ["+15.0", "\N{EN DASH}"]


def test_without_full_fine_tuning_there_is_nothing_to_stand_against():
    assert against_full(verdict(*GAINS, method="lora"), Decide(), ARMS, "f") is None
    assert against_full(verdict(), Decide(), ARMS, "f") is None


def test_the_page_shows_the_numbers_of_the_table_of_pairs(reported):
    pairs = make_tables(reported.contents)["pairs"].to_dicts()
    parts = re.findall(r'<div class="against">.*?</table>', reported.html, re.DOTALL)
    assert len(parts) == 2, "one for each training set"
    seen = 0
    for part, group in zip(parts, ("new", "other"), strict=True):
        for row in re.findall(r'<tr data-arm="([^"]+)">(.*?)</tr>', part, re.DOTALL):
            shown = re.search(r'title="gain: [^"]+">([^<]+)<', row[1])[1]
            [mine] = [one for one in pairs if one["training_set"] == group and one["measure"] == "gain"
                      and {one["arm"], one["rival"]} == {"full", row[0]}]  # fmt: skip
            sign = 1 if mine["arm"] == row[0] else -1
            assert float(shown.replace("\N{MINUS SIGN}", "-")) == pytest.approx(100 * sign * mine["value"], abs=0.051)
            seen += 1
    assert seen == 6
