"""Subspace measures against dense float64, PEFT's intruder reduction, closed forms, and what they must ignore."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import intruders as published
from torch import nn

from rankscope.internals import eigenpairs
from rankscope.internals.subspaces import (
    Triplets,
    full_rho,
    full_triplets,
    in_base,
    intruder_dimensions,
    intruders,
    lora_rho,
    lora_triplets,
    num_triplets,
    num_vectors,
    subspace_measures,
    subspace_overlap,
    unmoved,
)
from rankscope.models.decompositions import Decomposition, decompose

SHAPES = [(96, 96), (160, 64), (64, 160)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(rows, columns, seed=0):
    return torch.linalg.qr(normal(rows, columns, seed=seed)).Q


def matrix(d_out, d_in, S, seed=0):
    """A matrix of chosen singular values."""
    count = len(S)
    return (
        orthogonal(d_out, count, seed)
        @ torch.diag(torch.as_tensor(S, dtype=torch.float64))
        @ orthogonal(d_in, count, seed + 1).T
    )


def kept(found):
    """As the cache keeps it."""
    return Decomposition(found.U.float(), found.S, found.Vh.float())


def dense(W0, delta_W):
    """Everything in float64 by full decompositions, and each measure by its formula in measures.md."""
    U0, S0, Vh0 = torch.linalg.svd(W0.double(), full_matrices=False)
    U, _, Vh = torch.linalg.svd(W0.double() + delta_W.double(), full_matrices=False)
    found, m = {}, min(W0.shape)
    count = int((S0 > 1e-7 * S0[0]).sum())
    energy = delta_W.double().square().sum()
    for suffix, before, after, part in (
        ("", U0, U, lambda k: U0[:, :k].T @ delta_W.double()),
        ("_right", Vh0.T, Vh.T, lambda k: delta_W.double() @ Vh0[:k].T),
    ):
        cosines = (after.T @ before).abs()  # row: a vector of W; column: one of W0
        for k in (8, 32, 128):
            if k <= count:
                found[f"subspace_overlap_{k}{suffix}"] = float((cosines[:k, :k] ** 2).sum() / k)
        k = min(500, max(1, m // 8))
        found[f"singular_vector_cosine{suffix}"] = float(torch.diagonal(cosines[:k, :k]).mean())
        found[f"singular_vector_best_cosine{suffix}"] = float(cosines[:k, :k].max(dim=1).values.mean())
        found[f"intruder_dimensions{suffix}"] = int((cosines.max(dim=1).values[:10] < 0.5).sum())
        for k in (16, 128):
            if k <= count:
                found[f"rho_{k}{suffix}"] = float(part(k).square().sum() / energy)
    return found


def of_adapter(W0, A, B, scaling):
    base = kept(decompose(W0))
    update = in_base(base, A, B, scaling)
    triplets = lora_triplets(base, update, num_triplets(base))
    return subspace_measures(base, triplets, lambda k, side: lora_rho(update, k, side)), triplets


def of_full(W0, delta_W):
    base = kept(decompose(W0))
    triplets = full_triplets(base, W0 + delta_W, num_triplets(base))
    return subspace_measures(base, triplets, lambda k, side: full_rho(base, delta_W, k, side)), triplets


@contextmanager
def sizes_solved():
    """How large each problem was that a direct solver got."""
    sizes, original = [], eigenpairs.direct
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigenpairs, "direct", lambda gram, k: sizes.append(len(gram)) or original(gram, k))
        yield sizes


@pytest.mark.parametrize("shape", [*SHAPES, (12, 200)])
@pytest.mark.parametrize("rank", [1, 70])
@pytest.mark.parametrize("size", [0.05, 3.0])
def test_equal_to_dense_float64(shape, rank, size):
    d_out, d_in = shape
    W0 = matrix(d_out, d_in, torch.logspace(0, -1.5, min(shape)))
    A, B = normal(rank, d_in, seed=2) / d_in**0.5, normal(d_out, rank, seed=3) / d_out**0.5
    scaling = size * 0.5
    delta_W = scaling * B @ A
    expected = dense(W0, delta_W)
    for found, triplets in (of_adapter(W0, A.float(), B.float(), scaling), of_full(W0, delta_W)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-4), key
        exact = torch.linalg.svdvals(W0 + delta_W)[: len(triplets.S)]
        torch.testing.assert_close(triplets.S, exact, rtol=1e-5, atol=1e-6)  # A and B were rounded
        assert triplets.error < 1e-6


def test_the_small_problem_is_used_and_is_right():
    """At this size and rank the result comes from the Ritz problem, not from the whole one."""
    W0 = matrix(400, 450, torch.logspace(0, -2, 400))
    A, B = normal(2, 450, seed=2) / 21, normal(400, 2, seed=3) / 20
    with sizes_solved() as sizes:
        found, triplets = of_adapter(W0, A, B, 0.7)
    assert sizes and max(sizes) < 300 and triplets.error < 1e-7
    assert found == pytest.approx(dense(W0, 0.7 * B @ A), rel=1e-4)


def test_a_space_that_is_too_small_is_enlarged_until_the_error_is_small():
    W0 = matrix(400, 450, torch.logspace(0, -2, 400))
    A, B = normal(2, 450, seed=2) / 21, normal(400, 2, seed=3) / 20
    with pytest.MonkeyPatch.context() as patch, sizes_solved() as sizes:
        patch.setattr(eigenpairs, "_cheapest", lambda D, k, widths: (k + 5, 1))
        found, triplets = of_adapter(W0, A, B, 0.7)
    assert len(sizes) > 2 and sizes == sorted(set(sizes)) and sizes[-1] < 300
    assert triplets.error < 1e-7
    assert found == pytest.approx(dense(W0, 0.7 * B @ A), rel=1e-4)


def test_an_adapter_wider_than_what_is_sought_grows_by_residuals_alone():
    """Rank 40 and ten triplets: blocks of 80 would be most of the matrix; each round adds ten at most."""
    W0 = matrix(400, 450, torch.arange(1, 401) ** -0.7)
    A, B = normal(40, 450, seed=2) / 21, normal(400, 40, seed=3) / 20
    base = kept(decompose(W0))
    with sizes_solved() as sizes:
        found = lora_triplets(base, in_base(base, A.float(), B.float(), 0.7), 10)
    steps = [later - earlier for earlier, later in pairwise(sizes)]
    assert len(sizes) > 1 and max(sizes) < 250 and all(0 < step <= 10 for step in steps)
    U, S, _ = torch.linalg.svd(W0 + 0.7 * B @ A)
    U0 = torch.linalg.svd(W0).U
    assert 0.0 < found.error < 1e-7
    torch.testing.assert_close(found.S, S[:10], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.left.abs(), (U0.T @ U[:, :10]).abs(), rtol=0, atol=1e-5)


def test_the_iteration_for_large_full_updates_states_its_error(monkeypatch):
    W0 = matrix(260, 220, torch.logspace(0, -2, 220))
    delta_W = normal(260, 220, seed=5) * 2e-3
    base = decompose(W0)
    expected = full_triplets(base, W0 + delta_W, 20)
    monkeypatch.setattr(eigenpairs, "_DIRECT_SIZE", 100)
    small_only = eigenpairs.direct
    monkeypatch.setattr(eigenpairs, "direct", lambda gram, k: small_only(gram, k) if len(gram) < 200 else None)
    found = full_triplets(base, W0 + delta_W, 20)
    assert 0.0 < found.error <= eigenpairs.TOLERANCE
    torch.testing.assert_close(found.S, expected.S, rtol=1e-6, atol=0)
    for side in ("left", "right"):
        for k in (8, 16):
            overlaps = [subspace_overlap(getattr(one, side), k) for one in (found, expected)]
            assert overlaps[0] == pytest.approx(overlaps[1], rel=1e-4) and overlaps[0] < 0.999


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 12), st.floats(0.01, 10.0), st.integers(0, 10_000))
def test_any_shape_and_rank_equals_dense(d_out, d_in, rank, size, seed):
    S = torch.linspace(2.0, 1.0, min(d_out, d_in))
    W0 = matrix(d_out, d_in, S, seed)
    A, B = normal(rank, d_in, seed=seed + 2), normal(d_out, rank, seed=seed + 3)
    scaling = size / float(torch.linalg.norm(B @ A))
    found, _ = of_adapter(W0, A, B, scaling)
    expected = dense(W0, scaling * B @ A)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key.startswith(("rho", "subspace_overlap")):
            assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("shape", SHAPES)
def test_what_lies_outside_a_thin_basis_counts(shape):
    """An update along directions that the base's thin decomposition does not span."""
    d_out, d_in = shape
    W0 = matrix(d_out, d_in, torch.linspace(2, 1, min(shape)))
    whole = torch.linalg.svd(W0, full_matrices=True)
    if d_out > d_in:
        B, A = whole.U[:, -1:], whole.Vh[:1]
    elif d_in > d_out:
        B, A = whole.U[:, :1], whole.Vh[-1:]
    else:
        B, A = whole.U[:, -1:], whole.Vh[:1]
    found, triplets = of_adapter(W0, A, B, 3.0)
    torch.testing.assert_close(triplets.S[0], torch.linalg.matrix_norm(W0 + 3 * B @ A, 2), rtol=1e-6, atol=0)
    assert found == pytest.approx(dense(W0, 3 * B @ A), rel=1e-4, abs=1e-6)


