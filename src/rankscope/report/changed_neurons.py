"""The neurons that training moved farthest, with the texts that excite them most before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from rankscope.report.contents import Contents
from rankscope.report.wording import signed
from rankscope.runs import ArmKey

_MOST_NEURONS, _MOST_CHARACTERS = 3, 200
_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "arm": pl.String, "run_id": pl.String, "layer": pl.Int64,
    "neuron": pl.Int64, "neuron_shift": pl.Float64, "model": pl.String, "task": pl.String, "item_id": pl.String,
    "text": pl.String, "position": pl.Int64, "activation": pl.Float64, "source": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class ChangedNeuron:
    """One neuron of one arm, with the text that excites it most in the base and in the tuned model."""

    arm: str
    place: str
    shift: str
    before: str
    after: str
    source: str


def changed_neurons(contents: Contents) -> pl.DataFrame:
    """One row a neuron, model and text, of each arm's first seed at its chosen rate; `text` is null where none is read.

    Neurons of different seeds are different neurons' changes, so no mean over seeds is taken.
    """
    if contents.most_changed.is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    first: dict[ArmKey, str] = {}
    there = set(contents.most_changed["run_id"])
    for run in sorted(contents.plan.runs, key=lambda run: run.seed):
        arm = run.arm_key
        if run.run_id in there and contents.chosen_rate(*arm) == run.learning_rate:
            first.setdefault(arm, run.run_id)
    rows = [(*arm, run_id) for arm, run_id in first.items()]
    runs = pl.DataFrame(rows, schema=["base", "training_set", "arm", "run_id"], orient="row")
    # A probe is named by its task and item.
    named = contents.most_changed.with_columns(
        pl.col("probe_id").str.split_exact("/", 1).struct.field("field_0").alias("task"),
        pl.col("probe_id").str.replace(r"^[^/]*/", "").alias("item_id"),
    )
    found = runs.join(named, on=["base", "run_id"], how="inner", maintain_order="left_right")
    return _with_texts(found, contents.prompts).select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())


def _with_texts(found: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    if prompts.is_empty():
        return found.with_columns(pl.lit(None, dtype=pl.String).alias("text"))
    texts = prompts.select("base", "task", "item_id", pl.concat_str("prompt", "target").alias("text"))
    return found.join(texts, on=["base", "task", "item_id"], how="left", maintain_order="left")


def neuron_rows(table: pl.DataFrame) -> Sequence[ChangedNeuron]:
    """The first few neurons of each arm of one group, as the page lists them."""
    rows = []
    for (arm,), of_arm in table.group_by(["arm"], maintain_order=True):
        neurons = of_arm.group_by(["layer", "neuron"], maintain_order=True)
        for (layer, neuron), part in list(neurons)[:_MOST_NEURONS]:
            rows.append(
                ChangedNeuron(
                    arm=str(arm),
                    place=f"{layer}, {neuron}",
                    shift=signed(part["neuron_shift"][0], 2),
                    before=_strongest(part.filter(pl.col("model") == "base")),
                    after=_strongest(part.filter(pl.col("model") == "tuned")),
                    source=part["source"][0],
                )
            )
    return rows


def _strongest(texts: pl.DataFrame) -> str:
    """The text that excites most, cut; its name where its text cannot be read."""
    if texts.is_empty():
        return ""
    row = texts.row(0, named=True)
    text = " ".join((row["text"] or f"{row['task']}/{row['item_id']}").split())
    cut = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f"{cut} ({signed(row['activation'], 2)})"
