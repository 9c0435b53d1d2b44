"""The tables of the paper's form: their numbers, and that no name is a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.export.latex import escape, train_test_table, verdict_table
from rankscope.records import ArmResult, Interval, TaskComparison, Verdict


def comparison(
    task: str, arm: str, value: float, low: float | None, high: float | None, **more: object
) -> TaskComparison:
    interval = Interval(value=value, low=low, high=high, confidence=0.95, num_items=100, num_seeds=2)
    fields = {"relation": "retention", "unit": "accuracy", "base_value": 0.5, "tuned_value": 0.5 + value} | more
    return TaskComparison(
        base="b", training_set="my_set", arm=arm, learning_rate=1e-3, task=task, difference=interval, **fields
    )


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if " & " in line]
    return [[cell.strip() for cell in line.removesuffix(r" \\").split(" & ")] for line in lines]


def test_a_cell_has_the_score_half_the_interval_and_a_star_where_zero_is_left_out() -> None:
    table = train_test_table(
        "b",
        [
            comparison("x_1", "full", -0.1, -0.14, -0.06),
            comparison("x_1", "lora-r4", 0.01, -0.02, 0.04),
            comparison("text", "full", -0.2, -0.25, -0.15, unit="nats", base_value=1.0, tuned_value=1.2),
        ],
        ["full", "lora-r4", "lora-r8"],
    )
    head, first, second = rows_of(table)
    assert head[-3:] == ["base", "full", "lora-r4"]  # an arm without a number has no column
    assert first[:5] == [r"my\_set", r"x\_1", "ret.", r"\%", "50.0"]
    assert first[5] == r"40.0\,$\pm$\,4.0*"
    assert first[6] == r"51.0\,$\pm$\,3.0\phantom{*}"
    assert second == ["", "text", "ret.", "nats", "1.000", r"1.200\,$\pm$\,0.050*", "--"]


def test_without_an_interval_there_is_only_the_score() -> None:
    table = train_test_table("b", [comparison("x", "full", -0.1, None, None)], ["full"])
    assert rows_of(table)[1][-1] == "40.0"


def test_the_recommended_arm_is_bold() -> None:
    gain = Interval(value=0.1, low=-0.0001, high=0.2, confidence=0.95, num_items=10, num_seeds=2)
    arms = tuple(
        ArmResult(
            arm=name, method="lora", rank=4, learning_rate=3e-3, num_trainable=12345, gain=gain, gain_nats=None,
            forgetting=None, forgetting_nats=None, eligible="yes",
        )
        for name in ("lora-r4", "lora-r8")
    )  # fmt: skip
    verdict = Verdict(
        base="b", training_set="s", decision="recommended", arm="lora-r4", learning_rate=3e-3, gain=gain,
        forgetting=None, rule="At most 10% & no more (\N{MINUS SIGN}1.1 to 2.0).", runner_up=None, needed=None,
        arms=arms,
    )  # fmt: skip
    table = verdict_table(verdict)
    _, first, second = rows_of(table)[:3]
    assert first == [r"\textbf{lora-r4}", "0.003", r"12\,345", r"$10.0$ $[0.0,\,20.0]$", "--", "--", "--", "yes"]
    assert second[0] == "lora-r8"
    assert r"At most 10\% \& no more (\textminus{}1.1 to 2.0)." in table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", r"a\_b"),
        ("50% & $x$ #1", r"50\% \& \$x\$ \#1"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("é", "é"),
        ("\N{MINUS SIGN}1", r"\textminus{}1"),
        ("薬\n", "??"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text())
def test_no_text_is_a_command(text: str) -> None:
    escaped = escape(text)
    known = ("textbackslash{}", "textasciitilde{}", "textasciicircum{}", "textless{}", "textgreater{}", "textbar{}",
             "textquotedbl{}", "textasciigrave{}", "textquotesingle{}", "textminus{}")  # fmt: skip
    rest = escaped
    for name in known:
        rest = rest.replace(f"\\{name}", "")
    for letter in "&%$#_{}":
        rest = rest.replace(f"\\{letter}", "")
    assert not set(rest) & set("\\&%$#_{}~^")
