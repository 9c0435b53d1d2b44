"""The items whose answer changed: right before and wrong after, or the reverse, with their texts."""

from __future__ import annotations

import polars as pl

from rankscope.report.contents import Contents

_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "task": pl.String, "relation": pl.String, "change": pl.String,
    "item_id": pl.String, "category": pl.String, "prompt": pl.String, "options": pl.List(pl.String),
    "target": pl.String, "before": pl.String, "arm": pl.String, "after": pl.String, "num_flipped": pl.Int64,
    "num_seeds": pl.Int64, "source": pl.String,
}  # fmt: skip


def flipped_items(contents: Contents) -> pl.DataFrame:
    """Every flipped item of every arm at its chosen rate, with the number of seeds in which it flipped.

    `after` is the answer of the first seed that flipped. Rows are sorted so that what most arms and seeds lost comes
    first.
    """
    if contents.answers.is_empty() or contents.prompts.is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    joined = _answers(contents).join(_prompts(contents), on=["base", "task", "item_id"], how="inner")
    keys = ["base", "training_set", "arm", "task", "item_id"]
    is_flip = pl.col("is_correct") != pl.col("was_correct")
    flips = joined.group_by(keys, maintain_order=True).agg(
        is_flip.sum().cast(pl.Int64).alias("num_flipped"),
        pl.len().cast(pl.Int64).alias("num_seeds"),
        pl.col("prediction").filter(is_flip).first().alias("after"),
        pl.col("was_correct").first(),
        pl.col("source").filter(is_flip).first(),
        *(pl.col(name).first() for name in ("category", "prompt", "options", "target", "before")),
    )
    flips = flips.filter(pl.col("num_flipped") > 0).join(_relations(contents), on=["training_set", "task"], how="left")
    named = flips.with_columns(pl.when("was_correct").then(pl.lit("lost")).otherwise(pl.lit("gained")).alias("change"))
    return _sorted(named).select(*_SCHEMA)


def _answers(contents: Contents) -> pl.DataFrame:
    runs = [
        {"run_id": run.run_id, "base": run.base.name, "training_set": run.training_set.name, "arm": run.arm.label}
        for run in contents.plan.runs
    ]
    settings = pl.DataFrame(runs, schema=dict.fromkeys(("run_id", "base", "training_set", "arm"), pl.String))
    return contents.answers.join(settings, on="run_id", how="inner", maintain_order="left")


def _prompts(contents: Contents) -> pl.DataFrame:
    return contents.prompts.select(
        "base", "task", "item_id", "category", "prompt", "options", "target",
        pl.col("is_correct").alias("was_correct"), pl.col("prediction").cast(pl.String).alias("before"),
    )  # fmt: skip


def _relations(contents: Contents) -> pl.DataFrame:
    rows = [
        {"training_set": training_set, "task": task, "relation": relation}
        for training_set, tasks in contents.plan.relations.items()
        for task, relation in tasks.items()
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("training_set", "task", "relation"), pl.String))


def _sorted(flips: pl.DataFrame) -> pl.DataFrame:
    """What most arms and seeds flipped first; items stay together, ties keep the tasks' own order."""
    item = ["base", "training_set", "task", "item_id"]
    weight = flips.group_by(item).agg(pl.col("num_flipped").sum().alias("weight"))
    return flips.join(weight, on=item, how="left", maintain_order="left").sort(
        "base", "training_set", "weight", "task", "item_id", descending=[False, False, True, False, False],
        maintain_order=True,
    )  # fmt: skip