class TestClosedForms:
    def test_a_planted_intruder(self):
        """The smallest direction on the right is sent, five times as strongly, where no left vector of the base is."""
        W0 = matrix(60, 40, torch.linspace(2, 1, 40))
        whole = torch.linalg.svd(W0, full_matrices=True)
        found, triplets = of_adapter(W0, whole.Vh[39:40], whole.U[:, 50:51], 5.0)
        assert float(triplets.S[0]) == pytest.approx(26**0.5)
        assert float(triplets.left[:, 0].abs().max()) == pytest.approx(26**-0.5, rel=1e-5)
        assert (found["intruder_dimensions"], found["intruder_dimensions_right"]) == (1, 0)
        assert intruders(triplets.left).tolist() == [True] + [False] * 9
        # The other seven of eight are the base's seven largest, one place down; of five (40 // 8), four.
        assert found["subspace_overlap_8"] == pytest.approx(7 / 8, abs=1e-6)
        assert found["singular_vector_cosine"] == pytest.approx(0.0, abs=1e-6)
        assert found["singular_vector_best_cosine"] == pytest.approx(4 / 5, abs=1e-6)
        assert found["rho_16"] == pytest.approx(0.0, abs=1e-12)

    def test_two_vectors_that_change_places(self):
        W0 = torch.diag(torch.arange(64, 0, -1).double())
        B, A = torch.zeros(64, 2).double(), torch.zeros(2, 64).double()
        B[0, 0], A[0, 0], B[1, 1], A[1, 1] = -1.5, 1, 1.5, 1
        found, _ = of_adapter(W0, A, B, 1.0)  # 62.5 and 64.5 for 64 and 63
        assert found["singular_vector_cosine"] == pytest.approx(6 / 8)
        assert found["singular_vector_best_cosine"] == pytest.approx(1.0)
        assert found["subspace_overlap_8"] == pytest.approx(1.0)
        assert found["intruder_dimensions"] == 0

    @pytest.mark.parametrize("direction", [3, 15, 16, 40])
    def test_rho_is_the_share_inside(self, direction):
        W0 = torch.diag(torch.arange(64, 0, -1).double())
        B, A = torch.zeros(64, 1).double(), torch.zeros(1, 64).double()
        B[direction], A[0, 50] = 0.7, 1.0
        B[60] = 0.7
        found, _ = of_adapter(W0, A, B, 0.1)
        assert found["rho_16"] == pytest.approx(0.5 if direction < 16 else 0.0, abs=1e-12)
        assert found["rho_16_right"] == pytest.approx(0.0, abs=1e-12)

    def test_left_and_right_are_not_mixed_up(self):
        """Only left vectors are rotated: the update takes U0 to R U0 and leaves V0."""
        W0 = torch.diag(torch.arange(16, 0, -1).double())
        rotation = torch.eye(16).double()
        angle = torch.tensor(0.6)
        rotation[0, 0] = rotation[12, 12] = angle.cos()
        rotation[12, 0], rotation[0, 12] = angle.sin(), -angle.sin()
        found, _ = of_full(W0, rotation @ W0 - W0)
        assert found["subspace_overlap_8"] == pytest.approx((7 + float(angle.cos()) ** 2) / 8, abs=1e-6)
        assert found["subspace_overlap_8_right"] == pytest.approx(1.0, abs=1e-6)
        assert found["singular_vector_cosine"] == pytest.approx((1 + float(angle.cos())) / 2, abs=1e-6)
        assert found["singular_vector_cosine_right"] == pytest.approx(1.0, abs=1e-6)

    def test_no_move_is_exactly_the_base(self):
        base = decompose(normal(30, 20))
        zero = torch.zeros(30, 20)
        found = subspace_measures(base, unmoved(base), lambda k, side: full_rho(base, zero, k, side))
        assert {key: value for key, value in found.items() if "intruder" not in key} == {
            f"{key}{suffix}": 1.0
            for key in ("subspace_overlap_8", "singular_vector_cosine", "singular_vector_best_cosine")
            for suffix in ("", "_right")
        }
        assert found["intruder_dimensions"] == found["intruder_dimensions_right"] == 0
        assert torch.equal(unmoved(base).S, base.S) and unmoved(base).error == 0.0

    def test_near_degenerate_values_are_compared_as_subspaces(self):
        """Two equal values: the pair's vectors may turn freely, its subspace may not."""
        S = torch.cat([torch.full((8,), 2.0), torch.linspace(1, 0.5, 56)]).double()
        W0 = matrix(64, 64, S)
        A, B = normal(1, 64, seed=8) * 1e-7, normal(64, 1, seed=9) * 1e-7
        found, _ = of_adapter(W0, A, B, 1.0)
        assert found["subspace_overlap_8"] == pytest.approx(1.0, abs=1e-9)

    def test_a_matrix_that_is_smaller_than_k_has_no_overlap_of_k(self):
        found, _ = of_adapter(normal(10, 40), normal(1, 40), normal(10, 1), 0.1)
        assert "subspace_overlap_8" in found and "subspace_overlap_32" not in found and "rho_16" not in found

    def test_how_many_are_compared(self):
        assert [num_vectors(shape) for shape in ((4, 9), (64, 64), (1024, 4096), (5000, 4096))] == [1, 8, 128, 500]


