"""How far tuning moved what layers say: base and tuned residual streams on the same positions, compared.

Everything comes from sums over positions, so batches of any size add up to the same numbers, and no more than one
square of the model's width is kept for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StreamSums:
    """Sums over positions of two streams, in float64.

    Attributes:
        num_positions: How many positions they are over.
        base: The sum of the base's vectors; `tuned` likewise.
        base_base: The sum of outer products `x x'`; `tuned_tuned` and `base_tuned` likewise.
        cosine: The sum of the cosines between the two vectors of each position.
    """

    num_positions: int
    base: Float[Tensor, " d_model"]
    tuned: Float[Tensor, " d_model"]
    base_base: Float[Tensor, "d_model d_model"]
    tuned_tuned: Float[Tensor, "d_model d_model"]
    base_tuned: Float[Tensor, "d_model d_model"]
    cosine: float

    def __add__(self, other: StreamSums) -> StreamSums:
        """The sums over the positions of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return StreamSums(*(mine + theirs for mine, theirs in pairs))


def stream_sums(base: Float[Tensor, "positions d_model"], tuned: Float[Tensor, "positions d_model"]) -> StreamSums:
    """The sums over the positions of a batch; the same positions in both."""
    X, Y = base.double(), tuned.double()
    # A root of a product, not a product of roots: so equal vectors have a cosine of exactly 1.
    lengths = (X.square().sum(-1) * Y.square().sum(-1)).sqrt()
    cosines = torch.where(lengths > 0.0, (X * Y).sum(-1) / lengths, 0.0)
    return StreamSums(len(X), X.sum(0), Y.sum(0), X.T @ X, Y.T @ Y, X.T @ Y, float(cosines.sum()))


def cka(sums: StreamSums) -> float | None:
    """How alike the two streams' geometry is: linear centred kernel alignment.

    1: the same up to a rotation, a shift and a scale; 0: nothing in common. With columns centred,
    `||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F)`. None where a stream does not vary. Kornblith et al., arXiv 1905.00414.
    """
    XX, YY, XY = _centred(sums)
    scale = float((XX.square().sum() * YY.square().sum()).sqrt())
    return float(XY.square().sum()) / scale if scale > 0.0 else None


def residual_cosine(sums: StreamSums) -> float:
    """Mean over positions of the cosine between the base's and the tuned stream. 1: the same direction everywhere."""
    return sums.cosine / sums.num_positions


def procrustes_residual(sums: StreamSums) -> float | None:
    """What is left of the difference after the best rotation, scale and shift, as a share of the tuned stream's energy.

    0: nothing, the tuned stream is the base's turned; 1: all. With columns centred and `||.||_*` the nuclear norm,
    `1 - (||X'Y||_* / (||X||_F ||Y||_F))^2`. None where a stream does not vary.
    """
    XX, YY, XY = _centred(sums)
    energy = float(XX.trace() * YY.trace())
    if energy <= 0.0:
        return None
    return max(0.0, 1.0 - float(torch.linalg.svdvals(XY).sum()) ** 2 / energy)


def stream_measures(sums: StreamSums) -> dict[str, float]:
    """Every measure of a layer by key; one that does not exist is absent."""
    found = {
        "cka": cka(sums),
        "residual_cosine": residual_cosine(sums),
        "procrustes_residual": procrustes_residual(sums),
    }
    return {key: value for key, value in found.items() if value is not None}


def _centred(sums: StreamSums) -> tuple[Tensor, Tensor, Tensor]:
    """`X'X`, `Y'Y` and `X'Y` with the mean of each column taken off."""
    x, y, n = sums.base, sums.tuned, sums.num_positions
    return (
        sums.base_base - torch.outer(x, x) / n,
        sums.tuned_tuned - torch.outer(y, y) / n,
        sums.base_tuned - torch.outer(x, y) / n,
    )
