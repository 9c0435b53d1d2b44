"""Cutting an update to fewer directions: its best approximation of a lower rank, as LoRA's factors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rankscope.internals.pairs import singular_triplets
from rankscope.internals.spectra import energy_rank
from rankscope.models.updates import Factors


def truncated(update: Factors, k: int) -> Factors:
    """The best approximation of rank k (Eckart and Young), its factors of equal size and its scaling 1.

    Args:
        update: What is cut.
        k: How many directions are kept, at least 1; more than there are keep all.
    """
    U, S, Vh = singular_triplets(update)
    k = min(k, len(S))
    root = S[:k].sqrt()
    return Factors(root[:, None] * Vh[:k], U[:, :k] * root, 1.0)


def kept_directions(S: Float[Tensor, " num_values"], asked: float | int) -> int:
    """How many directions a cut keeps of an update: those that hold a share of its energy, or a number of them.

    Args:
        S: Its singular values, largest first.
        asked: A share between 0 and 1 (a float), or a number of directions (an int).
    """
    if isinstance(asked, int):
        return max(1, min(asked, int((S > 0).sum())))
    return energy_rank(S, asked) or 1