@pytest.mark.parametrize("shape", SHAPES)
def test_measures_ignore_the_basis(shape):
    """Turned spaces on both sides, another scale of both matrices, and another split of B and A change nothing."""
    d_out, d_in = shape
    W0 = matrix(d_out, d_in, torch.linspace(2, 1, min(shape)))
    A, B = normal(4, d_in, seed=2), normal(d_out, 4, seed=3)
    found, _ = of_adapter(W0, A, B, 0.05)
    P, Q, M = orthogonal(d_out, d_out, 4), orthogonal(d_in, d_in, 5), normal(4, 4, seed=6)
    turned, _ = of_adapter(7 * P @ W0 @ Q.T, torch.linalg.solve(M, A) @ Q.T, P @ B @ M, 7 * 0.05)
    assert turned == pytest.approx(found, rel=1e-4, abs=1e-6)


def test_transposing_the_matrix_swaps_left_and_right():
    W0 = matrix(60, 90, torch.linspace(2, 1, 60))
    A, B = normal(4, 90, seed=2), normal(60, 4, seed=3)
    found, _ = of_adapter(W0, A, B, 0.05)
    other, _ = of_adapter(W0.T, B.T, A.T, 0.05)
    for key, value in found.items():
        swapped = key.removesuffix("_right") if key.endswith("_right") else f"{key}_right"
        assert other[swapped] == pytest.approx(value, rel=1e-4, abs=1e-6), key


