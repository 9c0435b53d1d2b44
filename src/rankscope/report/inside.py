"""Tables of what changed inside the tuned models: spectra by arm and module; attention, stream and neurons by layer."""

from __future__ import annotations

import polars as pl

from rankscope.measures import MEASURES, SUBSPACES
from rankscope.records import NOT_AVAILABLE
from rankscope.report.contents import Contents

SPECTRA = (
    "update_norm", "update_norm_relative", "update_spectral_relative", "stable_rank", "rank_utilisation",
    "effective_rank", "energy_rank_90", "energy_rank_95", "energy_rank_99",
)  # fmt: skip
ATTENTION = (
    "attention_entropy", "attention_divergence", "attention_first_token", "attention_distance", "head_similarity",
)  # fmt: skip
REPRESENTATIONS = ("cka", "residual_cosine", "procrustes_residual")
NEURONS = ("neuron_shift", "neurons_newly_dead", "neurons_newly_active")

_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "arm": pl.String, "rank": pl.Int64, "measure": pl.String,
    "value": pl.Float64, "lowest": pl.Float64, "highest": pl.Float64, "num_seeds": pl.Int64, "num_matrices": pl.Int64,
    "source": pl.String,
}  # fmt: skip


def spectra_by_arm(contents: Contents) -> pl.DataFrame:
    """Each spectral measure of each arm: the mean over matrices of a run, then over seeds, with the seeds' range.

    Intruders are added up over the matrices instead.
    """
    long = _matrices(contents)
    if long.is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    keys = ["base", "training_set", "arm", "rank", "measure"]
    is_count = pl.col("measure").first().str.starts_with("intruder")
    per_run = long.group_by([*keys, "run_id"], maintain_order=True).agg(
        pl.when(is_count).then(pl.col("value").sum()).otherwise(pl.col("value").mean()).alias("value"),
        pl.len().cast(pl.Int64).alias("num_matrices"),
        pl.col("source").first(),
    )
    return per_run.group_by(keys, maintain_order=True).agg(
        pl.col("value").mean(),
        pl.col("value").min().alias("lowest"),
        pl.col("value").max().alias("highest"),
        pl.len().cast(pl.Int64).alias("num_seeds"),
        pl.col("num_matrices").max(),
        pl.col("source").first(),
    )


def spectra_by_module(contents: Contents) -> pl.DataFrame:
    """Each spectral measure of each arm, layer and module: the mean over seeds."""
    long = _matrices(contents)
    if long.is_empty():
        return pl.DataFrame(schema={**_SCHEMA, "layer": pl.Int64, "module": pl.String})
    keys = ["base", "training_set", "arm", "rank", "layer", "module", "measure"]
    return long.group_by(keys, maintain_order=True).agg(
        pl.col("value").mean(), pl.col("run_id").n_unique().alias("num_seeds"), pl.col("source").first()
    )


def attention_by_layer(contents: Contents) -> pl.DataFrame:
    """Each attention measure by layer: the mean over heads and seeds; the base's own rows have no arm's name."""
    long = _long(contents, contents.heads, ATTENTION, ["layer", "head"])
    if long.is_empty():
        return pl.DataFrame(schema={**_SCHEMA, "layer": pl.Int64})
    keys = ["base", "training_set", "arm", "rank", "layer", "measure"]
    return long.group_by(keys, maintain_order=True).agg(
        pl.col("value").mean(),
        pl.col("run_id").n_unique().alias("num_seeds"),
        pl.col("head").n_unique().alias("num_heads"),
        pl.col("source").first(),
    )


def representations_by_layer(contents: Contents) -> pl.DataFrame:
    """Each measure of the residual stream by layer: the mean over the tasks of a run, then over seeds."""
    long = _long(contents, contents.representations, REPRESENTATIONS, ["layer", "task", "num_positions"])
    if long.is_empty():
        return pl.DataFrame(schema={**_SCHEMA, "layer": pl.Int64})
    keys = ["base", "training_set", "arm", "rank", "layer", "measure"]
    per_run = long.group_by([*keys, "run_id"], maintain_order=True).agg(
        pl.col("value").mean(),
        pl.col("task").n_unique().alias("num_tasks"),
        pl.col("num_positions").sum(),
        pl.col("source").first(),
    )
    return _over_seeds(per_run, keys, "num_tasks", "num_positions")


