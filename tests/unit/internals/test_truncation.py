"""Cutting an update: how many directions a cut keeps, and which."""

from __future__ import annotations

import pytest
import torch

from rankscope.internals.truncation import kept_directions, truncated
from rankscope.models.updates import Factors


@pytest.mark.parametrize(
    ("values", "asked", "kept"),
    [
        ((3.0, 2.0, 1.0), 2, 2),
        ((3.0, 2.0, 1.0), 3, 3),
        ((3.0, 2.0, 1.0), 9, 3),  # no more than there are
        ((3.0, 2.0, 0.0), 3, 2),
        ((0.0, 0.0, 0.0), 2, 1),  # a factor of no columns is none
        ((3.0, 1.0, 0.0), 0.90, 1),  # 9 of 10
        ((3.0, 1.0, 0.0), 0.91, 2),
        ((0.0, 0.0, 0.0), 0.90, 1),
    ],
)
def test_how_many_directions_are_kept(values: tuple[float, ...], asked: float, kept: int) -> None:
    assert kept_directions(torch.tensor(values), asked) == kept


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_what_is_kept_is_the_best_of_its_rank(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    update = Factors(torch.randn(3, 7, generator=generator), torch.randn(9, 3, generator=generator), 0.4)
    found = truncated(update, k)
    U, S, Vh = torch.linalg.svd(update.delta_W(), full_matrices=False)
    k = min(k, 3)
    torch.testing.assert_close(found.delta_W(), (U[:, :k] * S[:k]) @ Vh[:k], rtol=1e-9, atol=1e-12)
    assert (found.rank, found.scaling) == (k, 1.0)
    torch.testing.assert_close(found.A.norm(dim=1), found.B.norm(dim=0))  # of equal size
