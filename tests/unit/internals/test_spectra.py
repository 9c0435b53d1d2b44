"""Spectra of updates against closed forms and dense float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rankscope.internals import spectra

SHAPES = [(24, 24), (40, 12), (12, 40)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def orthogonal(rows, columns, seed):
    """A matrix with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)).Q


def with_values(values, shape, seed=0):
    """A matrix with chosen singular values."""
    S = torch.tensor(values, dtype=torch.float64)
    return orthogonal(shape[0], len(S), seed) @ torch.diag(S) @ orthogonal(shape[1], len(S), seed + 1).T


def random_factors(shape, rank, dtype=torch.float32):
    A = torch.randn(rank, shape[1], generator=generator(3), dtype=dtype)
    B = torch.randn(shape[0], rank, generator=generator(4), dtype=dtype)
    return A, B


class TestLoraSingularValues:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("rank", [1, 4, 12, 20])
    def test_equal_dense_float64(self, shape, rank):
        A, B = random_factors(shape, rank)
        dense = torch.linalg.svdvals(1.7 * B.double() @ A.double())
        S = spectra.lora_singular_values(A, B, 1.7)
        assert S.shape == (min(rank, *shape),)
        torch.testing.assert_close(S, dense[: len(S)], rtol=1e-9, atol=1e-12)
        # What the values leave out is nothing, also where the rank is above the matrix's size.
        assert float(dense[len(S) :].sum()) < 1e-9 * float(dense[0])

    def test_chosen_values_scale_once(self):
        # B has the values, A orthonormal rows: the update's values are B's times the scaling, not its square or root.
        B, A = with_values([8.0, 4.0, 1.0], (10, 3)), orthogonal(7, 3, 5).T
        S = spectra.lora_singular_values(A, B, 0.25)
        torch.testing.assert_close(S, torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64))

    def test_swapped_factors_do_not_pass(self):
        # Of a square pair the product the wrong way round has other values.
        A, B = random_factors((6, 6), 6, torch.float64)
        right = torch.linalg.svdvals(B @ A)
        torch.testing.assert_close(spectra.lora_singular_values(A, B, 1.0), right)
        assert not torch.allclose(spectra.lora_singular_values(B, A, 1.0), right, rtol=1e-2)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_do_not_depend_on_how_the_product_is_split(self, shape):
        A, B = random_factors(shape, 5, torch.float64)
        M = torch.randn(5, 5, generator=generator(9), dtype=torch.float64) + 3 * torch.eye(5, dtype=torch.float64)
        S = spectra.lora_singular_values(A, B, 2.0)
        torch.testing.assert_close(spectra.lora_singular_values(M @ A, B @ M.inverse(), 2.0), S, rtol=1e-9, atol=1e-12)

    def test_untrained_adapter_is_exactly_zero(self):
        A, _ = random_factors((8, 6), 3)
        S = spectra.lora_singular_values(A, torch.zeros(8, 3), 2.0)
        assert S.tolist() == [0.0, 0.0, 0.0]
        assert spectra.update_norm(S) == 0.0

    def test_the_update_is_never_written_out(self):
        """What makes it fast: nothing larger than the factors is made (benchmarks/spectra.py has the times)."""
        A, B = random_factors((1024, 1024), 16)
        with Largest() as largest:
            spectra.lora_singular_values(A, B, 1.0)
        assert largest.size == 1024 * 16


