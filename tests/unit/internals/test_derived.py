"""Derived updates against dense algebra, closed forms and PEFT's own reduction of intruders."""

import pytest
import torch

from rankscope.internals.derived import full_mended, full_truncated, mended, rewound, truncated
from rankscope.models.decompositions import decompose

SHAPES = [(40, 40), (60, 30), (30, 60)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_mended(W0, delta_W, share):
    """Shuttleworth et al., section 6, by full decompositions."""
    U0 = torch.linalg.svd(W0, full_matrices=False).U
    U, S, Vh = torch.linalg.svd(W0 + delta_W, full_matrices=False)
    chosen = [j for j in range(10) if float((U[:, j] @ U0).abs().max()) < 0.5]
    change = sum(((share - 1) * S[j] * torch.outer(U[:, j], Vh[j]) for j in chosen), torch.zeros_like(W0))
    return delta_W + change, len(chosen)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 1.25])
def test_rewound_is_the_update_times_a_share(share):
    A, B = normal(3, 20), normal(30, 3, seed=1)
    product = rewound(A.float(), B.float(), 1.5, share)
    torch.testing.assert_close(product.B @ product.A, share * 1.5 * B.float().double() @ A.float().double())


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_truncated_is_the_closest_of_that_rank(rank):
    A, B = normal(6, 20), normal(30, 6, seed=1)
    product = truncated(A, B, 0.7, rank)
    assert product.rank == min(rank, 6)
    U, S, Vh = torch.linalg.svd(0.7 * B @ A, full_matrices=False)
    torch.testing.assert_close(product.B @ product.A, (U[:, :rank] * S[:rank]) @ Vh[:rank])
    torch.testing.assert_close(full_truncated(0.7 * B @ A, rank), (U[:, :rank] * S[:rank]) @ Vh[:rank])
    # Neither factor is much the larger.
    assert float(product.A.norm()) == pytest.approx(float(product.B.norm()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mended_is_the_published_change(shape, share):
    d_out, d_in = shape
    W0 = normal(*shape) / 10
    A, B = normal(4, d_in, seed=2), normal(d_out, 4, seed=3)
    delta_W = 0.2 * B @ A
    expected, count = dense_mended(W0, delta_W, share)
    assert count >= 3
    product = mended(decompose(W0), A, B, 0.2, share)
    assert (product.num_intruders, product.rank) == (count, 4 + count)
    torch.testing.assert_close(product.B @ product.A, expected, rtol=1e-8, atol=1e-10)
    found, number = full_mended(decompose(W0), W0, delta_W, share)
    assert number == count
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_scaling_by_one_changes_nothing_and_by_zero_takes_the_intruder_out():
    """The closed form: an update that is one new direction is gone."""
    W0 = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    W0 = torch.cat([W0, torch.zeros(2, 4, dtype=torch.float64)])
    B, A = torch.zeros(6, 1).double(), torch.zeros(1, 4).double()
    B[5], A[0, 3] = 10.0, 1.0  # the smallest direction on the right is sent where no left vector is
    base = decompose(W0)
    W = W0 + mended(base, A, B, 1.0, 0.0).B @ mended(base, A, B, 1.0, 0.0).A
    assert torch.linalg.svdvals(W).tolist() == pytest.approx([4.0, 3.0, 2.0, 0.0], abs=1e-9)
    one = mended(base, A, B, 1.0, 1.0)
    torch.testing.assert_close(one.B @ one.A, B @ A)


def test_nothing_is_added_where_there_are_no_intruders():
    W0 = torch.diag(torch.arange(8, 0, -1).double())
    product = mended(decompose(W0), normal(2, 8), 1e-3 * normal(8, 2, seed=1), 1.0, 0.0)
    assert (product.num_intruders, product.rank) == (0, 2)
