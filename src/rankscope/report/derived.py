"""What becomes of a trained model that is rewound, cut to a lower rank or freed of intruders, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from rankscope.report.contents import Contents
from rankscope.report.wording import OWN, digits_of, plain, scaled, unit_of
from rankscope.spreads import own_seed_variance, spread
from rankscope.statistics import estimate, ratio_differences

# By measure: the relation of its tasks, whether they have right answers, and the sign by which it grows as named.
_MEASURES = {
    "gain": ("in_domain", True, 1.0),
    "gain_nats": ("in_domain", False, 1.0),
    "forgetting": ("retention", True, -1.0),
    "forgetting_nats": ("retention", False, -1.0),
}
_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "arm": pl.String, "kind": pl.String, "amount": pl.Float64,
    "measure": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "change": pl.Float64,
    "change_low": pl.Float64, "change_high": pl.Float64, "confidence": pl.Float64, "num_items": pl.Int64,
    "num_seeds": pl.Int64, "seeds_part": pl.String, "added_rank": pl.Float64,
    "num_intruders": pl.Float64, "source": pl.String,
}  # fmt: skip
# Of each item: of the derived model, of the run itself and of the base right (1) or wrong (0), or nats; scored tokens.
_VALUES = ("derived_value", "own_value", "base_value", "num_tokens")


def derived_models(contents: Contents) -> pl.DataFrame:
    """Each derived model of each arm: gain and forgetting against the base, and the change against the run itself.

    The run itself stands among them: the update times 1, its own rank, intruders times 1. All are compared on the
    same items, seed by seed. How much it moves with the seed is taken from the arm's own seeds, since few arms have
    derived models; the run itself has a second interval in a verdict, whose seeds are pooled over arms.
    """
    rows: list[dict[str, Any]] = []
    frame = contents.derived
    if frame.is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    confidence = contents.settings.confidence if contents.settings else 0.95
    for (base, training_set, arm, kind), part in frame.group_by(
        "base", "training_set", "arm", "kind", maintain_order=True
    ):
        for (amount,), point in part.sort("amount", maintain_order=True).group_by("amount", maintain_order=True):
            for measure, (relation, has_answers, sign) in _MEASURES.items():
                items = point.filter((pl.col("relation") == relation) & (pl.col("has_answers") == has_answers))
                if items.is_empty():
                    continue
                found = _estimates(items, sign, confidence, is_bounded=has_answers)
                extra = {
                    "added_rank": point["added_rank"].mean(), "num_intruders": point["num_intruders"].mean(),
                    "source": "; ".join(sorted(set(items["source"]))),
                }  # fmt: skip
                place = {"base": base, "training_set": training_set, "arm": arm, "kind": kind, "amount": amount}
                rows.append({**place, "measure": measure, **found, **extra})
    return pl.DataFrame(rows, schema=_SCHEMA)


def sentences(derived: pl.DataFrame) -> dict[tuple[str, str], list[str]]:
    """By base and training set, what cutting ranks and scaling intruders did, in words.

    As in `lora-r64 cut to rank 16: gain 12.1 to 11.8 points, ...`; of scaled intruders also the rank that it adds.
    """
    found: dict[tuple[str, str], list[str]] = {}
    told = derived.filter(pl.col("kind").is_in(["truncate", "intruders"]))
    for (base, training_set, arm, kind), part in told.group_by(
        "base", "training_set", "arm", "kind", maintain_order=True
    ):
        whole = float(part["amount"].max()) if kind == "truncate" else 1.0
        for (amount,), point in part.group_by("amount", maintain_order=True):
            if amount == whole:
                continue
            said = [_said(part, point, measure, whole) for measure in _MEASURES]
            if kind == "truncate":
                what = f"cut to rank {amount:g}"
            else:
                what = f"with its intruders times {amount:g}"
                said.append(f"rank added {point['added_rank'].mean() or 0.0:.3g}")
            text = "; ".join(words for words in said if words)
            found.setdefault((base, training_set), []).append(f"{arm} {what}: {text}")
    return found


def _said(part: pl.DataFrame, point: pl.DataFrame, measure: str, whole: float) -> str | None:
    own = part.filter((pl.col("measure") == measure) & (pl.col("amount") == whole))
    made = point.filter(pl.col("measure") == measure)
    if own.is_empty() or made.is_empty():
        return None
    row = made.row(0, named=True)

    def number(value: float) -> str:
        return plain(scaled(value, measure), digits_of(measure))

    text = f"{measure.removesuffix('_nats')} {number(own['value'][0])} to {number(row['value'])} {unit_of(measure)}"
    if row["change_low"] is None:
        return text
    return f"{text}, a change of {number(row['change_low'])} to {number(row['change_high'])}"


def _estimates(items: pl.DataFrame, sign: float, confidence: float, *, is_bounded: bool) -> dict[str, Any]:
    """The mean over tasks against the base and against the run itself, each with its interval over items and seeds."""
    from_base, from_run = [], []
    seeds = _shared_seeds(items)
    for (_task,), task in items.group_by(["task"], maintain_order=True):
        derived, own, base, tokens = (_grid(task, seeds, name) for name in _VALUES)
        if is_bounded:
            from_base.append(sign * (derived - base))
            from_run.append(sign * (derived - own))
        else:
            against = ratio_differences(base[0], derived, tokens[0])
            from_base.append(sign * against)
            from_run.append(sign * (against - ratio_differences(base[0], own, tokens[0])))
    values, changes = (spread(arrays, is_bounded=is_bounded) for arrays in (from_base, from_run))
    value, change = (estimate(item, own_seed_variance(item), confidence) for item in (values, changes))
    return {
        "value": value.value, "low": value.low, "high": value.high, "confidence": confidence,
        "change": change.value, "change_low": change.low, "change_high": change.high,
        "num_items": value.num_items, "num_seeds": value.num_seeds, "seeds_part": OWN if value.seeds else None,
    }  # fmt: skip


def _shared_seeds(items: pl.DataFrame) -> list[int]:
    """The seeds that have every task."""
    by_task: Iterable[pl.DataFrame] = (part for _, part in items.group_by("task"))
    return sorted(set.intersection(*(set(part["seed"]) for part in by_task)))


def _grid(task: pl.DataFrame, seeds: Sequence[int], column: str) -> np.ndarray:
    """A column as seeds x items, the items in one order."""
    parts = [task.filter(pl.col("seed") == seed).sort("item_id")[column] for seed in seeds]
    return np.stack([part.cast(pl.Float64).to_numpy() for part in parts])
