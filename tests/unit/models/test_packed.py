"""The packed layer's own arithmetic against PEFT's operations, and updates folded into the base."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankscope.models.packed import PackedLoraLinear, Routing

D_IN, D_OUT, RANKS = 6, 5, (2, 3, 1)


def layer(base: nn.Module, routing: Routing, dropout: float = 0.0) -> PackedLoraLinear:
    generator = torch.Generator().manual_seed(0)
    packed = PackedLoraLinear(base.double().requires_grad_(False), routing)
    for rank in RANKS:
        A = torch.randn(rank, D_IN, generator=generator, dtype=torch.float64)
        B = torch.randn(D_OUT, rank, generator=generator, dtype=torch.float64)
        packed.add(A, B, scaling=0.5 + rank, dropout=dropout)
    return packed


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def linear(request: pytest.FixtureRequest) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Linear(D_IN, D_OUT, bias=request.param)


@pytest.mark.parametrize(
    ("members", "num_rows", "shape"),
    [
        ((1,), (3,), (3, 4, D_IN)),
        ((0, 2), (1, 2), (3, 4, D_IN)),  # rows of four positions
        ((0, 1, 2), (5, 2, 4), (1, 11, D_IN)),  # joined: positions
        ((2, 1), (7, 4), (11, D_IN)),  # flattened by the architecture
    ],
)
def test_the_fused_layer_equals_the_operations_one_by_one(
    linear: nn.Linear, members: tuple[int, ...], num_rows: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    packed = layer(linear, Routing(members, num_rows))
    x, weight = rows(*shape).requires_grad_(), rows(*shape[:-1], D_OUT)
    used = [tensor for member in members for tensor in (packed.A[member], packed.B[member])]
    fused = packed(x)
    found = torch.autograd.grad((fused * weight).sum(), [x, *used])
    flat = x.reshape(-1, D_IN)
    stretch = len(flat) // sum(num_rows)
    composed = packed._composed(flat, [number * stretch for number in num_rows]).reshape(*shape[:-1], D_OUT)
    expected = torch.autograd.grad((composed * weight).sum(), [x, *used])
    torch.testing.assert_close(fused, composed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_by_finite_differences(linear: nn.Linear) -> None:
    packed = layer(linear, Routing((0, 1), (2, 3)))
    x = rows(5, D_IN).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: packed(x), (x, *packed.A[:2], *packed.B[:2]))


def test_a_frozen_input_asks_for_no_gradient(linear: nn.Linear) -> None:
    packed = layer(linear, Routing((0,), (5,)))
    packed(rows(5, D_IN)).sum().backward()
    assert packed.A[0].grad is not None and packed.base_layer.weight.grad is None


def test_dropout_goes_through_the_operations_one_by_one(linear: nn.Linear) -> None:
    generators = [torch.Generator().manual_seed(3) for _ in RANKS]
    packed = layer(linear, Routing((0,), (5,), generators, is_training=True), dropout=0.25)
    x = rows(5, D_IN)
    kept = torch.empty_like(x).bernoulli_(0.75, generator=torch.Generator().manual_seed(3))
    expected = linear(x) + (x * kept / 0.75) @ packed.A[0].T @ packed.B[0].T * packed.scaling[0]
    torch.testing.assert_close(packed(x), expected)


def stretched(packed: PackedLoraLinear, member: int) -> torch.Tensor:
    """DoRA's matrix: the rows of `W0 + scaling * B A`, each as long as the member's magnitude says."""
    W = packed.base_layer.weight + packed.scaling[member] * packed.B[member] @ packed.A[member]
    return W * (packed.magnitude[member] / torch.linalg.vector_norm(W, dim=1).detach())[:, None]


def with_lengths(linear: nn.Linear, routing: Routing) -> PackedLoraLinear:
    plain = layer(linear, routing)
    packed = PackedLoraLinear(plain.base_layer, routing)
    for A, B, scaling in zip(plain.A, plain.B, plain.scaling, strict=True):
        packed.add(A, B, scaling, 0.0, rows(D_OUT).abs() + 0.5)
    return packed


def test_dora_stretches_the_matrix_and_not_the_bias(linear: nn.Linear) -> None:
    packed = with_lengths(linear, Routing((0, 2), (2, 3)))
    x, weight = rows(5, D_IN), rows(5, D_OUT)
    expected = torch.cat([x[:2] @ stretched(packed, 0).T, x[2:] @ stretched(packed, 2).T])
    if linear.bias is not None:
        expected = expected + linear.bias
    used = [tensor for member in (0, 2) for tensor in (packed.A[member], packed.B[member], packed.magnitude[member])]
    torch.testing.assert_close(packed(x), expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((expected * weight).sum(), used)
    found = torch.autograd.grad((packed(x) * weight).sum(), used)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_doras_lengths_are_no_product_of_mixed_precision(linear: nn.Linear) -> None:
    packed = with_lengths(linear, Routing((0,), (5,))).float()
    expected = torch.linalg.vector_norm(linear.weight + packed.scaling[0] * packed.B[0] @ packed.A[0], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(packed._lengths(0), expected.detach(), rtol=1e-5, atol=0)


def test_rows_that_are_nobodys_are_refused(linear: nn.Linear) -> None:
    with pytest.raises(ValueError, match="7 positions cannot be those of 5 rows"):
        layer(linear, Routing((0, 1), (2, 3)))(rows(7, D_IN))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_folded_update_is_the_adapter_and_leaves_no_trace(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        base = nn.Linear(D_IN, D_OUT) if kind == "linear" else Conv1D(D_OUT, D_IN)
    packed = layer(base, Routing((1,), (4,)))
    before, x = base.weight.clone(), rows(4, D_IN)
    expected = packed(x)
    packed.fold(1)
    torch.testing.assert_close(packed(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(packed(x), base(x), rtol=0, atol=0)
    packed.unfold()
    assert torch.equal(base.weight, before)
    assert torch.equal(packed(x), expected)


def test_an_update_is_not_folded_where_it_would_be_rounded_away_or_is_more_than_a_product(linear: nn.Linear) -> None:
    packed = layer(linear, Routing((0,), (4,)))
    packed.base_layer.bfloat16()
    packed.fold(0)
    assert torch.equal(packed.base_layer.weight, linear.weight) and packed._W0 is None
    dora = PackedLoraLinear(nn.Linear(D_IN, D_OUT), Routing())
    dora.add(torch.ones(1, D_IN), torch.ones(D_OUT, 1), 1.0, 0.0, torch.ones(D_OUT))
    dora.fold(0)
    assert dora._W0 is None
