"""What a derived point does to a tensor that holds several matrices, against dense algebra on each of them."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GPTNeoXConfig

from rankscope.derive.changes import Changed, changed_adapter, changed_update
from rankscope.models.decompositions import decompose
from rankscope.models.updates import Factors, Update
from rankscope.runs import DerivedPoint

NUM_HEADS, WIDTH = 4, 24
CONFIG = GPTNeoXConfig(hidden_size=WIDTH, num_attention_heads=NUM_HEADS, num_hidden_layers=1)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W0 = normal(3 * WIDTH, WIDTH, seed=0) / 10
FACTORS = Factors(normal(4, WIDTH, seed=1), normal(3 * WIDTH, 4, seed=2), 0.2)


def queries_keys_values() -> list[torch.Tensor]:
    """Which rows each has: GPT-NeoX puts the three of a head together."""
    size = WIDTH // NUM_HEADS
    return [
        torch.cat([torch.arange(size) + (3 * head + part) * size for head in range(NUM_HEADS)]) for part in range(3)
    ]


def update(**numbers: object) -> Update:
    name = "gpt_neox.layers.0.attention.query_key_value"
    return Update(name, 0, "query_key_value", "matrix", (3 * WIDTH, WIDTH), lambda: W0, **numbers)


def whole() -> Update:
    return update(read_rows=lambda start, stop: FACTORS.delta_W()[start:stop])


def mended_by_hand(share: float) -> tuple[torch.Tensor, int]:
    """The whole update with the intruders of queries, keys and values scaled, each beside its own base."""
    delta_W, count = FACTORS.delta_W(), 0
    for rows in queries_keys_values():
        U0 = torch.linalg.svd(W0[rows], full_matrices=False).U
        U, S, Vh = torch.linalg.svd(W0[rows] + FACTORS.delta_W()[rows], full_matrices=False)
        for j in range(10):
            if float((U[:, j] @ U0).abs().max()) < 0.5:
                delta_W[rows] += (share - 1.0) * S[j] * torch.outer(U[:, j], Vh[j])
                count += 1
    return delta_W, count


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_intruders_of_a_fused_tensor_are_those_of_its_matrices(share: float) -> None:
    expected, count = mended_by_hand(share)
    assert count > 3, "more than one matrix has some"
    point, changed = DerivedPoint(kind="intruders", amount=share), Changed()
    adapter = update(rank=4, read_factors=lambda: FACTORS)
    A, B = changed_adapter(adapter, point, CONFIG, decompose, changed)
    torch.testing.assert_close(B @ A, expected, rtol=1e-8, atol=1e-9)
    assert (len(A), changed.num_intruders) == (4 + count, count)
    assert changed.norm == pytest.approx(float(expected.norm()))
    changed = Changed()
    found = changed_update(whole(), point, CONFIG, decompose, changed)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert changed.num_intruders == count
    assert changed.norm == pytest.approx(float(expected.norm()))


def test_an_adapter_of_a_fused_tensor_is_cut_as_the_one_matrix_that_it_adapts() -> None:
    changed = Changed()
    adapter = update(rank=4, read_factors=lambda: FACTORS)
    A, B = changed_adapter(adapter, DerivedPoint(kind="truncate", amount=2), CONFIG, decompose, changed)
    U, S, Vh = torch.linalg.svd(FACTORS.delta_W())
    torch.testing.assert_close(B @ A, (U[:, :2] * S[:2]) @ Vh[:2], rtol=1e-8, atol=1e-9)
    assert len(A) == 2 and changed.norm == pytest.approx(float(S[:2].norm()))


def test_each_matrix_of_a_fused_tensor_is_cut_by_itself() -> None:
    changed = Changed()
    found = changed_update(whole(), DerivedPoint(kind="truncate", amount=2), CONFIG, decompose, changed)
    for rows in queries_keys_values():
        U, S, Vh = torch.linalg.svd(FACTORS.delta_W()[rows], full_matrices=False)
        torch.testing.assert_close(found[rows], (U[:, :2] * S[:2]) @ Vh[:2], rtol=1e-8, atol=1e-9)
    assert changed.norm == pytest.approx(float(found.norm())) and changed.num_intruders is None


@pytest.mark.parametrize("amount", [0.0, 0.25, 1.25])
def test_the_norm_of_what_is_rewound_is_recorded(amount: float) -> None:
    norm, changed = float(FACTORS.delta_W().norm()), Changed()
    for _ in range(2):  # two tensors
        changed_update(whole(), DerivedPoint(kind="rewind", amount=amount), CONFIG, decompose, changed)
    assert changed.norm == pytest.approx(amount * math.sqrt(2.0) * norm)
    assert changed.num_intruders is None