def neurons_by_layer(contents: Contents) -> pl.DataFrame:
    """What became of the neurons of each layer: the mean over seeds."""
    long = _long(contents, contents.neurons, NEURONS, ["layer", "num_neurons"])
    if long.is_empty():
        return pl.DataFrame(schema={**_SCHEMA, "layer": pl.Int64})
    return _over_seeds(long, ["base", "training_set", "arm", "rank", "layer", "measure"], "num_neurons")


def _over_seeds(per_run: pl.DataFrame, keys: list[str], *counts: str) -> pl.DataFrame:
    return per_run.group_by(keys, maintain_order=True).agg(
        pl.col("value").mean(),
        pl.col("value").min().alias("lowest"),
        pl.col("value").max().alias("highest"),
        pl.col("run_id").n_unique().alias("num_seeds"),
        *(pl.col(name).max() for name in counts),
        pl.col("source").first(),
    )


def _matrices(contents: Contents) -> pl.DataFrame:
    """One row a number of a matrix: its update's spectrum and its singular subspaces."""
    place = ["name", "layer", "module"]
    found = [_long(contents, contents.matrices, SPECTRA, place), _long(contents, contents.subspaces, SUBSPACES, place)]
    found = [frame for frame in found if not frame.is_empty()]
    return pl.concat(found, how="diagonal_relaxed") if found else pl.DataFrame()


def not_available(contents: Contents) -> pl.DataFrame:
    """What an analysis can say nothing of: an arm, the analysis, and why."""
    rows = {}
    for one in contents.analysed:
        subject = one.record.subject
        for note in one.record.notes:
            if note.startswith(NOT_AVAILABLE):
                key = (subject.base, subject.training_set, subject.arm, one.record.analysis)
                rows.setdefault(key, (*key, note.removeprefix(NOT_AVAILABLE), one.source))
    names = ("base", "training_set", "arm", "analysis", "reason", "source")
    return pl.DataFrame(list(rows.values()), schema=dict.fromkeys(names, pl.String), orient="row")


def remarks(contents: Contents) -> pl.DataFrame:
    """What else a reader of an analysis of an arm should know, once an arm: its numbers are there."""
    rows = {}
    for one in contents.analysed:
        subject = one.record.subject
        for note in one.record.notes:
            if not note.startswith(NOT_AVAILABLE):
                key = (subject.base, subject.training_set, subject.arm, one.record.analysis, note)
                rows.setdefault(key, (*key, one.source))
    names = ("base", "training_set", "arm", "analysis", "remark", "source")
    return pl.DataFrame(list(rows.values()), schema=dict.fromkeys(names, pl.String), orient="row")


def _long(contents: Contents, wide: pl.DataFrame, measures: tuple[str, ...], keys: list[str]) -> pl.DataFrame:
    """One row a number, of the base and of runs at chosen rates, with the run's settings beside it."""
    if wide.is_empty():
        return wide
    runs = [
        {"run_id": run.run_id, "training_set": run.training_set.name, "arm": run.arm.label, "rank": run.arm.rank}
        for run in contents.plan.runs
        if contents.chosen_rate(*run.arm_key) == run.learning_rate
    ]
    schema = {"run_id": pl.String, "training_set": pl.String, "arm": pl.String, "rank": pl.Int64}
    present = [key for key in measures if key in wide.columns and key in MEASURES]
    index = [key for key in ("base", "run_id", *keys, "source") if key in wide.columns]
    long = wide.unpivot(present, index=index, variable_name="measure", value_name="value")
    joined = long.join(pl.DataFrame(runs, schema=schema), on="run_id", how="left", maintain_order="left")
    return joined.filter(
        (pl.col("arm").is_not_null() | pl.col("run_id").is_null()) & pl.col("value").is_not_null()
    ).with_columns(pl.col("value").cast(pl.Float64))