class TestPublishedIntruders:
    """PEFT's implementation of the published algorithm, which says how many it found in each layer."""

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
    def test_counts_are_the_same(self, shape, size):
        d_out, d_in = shape

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(d_in, d_out, bias=False)

            def forward(self, x):
                return self.layer(x)

        model = Model().double()
        with torch.no_grad():
            model.layer.weight.copy_(matrix(d_out, d_in, torch.linspace(2, 1, min(shape))))
        W0 = model.layer.weight.detach().clone()
        options = LoraConfig(r=6, lora_alpha=12, target_modules=["layer"])
        wrapped = get_peft_model(model, options, autocast_adapter_dtype=False)
        layer = wrapped.base_model.model.layer
        A, B = normal(6, d_in, seed=7) / d_in**0.5, normal(d_out, 6, seed=8) / d_out**0.5 * size
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(A)
            layer.lora_B["default"].weight.copy_(B)
        said = []
        published.reduce_intruder_dimension(wrapped, logging_sink=said.append)
        line = next(text for text in said if "layer" in text)
        expected = 0 if "No intruders" in line else int(line.rsplit(" ", 1)[1])
        found, _ = of_adapter(W0, A, B, 2.0)
        assert found["intruder_dimensions"] == expected


def test_intruders_are_sought_among_the_ten_largest_only():
    cosines = torch.zeros(30, 20)
    cosines[0, :10] = 0.5
    assert intruder_dimensions(cosines) == 0
    cosines[0, 9] = 0.49
    assert intruder_dimensions(cosines) == 1
    assert isinstance(Triplets(torch.ones(20), cosines, cosines, 0.0), Triplets)
