"""How a tuned matrix's singular vectors lie to the base's: overlap, cosines, intruders, and where the update points.

With `W0 = U0 S0 Vh0` known, the tuned matrix is looked at in the base's singular bases, where a vector of `W` has the
cosines with the base's as its coordinates. An adapter is never written out: there `W` is a diagonal plus a product of
rank r, and its largest triplets come from a small Rayleigh-Ritz problem (`lora_triplets`). A full update is given as
the tuned matrix (`full_triplets`).

Left vectors are meant where a name does not say; `_right` marks the same for right ones. What does not exist (32
directions of a matrix with 16) is absent, never a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.internals.eigenpairs import largest, largest_of_sum
from rankscope.models.decompositions import Decomposition

OVERLAPS = (8, 32, 128)
RHOS = (16, 128)
# The published algorithm's numbers: how many of W's vectors are asked, and the cosine below which one is an intruder.
INTRUDERS_AMONG, INTRUDER_COSINE = 10, 0.5
# The study behind this tool compares the 500 largest of about 4,000; a smaller matrix gets as large a part of its own.
MOST_VECTORS, VECTORS_PART = 500, 8
# Singular values below this share of the largest are rounding: their vectors point anywhere.
_NUMERICAL_RANK = 1e-7

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Triplets:
    """The largest singular triplets of `W`, in the coordinates of the base's.

    Attributes:
        S: Singular values of `W`, largest first.
        left: `U0' u_j` in column j: the cosines of W's left vectors with all of the base's.
        right: `V0' v_j`, the same for right vectors.
        error: The largest residual `||W'W v - s^2 v||` of a triplet (or its transpose), relative to `s_1^2`.
    """

    S: Float[Tensor, " num_vectors"]
    left: Float[Tensor, "num_values num_vectors"]
    right: Float[Tensor, "num_values num_vectors"]
    error: float


@dataclass(frozen=True)
class InBase:
    """An adapter's update, `scaling * B @ A`, in the base's singular bases.

    Attributes:
        left: `scaling * B' U0`; `right` is `A V0`.
        left_gram: `scaling^2 * B'B`, in which what `B` has outside a thin basis counts too; `right_gram` is `A A'`.
    """

    left: Float[Tensor, "rank num_values"]
    right: Float[Tensor, "rank num_values"]
    left_gram: Float[Tensor, "rank rank"]
    right_gram: Float[Tensor, "rank rank"]


def num_vectors(shape: tuple[int, int]) -> int:
    """How many singular vectors are compared one by one: an eighth of the smaller side, at least 1, at most 500."""
    return min(MOST_VECTORS, max(1, min(shape) // VECTORS_PART))


def num_triplets(base: Decomposition) -> int:
    """How many triplets of `W` all measures together need."""
    return min(numerical_rank(base.S), max(num_vectors(base.shape), INTRUDERS_AMONG, *OVERLAPS))


def numerical_rank(S: Float[Tensor, " num_values"]) -> int:
    """How many singular values are more than rounding."""
    return int((S > _NUMERICAL_RANK * S[0]).sum()) if S.numel() else 0


def in_base(
    base: Decomposition, A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], scaling: float
) -> InBase:
    """An adapter's update in the base's singular bases.

    The products are in the precision in which the vectors and factors are kept, float32: they round no more off than
    keeping the vectors did, in half the time of float64.
    """
    kept = torch.promote_types(base.U.dtype, B.dtype)
    # As rows, the thin factor on the left: see `eigenpairs`.
    left, right = scaling * (B.T.to(kept) @ base.U.to(kept)).double(), (A.to(kept) @ base.Vh.T.to(kept)).double()
    B, A = B.double(), A.double()
    return InBase(left, right, scaling**2 * (B.T @ B), A @ A.T)


def lora_triplets(base: Decomposition, update: InBase, k: int) -> Triplets:
    """The k largest singular triplets of `W0 + scaling * B @ A`, without writing the sum out.

    With the side of `W0` that its vectors span written in them, `W'W` (or `WW'`) is a diagonal, `diag(S0^2)`, and a
    product of 2r columns. What `B` (or `A`) has outside the base's thin basis enters through its Gram matrix, exactly.
    """
    is_tall = base.U.shape[0] >= base.Vh.shape[1]
    near, far, gram = (
        (update.right, update.left, update.left_gram) if is_tall else (update.left, update.right, update.right_gram)
    )
    H = far * base.S + (gram / 2) @ near
    values, rows, error = largest_of_sum(base.S.square(), near, H, k)
    S = values.clamp_min(0.0).sqrt()
    other = (rows * base.S + (rows @ near.T) @ far) / S.clamp_min(torch.finfo(S.dtype).tiny).unsqueeze(1)
    left, right = (other, rows) if is_tall else (rows, other)
    return Triplets(S, left.T, right.T, error)


def full_triplets(base: Decomposition, W: Float[Tensor, "d_out d_in"], k: int) -> Triplets:
    """The k largest singular triplets of a tuned matrix.

    Up to 2,048 on the smaller side a direct solver finds them; above, a block iteration that starts from the base's own
    vectors and stops when no residual is above 1e-6 of `s_1^2`. The error reached is stated either way.
    """
    is_tall = base.U.shape[0] >= base.Vh.shape[1]
    U, Vh = base.U.double(), base.Vh.double()
    half = Vh @ W.double().T if is_tall else U.T @ W.double()  # num_values, the larger side
    values, rows, error = largest(half @ half.T, k)
    S = values.clamp_min(0.0).sqrt()
    other = ((rows @ half) @ (U if is_tall else Vh.T)) / S.clamp_min(torch.finfo(S.dtype).tiny).unsqueeze(1)
    left, right = (other, rows) if is_tall else (rows, other)
    return Triplets(S, left.T, right.T, error)


def subspace_overlap(cosines: Float[Tensor, "num_values num_vectors"], k: int) -> float:
    """How much of the base's top-k subspace is left in W's: `||U_k' U0_k||_F^2 / k`.

    1: the same subspace, whatever basis it has; 0: none of it.
    """
    return float(cosines[:k, :k].square().sum()) / k


def singular_vector_cosine(cosines: Float[Tensor, "num_values num_vectors"], k: int) -> float:
    """Mean over the k largest of `|<u_j, u0_j>|`, the j-th of `W` with the j-th of `W0`.

    1: all as they were. Vectors whose singular values are close change places freely, which lowers this and means
    nothing; `subspace_overlap` does not see it.
    """
    return float(cosines[:k, :k].diagonal().abs().mean())


def singular_vector_best_cosine(cosines: Float[Tensor, "num_values num_vectors"], k: int) -> float:
    """Mean over the k largest of W of the best match among the base's k largest: `max_i |<u_j, u0_i>|`."""
    return float(cosines[:k, :k].abs().amax(0).mean())


