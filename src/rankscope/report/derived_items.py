"""The items of derived models beside those of the run and of the base, one row an item."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl

from rankscope.plan import Plan
from rankscope.records import DeriveRecord
from rankscope.runs import RunSettings

# Reads items: of the base (None), of a run, or of a run's derived model of that name; None where they are not there.
ItemsOf = Callable[[RunSettings, str | None, str | None, str], pl.DataFrame | None]


def derived_items(plan: Plan, run: RunSettings, records: list[DeriveRecord], items_of: ItemsOf) -> list[pl.DataFrame]:
    """Every derived model of a run, and the run itself among each kind of them.

    Args:
        plan: The study's.
        run: A run at its chosen rate.
        records: Of its derived models, those that were scored.
        items_of: Reads items by run, run id or None, derived model's name or None, and task.
    """
    frames = []
    for task in plan.derive_tasks(run.run_id) if records else ():
        base, own = items_of(run, None, None, task), items_of(run, run.run_id, None, task)
        if base is None or own is None:
            continue
        has_answers = plan.tasks[run.base.name][task].scoring != "loss"
        place = {
            "base": run.base.name, "training_set": run.training_set.name, "arm": run.arm.label, "seed": run.seed,
            "task": task, "relation": plan.relations[run.training_set.name][task], "has_answers": has_answers,
        }  # fmt: skip
        constants = [pl.lit(value).alias(name) for name, value in place.items()]
        both = _values(base, "base_value", has_answers).join(_values(own, "own_value", has_answers), on="item_id")
        for kind, amount, record in _points(run, records):
            items = own if record is None else items_of(run, run.run_id, record.point.name, task)
            if items is None:
                continue
            joined = both.join(_values(items, "derived_value", has_answers).drop("num_tokens"), on="item_id")
            source = f"runs/{run.run_id}/" + (f"derive/{record.point.name}" if record else f"evaluate/{task}")
            source = f"{source}/record.json"
            more = {
                "kind": kind, "amount": float(amount), "added_rank": record and record.added_rank,
                "num_intruders": record and record.num_intruders, "source": source,
            }  # fmt: skip
            frames.append(joined.drop("num_tokens_right").with_columns(*constants, *(_literal(more))))
    return frames


def _points(run: RunSettings, records: list[DeriveRecord]) -> Iterator[tuple[str, float, DeriveRecord | None]]:
    """The derived models, and the run itself where it stands among them: a full model has no rank of its own."""
    for record in records:
        yield record.point.kind, record.point.amount, record
    own = {"rewind": 1.0, "intruders": 1.0, "truncate": run.arm.rank}
    for kind in dict.fromkeys(record.point.kind for record in records):
        if own[kind] is not None:
            yield kind, own[kind], None


def _values(items: pl.DataFrame, name: str, has_answers: bool) -> pl.DataFrame:
    column = "is_correct" if has_answers else "nll_nats"
    return items.select(
        "item_id", pl.col(column).cast(pl.Float64).alias(name), pl.col("num_scored_tokens").alias("num_tokens")
    )


def _literal(values: dict[str, object]) -> list[pl.Expr]:
    kinds = {"added_rank": pl.Float64, "num_intruders": pl.Float64}
    return [pl.lit(value, dtype=kinds.get(name)).alias(name) for name, value in values.items()]
