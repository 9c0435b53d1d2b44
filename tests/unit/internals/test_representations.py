"""Streams compared against scipy, closed forms, and what the measures must ignore."""

import pytest
import torch
from scipy.spatial import procrustes

from rankscope.internals.representations import cka, procrustes_residual, residual_cosine, stream_measures, stream_sums


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(60, 7), normal(60, 7, seed=1) + 0.8 * normal(60, 7)
ROTATION = torch.linalg.qr(normal(7, 7, seed=2)).Q


def test_batches_add_up():
    whole = stream_measures(stream_sums(X, Y))
    parts = stream_sums(X[:13], Y[:13]) + stream_sums(X[13:14], Y[13:14]) + stream_sums(X[14:], Y[14:])
    assert parts.num_positions == 60
    assert stream_measures(parts) == pytest.approx(whole, rel=1e-9)


def test_cka_is_the_alignment_of_centred_kernels():
    """From the kernels of positions, which the sums never form."""
    centring = torch.eye(60, dtype=torch.float64) - 1 / 60
    K, L = (centring @ M @ M.T @ centring for M in (X, Y))
    expected = float((K * L).sum() / (K.norm() * L.norm()))
    assert cka(stream_sums(X, Y)) == pytest.approx(expected, rel=1e-9)
    assert 0.1 < expected < 0.9


def test_procrustes_is_scipys_disparity():
    assert procrustes_residual(stream_sums(X, Y)) == pytest.approx(procrustes(X.numpy(), Y.numpy())[2], rel=1e-9)


def test_cosine_is_the_mean_over_positions():
    expected = torch.nn.functional.cosine_similarity(X, Y).mean()
    assert residual_cosine(stream_sums(X, Y)) == pytest.approx(float(expected), rel=1e-12)


def test_equal_streams():
    sums = stream_sums(X.float(), X.float())
    assert cka(sums) == 1.0
    assert residual_cosine(sums) == 1.0
    assert procrustes_residual(sums) == pytest.approx(0.0, abs=1e-12)


def test_what_cka_and_procrustes_ignore():
    before = stream_measures(stream_sums(X, Y))
    after = stream_measures(stream_sums(X, 3.0 * Y @ ROTATION + 5.0))
    for key in ("cka", "procrustes_residual"):
        assert after[key] == pytest.approx(before[key], rel=1e-9)
    assert after["residual_cosine"] != pytest.approx(before["residual_cosine"], rel=1e-2)


def test_cosine_sees_a_turn_and_ignores_a_length():
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    plane = normal(9, 2)
    assert residual_cosine(stream_sums(plane, 4.0 * plane)) == pytest.approx(1.0)
    assert residual_cosine(stream_sums(plane, plane @ quarter)) == pytest.approx(0.0, abs=1e-12)
    assert residual_cosine(stream_sums(plane, -plane)) == pytest.approx(-1.0)


def test_streams_that_have_nothing_in_common():
    both = torch.linalg.qr(normal(60, 8, seed=4) - normal(60, 8, seed=4).mean(0)).Q
    sums = stream_sums(both[:, :4], both[:, 4:])
    assert cka(sums) == pytest.approx(0.0, abs=1e-12)
    assert procrustes_residual(sums) == pytest.approx(1.0, abs=1e-12)


def test_a_stream_that_does_not_vary_has_no_geometry():
    found = stream_measures(stream_sums(torch.ones(5, 3), normal(5, 3).float()))
    assert set(found) == {"residual_cosine"}
