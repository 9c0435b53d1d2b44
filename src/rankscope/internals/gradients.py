"""What one gradient before training says of the ranks that an update may need."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def signal_rank(first: Float[Tensor, "d_out d_in"], second: Float[Tensor, "d_out d_in"]) -> tuple[int, int, int]:
    """How many directions of a matrix's gradient stand out of its own noise.

    The gradient is the mean of those of two halves of a batch; half their difference is what another choice of examples
    changes, so a singular value below the largest of that may be noise (measures.md, "Before training").

    Args:
        first: The gradient of one half of the examples.
        second: That of the other.

    Returns:
        The number of singular values of the mean that reach the largest of half the difference; then the least numbers
        of directions that hold 90% and 99% of the mean's energy. All are 0 for a gradient of zero.
    """
    S = torch.linalg.svdvals((first + second).float() / 2)
    noise = torch.linalg.matrix_norm((first - second).float() / 2, ord=2)
    if float(S[0]) == 0.0:
        return 0, 0, 0
    energy = torch.cumsum(S.double() ** 2, 0) / (S.double() ** 2).sum()
    reached = [int((energy < share - 1e-12).sum()) + 1 for share in (0.90, 0.99)]
    return int((noise <= S).sum()), reached[0], reached[1]


def capacity_rank(bits: float, bits_per_rank: float) -> int:
    """The least rank whose parameters hold so many bits.

    Args:
        bits: What there is to store.
        bits_per_rank: What the parameters of one rank hold, over all adapted matrices.
    """
    return max(1, math.ceil(bits / bits_per_rank))


def ranks_to_try(needed: int, typical: int, high: int, largest: int) -> tuple[int, ...]:
    """Powers of two from the smaller of what capacity and a typical matrix ask for, to the larger.

    Args:
        needed: The rank that capacity asks for.
        typical: Directions that stand out in the median matrix.
        high: The most that a matrix is thought to use.
        largest: The size of the smallest matrix; no update has more.
    """
    low = max(1, min(needed, max(1, typical)))
    top = max(low, min(largest, max(needed, high)))
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(top))
    return tuple(2**power for power in range(first, last + 1) if 2**power <= largest)
