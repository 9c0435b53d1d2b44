"""What changed of single neurons as one number a layer or a model, without torch, so that the report reads it too."""

from __future__ import annotations

import polars as pl


def neuron_means() -> list[pl.Expr]:
    """Over rows of changed neurons: the mean size of their shifts, and how many fell silent or began to speak.

    A neuron that never varied and moved has an infinite shift, which would be the mean of all; it is left out of it.
    """
    shifts = pl.col("neuron_shift")
    counted = [
        pl.col(f"is_{what}").sum().cast(pl.Int64).alias(f"neurons_{what}") for what in ("newly_dead", "newly_active")
    ]
    return [shifts.filter(shifts.is_finite()).abs().mean(), *counted]


def neuron_means_by_layer(changes: pl.LazyFrame) -> pl.LazyFrame:
    """One row a layer, in order: `neuron_means` of its neurons, and how many it has."""
    counted = pl.len().cast(pl.Int64).alias("num_neurons")
    return changes.group_by("layer").agg(*neuron_means(), counted).sort("layer")
