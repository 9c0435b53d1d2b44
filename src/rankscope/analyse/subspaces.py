"""How the singular vectors of all of a run's matrices lie to the base's, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
from torch import Tensor

from rankscope.internals.subspaces import (
    full_rho,
    full_triplets,
    in_base,
    lora_rho,
    lora_triplets,
    num_triplets,
    num_vectors,
    subspace_measures,
    unmoved,
)
from rankscope.measures import SUBSPACES
from rankscope.models.decompositions import Decomposition
from rankscope.models.fused import Part
from rankscope.models.updates import Update

SCHEMA = {
    "name": pl.String, "layer": pl.Int32, "module": pl.String, "d_out": pl.Int32, "d_in": pl.Int32,
    "num_vectors": pl.Int32, "error": pl.Float64, **dict.fromkeys(SUBSPACES, pl.Float64),
}  # fmt: skip
# Counts are added up over matrices, everything else is averaged.
_SUMMED = ("intruder_dimensions", "intruder_dimensions_right")


@dataclass(frozen=True)
class Subspaces:
    """What a run did to the base's singular subspaces.

    Attributes:
        matrices: One row a matrix: its place, how many vectors were compared one by one, the largest relative
            residual of its triplets, and the measures, null where one does not exist.
    """

    matrices: pl.DataFrame

    def summary(self) -> dict[str, float]:
        """One number a measure: intruders added up over the matrices, everything else their mean."""
        means = self.matrices.select(key for key in SUBSPACES if key not in _SUMMED).mean().row(0, named=True)
        sums = self.matrices.select(_SUMMED).sum().row(0, named=True) if self.matrices.height else {}
        values = {**means, **sums}
        return {key: float(values[key]) for key in SUBSPACES if values.get(key) is not None}

    def notes(self) -> tuple[str, ...]:
        """How exact the numbers are."""
        if not self.matrices.height:
            return ("no matrix of a linear layer was changed",)
        worst = float(self.matrices["error"].max())
        return (f"singular triplets of the tuned matrices have relative residuals of at most {worst:.1e}",)


def subspaces(parts: Iterable[Update | Part], decomposition_of: Callable[[Tensor], Decomposition]) -> Subspaces:
    """Measure updates one after the other.

    Args:
        parts: Updates with fused matrices taken apart; what is no matrix is passed over.
        decomposition_of: The decomposition of a base's matrix, which all runs and studies share.
    """
    rows = [_row(part, decomposition_of(part.read_W0())) for part in parts if isinstance(part, Part)]
    return Subspaces(pl.DataFrame(rows, schema=SCHEMA))


def _row(part: Part, base: Decomposition) -> dict[str, Any]:
    k, factors = num_triplets(base), part.factors
    if factors is not None:
        is_still = not (bool(factors.A.any()) and bool(factors.B.any()))
        update = in_base(base, factors.A, factors.B, factors.scaling)
        rho = partial(lora_rho, update)
        triplets = unmoved(base) if is_still else lora_triplets(base, update, k)
    else:
        rho = partial(full_rho, base, part.delta_W)
        triplets = full_triplets(base, part.tuned(), k) if bool(part.delta_W.any()) else unmoved(base)
    return {
        "name": part.name,
        "layer": part.layer,
        "module": part.module,
        "d_out": part.shape[0],
        "d_in": part.shape[1],
        "num_vectors": min(num_vectors(part.shape), k),
        "error": triplets.error,
        **subspace_measures(base, triplets, rho),
    }
