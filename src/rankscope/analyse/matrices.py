"""The spectra of all updates of a run, as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import polars as pl
import torch
from torch import Tensor

from rankscope.internals.spectra import (
    dense_singular_values,
    lora_singular_values,
    spectral_norm,
    update_measures,
    update_norm,
)
from rankscope.models.fused import Part
from rankscope.models.weights import Update

# A full update has as many values as the matrix is wide; the largest ones tell its shape. An adapter's are all kept.
TOP_VALUES = 256

_KEYS = (
    "update_norm",
    "update_norm_relative",
    "update_spectral_relative",
    "stable_rank",
    "rank_utilisation",
    "effective_rank",
    "energy_rank_90",
    "energy_rank_95",
    "energy_rank_99",
)
_MATRICES = {
    "name": pl.String,
    "layer": pl.Int32,
    "module": pl.String,
    "d_out": pl.Int32,
    "d_in": pl.Int32,
    **dict.fromkeys(_KEYS, pl.Float64),
}
_OTHERS = {"name": pl.String, "layer": pl.Int32, "module": pl.String, "kind": pl.String, "update_norm": pl.Float64}


@dataclass(frozen=True)
class BaseNorms:
    """The size of a base's matrix: `||W0||_F` and `||W0||_2`."""

    frobenius: float
    spectral: float


@dataclass
class Spectra:
    """What a run's updates look like.

    Attributes:
        matrices: One row a matrix of a linear layer, null where a measure does not exist.
        others: Embeddings, output head, norms and biases, with the norm of their update only.
        singular_values: By matrix, largest first: all of an adapter's, the first 256 of a full update's.
    """

    matrices: pl.DataFrame
    others: pl.DataFrame
    singular_values: dict[str, Tensor] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """One number a measure for the run.

        `update_norm` is the total, the Frobenius norm over everything that was trained, tables and vectors too. All
        others are means over the matrices that have them.
        """
        norms = [*self.matrices["update_norm"], *self.others["update_norm"]]
        means = self.matrices.select(_KEYS[1:]).mean().row(0, named=True)
        values = {"update_norm": math.hypot(*norms), **means}
        return {key: float(value) for key, value in values.items() if value is not None}

    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know."""
        still = self.matrices.filter(pl.col("update_norm") == 0.0).height
        if not still:
            return ()
        return (f"{still} of {self.matrices.height} matrices did not move: their update has a norm of 0 and no rank",)


def spectra(updates: Iterable[Update | Part], norms_of: Callable[[Update | Part], BaseNorms]) -> Spectra:
    """Measure updates one after the other.

    Args:
        updates: As they come from disk, with fused matrices taken apart.
        norms_of: The size of the base's matrix, which a base's runs share.
    """
    matrices, others, singular_values = [], [], {}
    for update in updates:
        place = {"name": update.name, "layer": update.layer, "module": update.module}
        if update.kind != "matrix":
            others.append({**place, "kind": update.kind, "update_norm": _norm(update)})
            continue
        S, rank = _singular_values(update)
        norms = norms_of(update)
        values = update_measures(S, rank=rank, base_norm=norms.frobenius, base_spectral_norm=norms.spectral)
        d_out, d_in = update.shape
        matrices.append({**place, "d_out": d_out, "d_in": d_in, **values})
        singular_values[update.name] = S if rank is not None else S[:TOP_VALUES].clone()
    return Spectra(pl.DataFrame(matrices, schema=_MATRICES), pl.DataFrame(others, schema=_OTHERS), singular_values)


def base_norms(update: Update | Part) -> BaseNorms:
    """Read the base's matrix and measure it."""
    W0 = update.read_W0()
    return BaseNorms(float(torch.linalg.vector_norm(W0, dtype=torch.float64)), spectral_norm(W0))


def _singular_values(update: Update | Part) -> tuple[Tensor, int | None]:
    """The values of a matrix's update, and the rank it was granted."""
    factors = update.factors
    if factors is not None:
        return lora_singular_values(factors.A, factors.B, factors.scaling), factors.rank
    return dense_singular_values(update.delta_W), None


def _norm(update: Update | Part) -> float:
    if isinstance(update, Part) or update.read_factors is not None:
        return update_norm(_singular_values(update)[0])
    return math.hypot(*(float(torch.linalg.vector_norm(rows)) for rows in update.iter_rows()))