def intruder_dimensions(cosines: Float[Tensor, "num_values num_vectors"]) -> int:
    """How many of W's ten largest singular vectors are unlike every singular vector of the base.

    An intruder has `max_i |<u_j, u0_i>| < 0.5` over all i. Shuttleworth et al., arXiv 2410.21228, Algorithm 1.
    """
    return int(intruders(cosines).sum())


def intruders(cosines: Float[Tensor, "num_values num_vectors"]) -> Tensor:
    """Which of W's ten largest singular vectors are intruders."""
    return cosines[:, :INTRUDERS_AMONG].abs().amax(0) < INTRUDER_COSINE


def lora_rho(update: InBase, k: int, side: Side) -> float | None:
    """How much of an adapter's update lies in the base's top-k subspace: `||U0_k U0_k' dW||_F^2 / ||dW||_F^2`.

    0: none; 1: all of it. None for an update that is zero. OPLoRA, arXiv 2510.13003.
    """
    total = float((update.left_gram * update.right_gram).sum())
    inside, gram = (update.left, update.right_gram) if side == "left" else (update.right, update.left_gram)
    part = inside[:, :k] @ inside[:, :k].T
    return float((part * gram).sum()) / total if total > 0.0 else None


def full_rho(base: Decomposition, delta_W: Float[Tensor, "d_out d_in"], k: int, side: Side) -> float | None:
    """The same for a full update."""
    wide = delta_W.double()
    total = float(wide.square().sum())
    inside = base.U[:, :k].double().T @ wide if side == "left" else wide @ base.Vh[:k].double().T
    return float(inside.square().sum()) / total if total > 0.0 else None


def subspace_measures(
    base: Decomposition, triplets: Triplets, rho: Callable[[int, Side], float | None]
) -> dict[str, float]:
    """Every measure of one matrix by key; one that does not exist is absent.

    Args:
        base: The base's decomposition.
        triplets: Of the tuned matrix, `num_triplets` of them.
        rho: The update's share in the base's top-k subspace on a side.
    """
    found: dict[str, float | None] = {}
    vectors, count = min(num_vectors(base.shape), len(triplets.S)), numerical_rank(base.S)
    for side, suffix in (("left", ""), ("right", "_right")):
        cosines = triplets.left if side == "left" else triplets.right
        found |= {f"subspace_overlap_{k}{suffix}": subspace_overlap(cosines, k) for k in OVERLAPS if k <= count}
        found[f"singular_vector_cosine{suffix}"] = singular_vector_cosine(cosines, vectors)
        found[f"singular_vector_best_cosine{suffix}"] = singular_vector_best_cosine(cosines, vectors)
        found[f"intruder_dimensions{suffix}"] = intruder_dimensions(cosines)
        found |= {f"rho_{k}{suffix}": rho(k, side) for k in RHOS if k <= count}
    return {key: value for key, value in found.items() if value is not None}


def unmoved(base: Decomposition) -> Triplets:
    """The triplets of a matrix that did not move: the base's own, exactly."""
    k = num_triplets(base)
    eye = torch.eye(len(base.S), k, dtype=torch.float64)
    return Triplets(base.S[:k], eye, eye, 0.0)
