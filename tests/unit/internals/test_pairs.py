"""Two updates of one matrix against dense float64 and closed forms."""

from __future__ import annotations

import pytest
import torch

from rankscope.internals.pairs import (
    difference_norm,
    inner_product,
    singular_triplets,
    update_cosine,
    update_norm_ratio,
    update_overlap,
)
from rankscope.models.updates import Factors

SHAPES = [(12, 12), (20, 9), (9, 20)]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(shape: tuple[int, int], rank: int, scaling: float, seed: int) -> Factors:
    return Factors(normal(rank, shape[1], seed=seed), normal(shape[0], rank, seed=seed + 1), scaling)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_factors_and_of_whole_updates_are_the_dense_ones(shape: tuple[int, int]) -> None:
    one, other = factors(shape, 3, 0.5, 0), factors(shape, 5, 3.0, 2)
    dense = float((one.delta_W() * other.delta_W()).sum())
    for left in (one, one.delta_W()):
        for right in (other, other.delta_W()):
            assert inner_product(left, right) == pytest.approx(dense)
    assert difference_norm(one, other) == pytest.approx(float((one.delta_W() - other.delta_W()).norm()))
    assert difference_norm(one, one) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_triplets_are_those_of_the_dense_update(shape: tuple[int, int]) -> None:
    update = factors(shape, 3, 0.5, 0)
    U, S, Vh = singular_triplets(update)
    torch.testing.assert_close(S, torch.linalg.svdvals(update.delta_W())[:3])
    torch.testing.assert_close((U * S) @ Vh, update.delta_W())
    torch.testing.assert_close(U.T @ U, torch.eye(3).double())
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(3).double())


def test_cosine_and_ratio_say_direction_and_size() -> None:
    assert update_cosine(-6.0, 2.0, 3.0) == -1.0
    assert update_cosine(3.0, 2.0, 3.0) == 0.5
    # Rounding takes no cosine beyond 1.
    assert update_cosine(1.0 + 1e-15, 1.0, 1.0) == -update_cosine(-1.0 - 1e-15, 1.0, 1.0) == 1.0
    assert update_cosine(0.0, 0.0, 3.0) is None
    assert update_norm_ratio(2.0, 3.0) == 1.5
    assert update_norm_ratio(0.0, 3.0) is None


def test_overlap_is_the_share_of_the_smaller_subspace() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    assert update_overlap(eye[:, :2], eye[:, :4]) == update_overlap(eye[:, :4], eye[:, :2]) == 1.0
    assert update_overlap(eye[:, :2], eye[:, 1:5]) == 0.5
    assert update_overlap(eye[:, :2], eye[:, 2:]) == 0.0
    # One of two directions turned by 60 degrees out of the other subspace: (1 + 1/4) / 2.
    turned = torch.stack([eye[:, 0], 0.5 * eye[:, 1] + 0.75**0.5 * eye[:, 5]], 1)
    assert update_overlap(turned, eye[:, :4]) == pytest.approx(0.625)