class Largest(TorchDispatchMode):
    """Counts the numbers in the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        made = operation(*arguments, **(options or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return made


def test_dense_values_are_what_was_chosen():
    delta_W = with_values([3.0, 2.0, 0.5], (9, 5)).float()
    expected = torch.tensor([3.0, 2.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(spectra.dense_singular_values(delta_W), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(600, 700), (700, 560)])
def test_large_updates_are_squared_and_stay_as_exact_as_is_said(shape):
    """Values over seven powers of ten, and some that are 0: the worst that squaring can do."""
    values = [10.0 ** -(7.0 * place / 499) for place in range(500)]
    delta_W = with_values(values, shape)
    S = spectra.dense_singular_values(delta_W)
    expected = torch.tensor([*values, *[0.0] * (min(shape) - 500)], dtype=torch.float64)
    assert len(S) == min(shape)
    assert float((S - expected).abs().max()) < 5e-7
    large = expected > 1e-3
    torch.testing.assert_close(S[large], expected[large], rtol=1e-9, atol=0.0)
    base = {"base_norm": 3.0, "base_spectral_norm": 2.0}
    found = spectra.update_measures(S, rank=None, **base)
    exact = spectra.update_measures(torch.linalg.svdvals(delta_W), rank=None, **base)
    assert found == pytest.approx(exact, rel=1e-5)


def test_a_large_update_of_low_rank_has_that_rank():
    """A thousand values of almost 0 would add up."""
    for values in ([1.0], [8.0, 4.0, 2.0, 1.0]):
        S = spectra.dense_singular_values(with_values(values, (1024, 1024)))
        exact = torch.tensor(values, dtype=torch.float64)
        assert int((S > 0).sum()) == len(values)
        assert spectra.effective_rank(S) == pytest.approx(spectra.effective_rank(exact), rel=1e-9)


class TestSpectralNorm:
    @pytest.fixture(params=["direct", "iterative"], autouse=True)
    def method(self, request, monkeypatch):
        if request.param == "iterative":
            monkeypatch.setattr(spectra, "_DENSE_SIZE", 2)

    @pytest.mark.parametrize("shape", [(5, 9), (80, 80), (80, 300), (300, 80)])
    def test_equals_all_values(self, shape):
        W = torch.randn(*shape, generator=generator())
        expected = float(torch.linalg.svdvals(W.double())[0])
        assert spectra.spectral_norm(W) == pytest.approx(expected, rel=2 * spectra.SPECTRAL_TOLERANCE)

    def test_near_equal_largest_values(self):
        W = with_values([1.0, 1.0 - 1e-5, *([0.9] * 98)], (100, 150))
        assert spectra.spectral_norm(W) == pytest.approx(1.0, rel=1.1e-5)

    def test_zero(self):
        assert spectra.spectral_norm(torch.zeros(9, 7)) == 0.0
        assert spectra.spectral_norm(torch.zeros(3, 4)) == 0.0


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class TestMeasures:
    def test_update_norm_is_frobenius(self):
        delta_W = torch.randn(7, 5, generator=generator(), dtype=torch.float64)
        S = spectra.dense_singular_values(delta_W)
        assert spectra.update_norm(S) == pytest.approx(float(delta_W.square().sum().sqrt()))
        assert spectra.update_norm(values(3.0, 4.0)) == pytest.approx(5.0)

    def test_stable_rank(self):
        assert spectra.stable_rank(values(2.0, 2.0, 2.0)) == pytest.approx(3.0)
        assert spectra.stable_rank(values(2.0, 1.0, 0.0)) == pytest.approx(1.25)
        assert spectra.rank_utilisation(values(2.0, 1.0, 0.0, 0.0), 4) == pytest.approx(1.25 / 4)

    def test_effective_rank(self):
        assert spectra.effective_rank(values(1.0, 1.0, 1.0, 1.0)) == pytest.approx(4.0)
        assert spectra.effective_rank(values(5.0, 0.0)) == pytest.approx(1.0)
        # p = (3/4, 1/4) of the values, not of their squares; natural log.
        expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
        assert spectra.effective_rank(values(3.0, 1.0)) == pytest.approx(expected)

    def test_energy_rank(self):
        equal = values(*[0.1] * 20)
        assert [spectra.energy_rank(equal, t) for t in (0.90, 0.95, 0.99, 1.0)] == [18, 19, 20, 20]
        # Squares 9, 1: the first holds exactly 90%.
        assert spectra.energy_rank(values(3.0, 1.0), 0.90) == 1
        assert spectra.energy_rank(values(3.0, 1.0), 0.91) == 2

    def test_relative_to_the_base(self):
        W0 = with_values([4.0, 3.0], (6, 5))
        S = values(0.6, 0.8).flip(0)
        assert spectra.update_norm_relative(S, float(torch.linalg.norm(W0))) == pytest.approx(1.0 / 5.0)
        assert spectra.update_spectral_relative(S, spectra.spectral_norm(W0)) == pytest.approx(0.8 / 4.0)
        assert spectra.update_norm_relative(S, 0.0) is None
        assert spectra.update_spectral_relative(S, 0.0) is None

    def test_what_an_update_of_zero_has_not(self):
        found = spectra.update_measures(values(0.0, 0.0), rank=2, base_norm=2.0, base_spectral_norm=1.0)
        assert found == {"update_norm": 0.0, "update_norm_relative": 0.0, "update_spectral_relative": 0.0}

    def test_every_measure_stands_under_its_own_key(self):
        """Energies of 89, 4, 4 and 3 in a hundred: each share is reached by another number of directions."""
        S = values(89.0, 4.0, 4.0, 3.0).sqrt()
        found = spectra.update_measures(S, rank=8, base_norm=20.0, base_spectral_norm=2.0)
        shares = (S / S.sum()).tolist()
        assert found == pytest.approx(
            {
                "update_norm": 10.0,
                "update_norm_relative": 0.5,
                "update_spectral_relative": 89.0**0.5 / 2.0,
                "stable_rank": 100.0 / 89.0,
                "rank_utilisation": 100.0 / 89.0 / 8.0,
                "effective_rank": math.exp(-sum(share * math.log(share) for share in shares)),
                "energy_rank_90": 2,
                "energy_rank_95": 3,
                "energy_rank_99": 4,
            }
        )

    def test_rank_utilisation_is_of_a_granted_rank_only(self):
        found = spectra.update_measures(values(1.0, 1.0), rank=None, base_norm=2.0, base_spectral_norm=1.0)
        assert "rank_utilisation" not in found
        assert len(found) == 8

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(1e-100, 1e100))
    def test_shape_does_not_depend_on_size(self, numbers, factor):
        S = values(*sorted(numbers, reverse=True))
        one = spectra.update_measures(S, rank=12, base_norm=1.0, base_spectral_norm=1.0)
        other = spectra.update_measures(S * factor, rank=12, base_norm=1.0, base_spectral_norm=1.0)
        for key in ("stable_rank", "effective_rank", "rank_utilisation"):
            assert other[key] == pytest.approx(one[key], rel=1e-9)
        assert 1.0 - 1e-9 <= one["stable_rank"] <= one["effective_rank"] ** 2 + 1e-9
        assert one["effective_rank"] <= len(numbers) + 1e-9
        assert 1 <= one["energy_rank_90"] <= one["energy_rank_95"] <= one["energy_rank_99"] <= len(numbers)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_an_adapter_and_its_dense_update_agree(self, shape):
        A, B = random_factors(shape, 6)
        base = {"base_norm": 3.0, "base_spectral_norm": 2.0}
        factored = spectra.update_measures(spectra.lora_singular_values(A, B, 0.5), rank=6, **base)
        dense = spectra.update_measures(spectra.dense_singular_values(0.5 * B.double() @ A.double()), rank=6, **base)
        assert factored.keys() == dense.keys()
        for key, value in factored.items():
            assert value == pytest.approx(dense[key], rel=1e-4)
