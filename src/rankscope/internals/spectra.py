"""How a weight update is built: its singular values, and the numbers that sum them up.

An adapter's update is never written out: with `B = Q_B R_B` and `A' = Q_A R_A` the small core `scaling * R_B R_A'` has
all its singular values. Everything is computed in float64; a result that does not exist (the shape of an update that
did not move) is None, never a stand-in.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

# Up to this size a direct solver is faster than an iteration, which is slow where the largest values lie close together
# (1536 x 576 of normal numbers: 0.3 s and 1.7 s).
_DENSE_SIZE = 2048
# Of a full update, up to this size the solver that loses no digits takes seconds for a whole model.
_SQUARED_SIZE = 512
# Sums of equal terms come out a rounding short of the threshold they reach exactly.
_ROUNDING = 1e-12

SPECTRAL_TOLERANCE = 1e-6


def lora_singular_values(
    A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], scaling: float
) -> Float[Tensor, " num_values"]:
    """The singular values of `scaling * B @ A`, largest first, in float64: min(rank, d_out, d_in) of them."""
    R_B = torch.linalg.qr(B.double(), mode="r").R
    R_A = torch.linalg.qr(A.double().T, mode="r").R
    return torch.linalg.svdvals(scaling * (R_B @ R_A.T))


def dense_singular_values(delta_W: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " num_values"]:
    """All singular values of a full update, largest first, in float64.

    Above 512 on the smaller side they are the roots of the Gram matrix's eigenvalues, in a fifth of the time. Squares
    lose half of the digits of what is small: a value above a thousandth of the largest is exact to `1e-9` of itself,
    and what rounding hides (below `sqrt(d * eps)` of the largest, `5e-7` at a width of 1,024) is 0.
    """
    if min(delta_W.shape) <= _SQUARED_SIZE:
        return torch.linalg.svdvals(delta_W.double())
    squares = torch.linalg.eigvalsh(_gram(delta_W)).flip(0)
    noise = len(squares) * torch.finfo(squares.dtype).eps * squares[0]
    return torch.where(squares > noise, squares, 0.0).sqrt()


def spectral_norm(W: Float[Tensor, "d_out d_in"], tolerance: float = SPECTRAL_TOLERANCE) -> float:
    """The largest singular value of a matrix, `||W||_2`.

    Up to 2,048 on the smaller side it is the root of the largest eigenvalue of the Gram matrix, exact to float64's
    rounding. Above that it is found by the implicitly restarted Lanczos method (ARPACK) to a relative error of
    `tolerance`, with products in float32: they are most of the time, and halving their bytes makes it four times
    faster.
    """
    if min(W.shape) <= _DENSE_SIZE:
        return float(torch.linalg.eigvalsh(_gram(W))[-1].clamp_min(0.0).sqrt())
    single = W.float()
    if not bool(single.any()):
        return 0.0  # the iteration has no direction to go in
    single = single.T if single.shape[0] > single.shape[1] else single
    size = single.shape[0]

    def product(vector: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(vector.ravel())).to(single)
        return (single @ (single.T @ x)).double().cpu().numpy()

    # A fixed start gives the same digits each time; a random one is orthogonal to nothing in particular.
    start = np.random.default_rng(0).standard_normal(size)
    gram = LinearOperator((size, size), matvec=product, dtype=np.float64)
    return float(eigsh(gram, k=1, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)[0]) ** 0.5


def _gram(W: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d d"]:
    """The product of a matrix with its own transpose, in float64, of the smaller of the two sizes."""
    wide = W.double()
    return wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide


def update_norm(S: Float[Tensor, " num_values"]) -> float:
    """How far a matrix moved: the Frobenius norm of the update. 0: not at all."""
    return float(torch.linalg.vector_norm(S))


def stable_rank(S: Float[Tensor, " num_values"]) -> float | None:
    """How many directions carry the update's energy: `sum s_i^2 / s_1^2`.

    1: a single direction; the number of values: all alike. None for an update that is zero.

    Examples:
        >>> stable_rank(torch.tensor([2.0, 2.0, 2.0]))
        3.0
    """
    if _is_zero(S):
        return None
    scaled = S / S.max()  # squares of very small values would vanish
    return float(scaled.square().sum())


def effective_rank(S: Float[Tensor, " num_values"]) -> float | None:
    """How evenly the update spreads over directions: `exp(-sum p_i ln p_i)` with `p_i = s_i / sum s_j`.

    1: a single direction; the number of values: all alike. None for an update that is zero. Roy and Vetterli,
    EUSIPCO 2007.

    Examples:
        >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 6)
        2.0
    """
    if _is_zero(S):
        return None
    return float(torch.special.entr(S / S.sum()).sum().exp())


def energy_rank(S: Float[Tensor, " num_values"], threshold: float) -> int | None:
    """How many directions hold a share of the update's energy: the least k with `sum_{i<=k} s_i^2 >= t * sum s_i^2`.

    None for an update that is zero.

    Args:
        S: Singular values, largest first.
        threshold: The share t, above 0, at most 1.

    Examples:
        >>> energy_rank(torch.tensor([3.0, 1.0]), 0.90)  # 9 of 10 in the first
        1
    """
    if _is_zero(S):
        return None
    energy = (S / S[0]).square().cumsum(0)
    return int((energy < threshold * energy[-1] * (1.0 - _ROUNDING)).sum()) + 1


def rank_utilisation(S: Float[Tensor, " num_values"], rank: int) -> float | None:
    """How much of the rank that was granted is used: stable rank over rank. None for an update that is zero."""
    stable = stable_rank(S)
    return None if stable is None else stable / rank


def update_norm_relative(S: Float[Tensor, " num_values"], base_norm: float) -> float | None:
    """`||dW||_F / ||W0||_F`: how far the matrix moved for its size. None where the base's matrix is zero."""
    return update_norm(S) / base_norm if base_norm > 0.0 else None


def update_spectral_relative(S: Float[Tensor, " num_values"], base_spectral_norm: float) -> float | None:
    """`||dW||_2 / ||W0||_2`: the update's largest stretch against the base's. None where the base's matrix is zero."""
    return float(S.max()) / base_spectral_norm if base_spectral_norm > 0.0 else None


def update_measures(
    S: Float[Tensor, " num_values"], *, rank: int | None, base_norm: float, base_spectral_norm: float
) -> dict[str, float]:
    """Every measure of one matrix's update, by key; one that does not exist is absent.

    Args:
        S: The update's singular values, all that are not zero, largest first.
        rank: What LoRA was granted; None for full fine-tuning.
        base_norm: `||W0||_F`.
        base_spectral_norm: `||W0||_2`.
    """
    values = {
        "update_norm": update_norm(S),
        "update_norm_relative": update_norm_relative(S, base_norm),
        "update_spectral_relative": update_spectral_relative(S, base_spectral_norm),
        "stable_rank": stable_rank(S),
        "rank_utilisation": None if rank is None else rank_utilisation(S, rank),
        "effective_rank": effective_rank(S),
        "energy_rank_90": energy_rank(S, 0.90),
        "energy_rank_95": energy_rank(S, 0.95),
        "energy_rank_99": energy_rank(S, 0.99),
    }
    return {key: value for key, value in values.items() if value is not None}


def _is_zero(S: Tensor) -> bool:
    return S.numel() == 0 or float(S.max()) == 0.0
