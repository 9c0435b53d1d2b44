"""How a tuned matrix's singular vectors lie to the base's: overlap, cosines, intruders, and where the update points.

With `W0 = U0 S0 Vh0` known, the tuned matrix is looked at in the base's singular bases, where a vector of `W` has the
cosines with the base's as its coordinates. An adapter is never written out: there `W` is a diagonal plus a product of
rank r, and its largest triplets come from a small Rayleigh-Ritz problem (`lora_triplets`). A full update is given as
the tuned matrix (`full_triplets`).

Left vectors are meant where a name does not say; `_right` marks the same for right ones. What does not exist (32
directions of a matrix with 16) is absent, never a stand-in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

from rankscope.models.decompositions import Decomposition

OVERLAPS = (8, 32, 128)
RHOS = (16, 128)
# The published algorithm's numbers: how many of W's vectors are asked, and the cosine below which one is an intruder.
INTRUDERS_AMONG, INTRUDER_COSINE = 10, 0.5
# The study behind this tool compares the 500 largest of about 4,000; a smaller matrix gets as large a part of its own.
MOST_VECTORS, VECTORS_PART = 500, 8
# Singular values below this share of the largest are rounding: their vectors point anywhere.
_NUMERICAL_RANK = 1e-7
# The relative residual that a small problem is laid out for, by a bound that is far too careful, and the largest that
# is accepted of it; what was reached is in `Triplets.error`.
_PLANNED, _ACCEPTED = 1e-5, 1e-7
# From this part of the whole on, the whole problem is solved instead of the small one.
_WORTH_IT = 0.75
# Energy below this share of a block's largest is not a direction of its own.
_DEPENDENT = 1e-12
# Up to this size a direct solver is used for full updates; above, an iteration that stops at TOLERANCE.
_DIRECT_SIZE = 2048
TOLERANCE = 1e-6
_MAX_ROUNDS = 60

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


def num_vectors(shape: tuple[int, int]) -> int:
    """How many singular vectors are compared one by one: an eighth of the smaller side, at least 1, at most 500."""
    return min(MOST_VECTORS, max(1, min(shape) // VECTORS_PART))


def num_triplets(base: Decomposition) -> int:
    """How many triplets of `W` all measures together need."""
    return min(numerical_rank(base.S), max(num_vectors(base.shape), INTRUDERS_AMONG, *OVERLAPS))


def numerical_rank(S: Float[Tensor, " num_values"]) -> int:
    """How many singular values are more than rounding."""
    return int((S > _NUMERICAL_RANK * S[0]).sum()) if S.numel() else 0


def lora_triplets(
    base: Decomposition, A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], scaling: float, k: int
) -> Triplets:
    """The k largest singular triplets of `W0 + scaling * B @ A`, without writing the sum out.

    With the side of `W0` that its vectors span written in them, `W'W` (or `WW'`) is `diag(S0^2) + Z K Z'` with Z of 2r
    columns. What `B` (or `A`) has outside the base's thin basis enters through its Gram matrix, exactly.
    """
    # The thin factor on the left: the other way round, some layouts take thirty times as long.
    C_B = scaling * (B.double().T @ base.U.double()).T  # num_values rank
    C_A = (A.double() @ base.Vh.double().T).T
    is_tall = base.U.shape[0] >= base.Vh.shape[1]
    near, far = (C_A, C_B) if is_tall else (C_B, C_A)
    gram = scaling**2 * (B.double().T @ B.double()) if is_tall else A.double() @ A.double().T
    S0, eye = base.S, torch.eye(A.shape[0], dtype=torch.float64)
    Z = torch.cat([near, S0.unsqueeze(1) * far], 1)
    K = torch.cat([torch.cat([gram, eye], 1), torch.cat([eye, torch.zeros_like(eye)], 1)])
    values, vectors, error = _largest_of_sum(S0.square(), Z, K, k)
    S = values.clamp_min(0.0).sqrt()
    other = (S0.unsqueeze(1) * vectors + far @ (near.T @ vectors)) / S.clamp_min(torch.finfo(S.dtype).tiny)
    return Triplets(S, other, vectors, error) if is_tall else Triplets(S, vectors, other, error)


def full_triplets(base: Decomposition, W: Float[Tensor, "d_out d_in"], k: int) -> Triplets:
    """The k largest singular triplets of a tuned matrix.

    Up to 2,048 on the smaller side a direct solver finds them; above, a block iteration that starts from the base's own
    vectors and stops when no residual is above `TOLERANCE` of `s_1^2`. The error reached is stated either way.
    """
    is_tall = base.U.shape[0] >= base.Vh.shape[1]
    U, Vh = base.U.double(), base.Vh.double()
    half = W.double() @ Vh.T if is_tall else W.double().T @ U  # the larger side, num_values
    gram = half.T @ half
    if len(gram) <= _DIRECT_SIZE:
        values, vectors, error = _direct(gram, k)
    else:
        values, vectors, error = _iterated(gram, k)
    S = values.clamp_min(0.0).sqrt()
    other = (U.T if is_tall else Vh) @ (half @ vectors) / S.clamp_min(torch.finfo(S.dtype).tiny)
    return Triplets(S, other, vectors, error) if is_tall else Triplets(S, vectors, other, error)


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


def lora_rho(
    base: Decomposition, A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], k: int, side: Side
) -> float | None:
    """How much of an adapter's update lies in the base's top-k subspace: `||U0_k U0_k' dW||_F^2 / ||dW||_F^2`.

    0: none; 1: all of it. None for an update that is zero. The scaling cancels. OPLoRA, arXiv 2510.13003.
    """
    B, A = B.double(), A.double()
    inside = (B.T @ base.U[:, :k].double() if side == "left" else A @ base.Vh[:k].double().T).T
    B_gram, A_gram = B.T @ B, A @ A.T
    total = float((B_gram * A_gram).sum())
    part = inside.T @ inside
    return float((part * (A_gram if side == "left" else B_gram)).sum()) / total if total > 0.0 else None


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


Eigen = tuple[Tensor, Tensor, float]


def _largest_of_sum(D: Tensor, Z: Tensor, K: Tensor, k: int) -> Eigen:
    """The k largest eigenpairs of `diag(D) + Z K Z'`, D falling, and their largest residual relative to the largest.

    An eigenvector is `(lambda - D)^-1 Z w`. On coordinates with D well below lambda that factor is close to a
    polynomial of D, so the first p coordinates together with the block Krylov space of `D` and `Z` on the rest hold
    the eigenvector up to an error that falls geometrically with the number of blocks.
    """
    size, width = Z.shape
    kept, blocks = _cheapest(D, width, k)
    while kept + blocks * width < _WORTH_IT * size:
        values, vectors, error = _ritz(D, Z, K, k, (kept, blocks))
        if error <= _ACCEPTED:
            return values, vectors, error
        blocks = blocks + max(1, blocks // 2)
    return _direct(torch.diag(D) + Z @ K @ Z.T, k)


def _cheapest(D: Tensor, width: int, k: int) -> tuple[int, int]:
    """How many coordinates to keep and how many blocks to add, for the smallest problem that is expected to do."""
    kept = torch.arange(k, len(D), max(1, k // 8))
    z = 2.0 * D[k - 1] / D[kept].clamp_min(torch.finfo(D.dtype).tiny) - 1.0
    kept, z = kept[z > 1.0 + 1e-6], z[z > 1.0 + 1e-6]
    rates = torch.where(z > 1e8, z.log(), z.acosh())
    blocks = (-math.log(_PLANNED) / rates).ceil().clamp_min(1.0)
    sizes = kept + blocks * width
    if not len(sizes) or float(sizes.min()) >= len(D):
        return len(D), 0
    best = int(sizes.argmin())
    return int(kept[best]), int(blocks[best])


def _ritz(D: Tensor, Z: Tensor, K: Tensor, k: int, sizes: tuple[int, int]) -> Eigen:
    kept, blocks = sizes
    tail, Z_tail = D[kept:].unsqueeze(1), Z[kept:]
    basis = torch.linalg.qr(Z_tail).Q  # rest width
    last = basis
    for _ in range(blocks - 1):
        last = _orthogonal(tail * last, basis)
        basis = torch.cat([basis, last], 1)
    outside = tail * last
    outside = outside - basis @ (basis.T @ outside)
    Z_small = torch.cat([Z[:kept], basis.T @ Z_tail])
    small = Z_small @ K @ Z_small.T
    small.diagonal()[:kept] += D[:kept]
    small[kept:, kept:] += basis.T @ (tail * basis)
    values, inner, _ = _direct(small, k)
    # Z lies in the space, so all that leaves it is what the diagonal makes of the last block.
    residual = torch.linalg.vector_norm(outside @ inner[len(inner) - last.shape[1] :], dim=0).max()
    vectors = torch.cat([inner[:kept], basis @ inner[kept:]])
    return values, vectors, float(residual / values[0])


def _orthogonal(block: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what a block adds to another one; twice, because once leaves rounding behind.

    What adds nothing is dropped: a factorisation would make directions of its rounding.
    """
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
        energy, turn = torch.linalg.eigh(block.T @ block)
        counts = energy > _DEPENDENT * energy[-1] if len(energy) else energy > 0.0
        block = block @ (turn[:, counts] / energy[counts].sqrt())
    return block


