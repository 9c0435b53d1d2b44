"""What was lost, as the page shows it: the table of tasks, the categories, the items that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rankscope.report.cells import Cell
from rankscope.report.wording import (
    EMPTY,
    amount_of,
    between,
    beyond,
    count,
    counted,
    digits_of,
    evidence,
    probability,
    scaled,
    signed,
)

RELATIONS = {"in_domain": "in domain", "out_of_domain": "out of domain", "retention": "retention"}
# So much is in the page; the whole of it is in the CSV beside it. The characters are those of all items of a group.
MOST_CATEGORIES, MOST_CHARACTERS, MOST_CHARACTERS_OF_ALL = 60, 1200, 400_000


@dataclass(frozen=True)
class ComparisonRow:
    """One arm on one task or category against the base."""

    arm: str
    name: str
    relation: str
    unit: str
    rests: str
    base: str
    tuned: str
    difference: Cell
    p: str
    p_holm: str
    lost: str
    gained: str


@dataclass(frozen=True)
class Flip:
    """One item that flipped, with the answers of every arm that flipped it: arm, answer, in how many seeds."""

    task: str
    place: str
    change: str
    prompt: str
    options: Sequence[tuple[str, bool]]
    target: str
    before: str
    answers: Sequence[tuple[str, str, str]]


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


def flips(flipped: pl.DataFrame, most_characters: int = MOST_CHARACTERS_OF_ALL) -> list[Flip]:
    """The items that flipped, what most arms and seeds lost first, then what they gained, as many as the page holds."""
    found, left = [], most_characters
    for change in ("lost", "gained"):
        part = flipped.filter(pl.col("change") == change)
        for _, rows in part.group_by(["task", "item_id"], maintain_order=True):
            flip = _flip(rows)
            left -= len(str(flip))
            if left < 0:
                break
            found.append(flip)
    return found


def _comparison(row: dict[str, Any], name: str) -> ComparisonRow:
    measure = row["measure"]
    wide = beyond(row["base_value"], row["low"], row["high"], measure)
    rests = evidence(row["confidence"], row["num_items"], row["num_seeds"], row["source"], row["seeds_part"])
    difference = Cell(
        signed(scaled(row["value"], measure), digits_of(measure)),
        between(row["low"], row["high"], measure),
        f"difference in {measure}, higher is better{wide}: {rests}",
        "worse" if row["high"] is not None and row["high"] < 0 else "",
    )
    ends = [amount_of(row[key], None, None, measure, signs=False) for key in ("base_value", "tuned_value")]
    return ComparisonRow(
        arm=row["arm"],
        name=name,
        relation=RELATIONS[row["relation"]],
        unit="points" if row["unit"] == "accuracy" else "nats",
        rests=evidence(None, row["num_items"], row["num_seeds"], "").removesuffix("; "),
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
    answers = [
        (row["arm"], _text(row["after"]), f"{row['num_flipped']} of {counted(row['num_seeds'], 'seed')}")
        for row in rows.to_dicts()
    ]
    prompt = first["prompt"] or ""
    place = RELATIONS.get(first["relation"], "")
    return Flip(
        task=first["task"],
        place=f"{place}, {first['category']}" if first["category"] else place,
        change=first["change"],
        prompt=prompt if len(prompt) <= MOST_CHARACTERS else prompt[:MOST_CHARACTERS] + " \N{HORIZONTAL ELLIPSIS}",
        options=[(_text(option), option == first["target"]) for option in first["options"] or ()],
        target=_text(first["target"]),
        before=_text(first["before"]),
        answers=answers,
    )


def _text(value: str | None) -> str:
    text = EMPTY if value is None else value.strip() or "(nothing)"
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " \N{HORIZONTAL ELLIPSIS}"
