"""What was lost, as the page shows it: the table of tasks, the categories, the items that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rankscope.report.verdicts import Cell
from rankscope.report.wording import (
    EMPTY,
    amount_of,
    between,
    count,
    digits_of,
    evidence,
    probability,
    scaled,
    signed,
)

RELATIONS = {"in_domain": "in domain", "out_of_domain": "out of domain", "retention": "retention"}
# So much is shown in the page; the whole of it is in the CSV beside it.
MOST_LOST, MOST_GAINED, MOST_CATEGORIES, MOST_CHARACTERS = 40, 20, 60, 1200


@dataclass(frozen=True)
class ComparisonRow:
    """One arm on one task or category against the base."""

    arm: str
    name: str
    relation: str
    unit: str
    base: str
    tuned: str
    difference: Cell
    p: str
    p_holm: str
    lost: str
    gained: str


@dataclass(frozen=True)
class Flip:
    """One item that flipped, with the answers of every arm that flipped it."""

    task: str
    relation: str
    category: str | None
    change: str
    item_id: str
    prompt: str
    options: Sequence[tuple[str, bool, bool]]
    target: str
    before: str
    answers: Sequence[tuple[str, str, int, int]]


def task_rows(comparisons: pl.DataFrame) -> dict[str, list[ComparisonRow]]:
    """By task, every arm's comparison with the base over the whole task."""
    rows: dict[str, list[ComparisonRow]] = {}
    for row in comparisons.filter(pl.col("category").is_null()).iter_rows(named=True):
        rows.setdefault(row["task"], []).append(_comparison(row, row["task"]))
    return rows


def category_rows(comparisons: pl.DataFrame, arm: str | None) -> list[ComparisonRow]:
    """One arm's comparisons by category, what was lost most first."""
    if arm is None:
        return []
    part = comparisons.filter(pl.col("category").is_not_null() & (pl.col("arm") == arm)).sort("value")
    rows = part.head(MOST_CATEGORIES).iter_rows(named=True)
    return [_comparison(row, f"{row['task']}: {row['category']}") for row in rows]


def flips(flipped: pl.DataFrame) -> list[Flip]:
    """The items that most arms and seeds lost, then those that they gained."""
    found = []
    for change, most in (("lost", MOST_LOST), ("gained", MOST_GAINED)):
        part = flipped.filter(pl.col("change") == change)
        for _, rows in list(part.group_by(["task", "item_id"], maintain_order=True))[:most]:
            found.append(_flip(rows))
    return found


def _comparison(row: dict[str, Any], name: str) -> ComparisonRow:
    measure = row["measure"]
    rests = evidence(row["confidence"], row["num_items"], row["num_seeds"], row["source"])
    difference = Cell(
        signed(scaled(row["value"], measure), digits_of(measure)),
        between(row["low"], row["high"], measure),
        f"difference in {measure}, higher is better: {rests}",
        "worse" if row["high"] is not None and row["high"] < 0 else "",
    )
    ends = [amount_of(row[key], None, None, measure, signs=False) for key in ("base_value", "tuned_value")]
    return ComparisonRow(
        arm=row["arm"],
        name=name,
        relation=RELATIONS[row["relation"]],
        unit="points" if row["unit"] == "accuracy" else "nats",
        base=ends[0].removesuffix(" nats").replace(" %", "%"),
        tuned=ends[1].removesuffix(" nats").replace(" %", "%"),
        difference=difference,
        p=probability(row["p_value"]),
        p_holm=probability(row["p_holm"]),
        lost=count(row["num_lost"]),
        gained=count(row["num_gained"]),
    )


def _flip(rows: pl.DataFrame) -> Flip:
    first = rows.row(0, named=True)
    answers = [(row["arm"], _text(row["after"]), row["num_flipped"], row["num_seeds"]) for row in rows.to_dicts()]
    target, before = _text(first["target"]), _text(first["before"])
    options = [(option, option == first["target"], option == first["before"]) for option in first["options"] or ()]
    prompt = first["prompt"] or ""
    return Flip(
        task=first["task"],
        relation=RELATIONS.get(first["relation"], ""),
        category=first["category"],
        change=first["change"],
        item_id=first["item_id"],
        prompt=prompt if len(prompt) <= MOST_CHARACTERS else prompt[:MOST_CHARACTERS] + " \N{HORIZONTAL ELLIPSIS}",
        options=[(_text(option), is_target, is_before) for option, is_target, is_before in options],
        target=target,
        before=before,
        answers=answers,
    )


def _text(value: str | None) -> str:
    text = EMPTY if value is None else value.strip() or "(nothing)"
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " \N{HORIZONTAL ELLIPSIS}"