def _direct(gram: Tensor, k: int) -> Eigen:
    size, error = len(gram), torch.finfo(gram.dtype).eps * len(gram)
    if 4 * k <= size:  # a few of many: LAPACK's solver for a part is about twice as fast, and torch has none
        found = eigh(gram.numpy(), subset_by_index=[size - k, size - 1], driver="evr", check_finite=False)
        values, vectors = (torch.from_numpy(part) for part in found)
    else:
        values, vectors = torch.linalg.eigh(gram)
    return values.flip(0)[:k], vectors.flip(1)[:, :k], error


def _iterated(gram: Tensor, k: int) -> Eigen:
    """The k largest eigenpairs by block iteration, from the first coordinates: the base's own vectors.

    Each round solves the problem within the vectors so far, their residuals and the step before (LOBPCG's space).
    """
    width = k + max(16, k // 4)
    if 3 * width >= len(gram):
        return _direct(gram, k)
    vectors = torch.eye(len(gram), width, dtype=gram.dtype)
    step = vectors[:, :0]
    values = gram.diagonal()[:width]
    error = math.inf
    for _ in range(_MAX_ROUNDS):
        residual = gram @ vectors - vectors * values
        error = float(torch.linalg.vector_norm(residual[:, :k], dim=0).max() / values[0])
        if error <= TOLERANCE:
            break
        added = _orthogonal(torch.cat([residual, step], 1), vectors)
        space = torch.cat([vectors, added], 1)
        found, inner, _ = _direct(space.T @ gram @ space, width)
        step = added @ inner[width:]
        values, vectors = found, space @ inner
    return values[:k], vectors[:, :k], error
