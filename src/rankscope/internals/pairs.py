"""Two updates of one matrix, set against each other, from LoRA's factors where they have them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.models.updates import Factors


def inner_product(one: Factors | Float[Tensor, "d_out d_in"], other: Factors | Float[Tensor, "d_out d_in"]) -> float:
    """`<dW_1, dW_2>_F`, the sum of the products of all entries, in float64."""
    if isinstance(one, Factors) and isinstance(other, Factors):
        left, right = one.B.double().T @ other.B.double(), one.A.double() @ other.A.double().T
        return one.scaling * other.scaling * float((left * right).sum())
    if isinstance(one, Factors):
        return one.scaling * float(((one.B.double().T @ other.double()) * one.A.double()).sum())
    if isinstance(other, Factors):
        return inner_product(other, one)
    return float((one.double() * other.double()).sum())


def update_cosine(product: float, one_norm: float, other_norm: float) -> float | None:
    """The cosine between two updates of one matrix: 1 the same but for its size, 0 nothing in common.

    None where one of them is zero.

    Args:
        product: `<dW_1, dW_2>_F`.
        one_norm: `||dW_1||_F`.
        other_norm: `||dW_2||_F`.
    """
    if one_norm == 0.0 or other_norm == 0.0:
        return None
    return max(-1.0, min(1.0, product / one_norm / other_norm))


def update_norm_ratio(one_norm: float, other_norm: float) -> float | None:
    """How many times as far the other moved: `||dW_2||_F / ||dW_1||_F`. None where the first is zero."""
    return other_norm / one_norm if one_norm > 0.0 else None


def singular_triplets(
    update: Factors,
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "k d_in"]]:
    """`U S Vh` of a low-rank update from its small core, in float64, largest first."""
    Q_B, R_B = torch.linalg.qr(update.B.double())
    Q_A, R_A = torch.linalg.qr(update.A.double().T)
    U, S, Vh = torch.linalg.svd(update.scaling * (R_B @ R_A.T), full_matrices=False)
    return Q_B @ U, S, Vh @ Q_A.T


def update_overlap(one: Float[Tensor, "d k_one"], other: Float[Tensor, "d k_other"]) -> float:
    """How much of the smaller of two subspaces lies in the other: `||U_1' U_2||_F^2 / k`, k the smaller size.

    1: it lies in it; two random subspaces of a space of size d have k_larger / d.

    Args:
        one: Orthonormal columns.
        other: Orthonormal columns.
    """
    return float((one.T @ other).square().sum()) / min(one.shape[1], other.shape[1])


def difference_norm(one: Factors, other: Factors) -> float:
    """`||dW_1 - dW_2||_F` of two low-rank updates, without cancellation and without writing them out."""
    B = torch.cat([one.scaling * one.B.double(), -other.scaling * other.B.double()], dim=1)
    A = torch.cat([one.A.double(), other.A.double()])
    R_B, R_A = torch.linalg.qr(B, mode="r").R, torch.linalg.qr(A.T, mode="r").R
    return float(torch.linalg.vector_norm(R_B @ R_A.T))
