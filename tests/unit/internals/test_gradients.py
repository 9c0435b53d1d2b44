"""The ranks that a gradient speaks for, on matrices whose singular values are chosen."""

from __future__ import annotations

import math

import pytest
import torch

from rankscope.internals.gradients import capacity_rank, ranks_to_try, signal_rank


def matrix(values: list[float], d_out: int = 12, d_in: int = 8, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(d_out, d_out, generator=generator, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64))[0]
    return U[:, : len(values)] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ V[:, : len(values)].T


def test_only_directions_above_the_noise_count() -> None:
    signal, noise = matrix([5.0, 3.0, 1.0, 0.2]), matrix([0.5, 0.1], seed=1)
    # The mean of the halves is the signal; half of their difference is the noise, whose largest value is 0.5.
    assert signal_rank((signal + noise).float(), (signal - noise).float())[0] == 3
    # Just above the noise a direction counts, just below it none does: neither is out by a factor of two.
    for smallest, number in ((0.6, 3), (0.4, 2)):
        signal = matrix([5.0, 3.0, smallest])
        assert signal_rank((signal + noise).float(), (signal - noise).float())[0] == number


def test_without_noise_every_direction_counts_and_with_nothing_but_noise_hardly_any() -> None:
    signal = matrix([5.0, 3.0, 1.0])
    assert signal_rank(signal, signal)[0] == 8, "rounding stands above a noise of zero"
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 40, 60, generator=generator)
    assert signal_rank(first, second)[0] <= 2


def test_energy_ranks_are_the_least_numbers_of_directions() -> None:
    # Energies 0.81, 0.0961, 0.09 and 0.01: after two directions 90.06%, after three 99.01%.
    signal = matrix([0.9, 0.31, 0.3, 0.1])
    assert signal_rank(signal, signal)[1:] == (2, 3)
    # Energies of 91, 5, 2 and 2 in a hundred: 91%, 96%, 98%, 100%.
    signal = matrix([math.sqrt(part) for part in (91.0, 5.0, 2.0, 2.0)])
    assert signal_rank(signal, signal)[1:] == (1, 4)
    assert signal_rank(matrix([1.0]), matrix([1.0]))[1:] == (1, 1)


def test_no_gradient_has_no_directions() -> None:
    assert signal_rank(torch.zeros(3, 4), torch.zeros(3, 4)) == (0, 0, 0)


@pytest.mark.parametrize(("bits", "rank"), [(1.0, 1), (1000.0, 1), (1001.0, 2), (16_000.0, 16)])
def test_capacity_is_the_least_rank_that_holds_the_bits(bits: float, rank: int) -> None:
    assert capacity_rank(bits, 1000.0) == rank


def test_ranks_to_try_are_powers_of_two_between_what_is_asked_for() -> None:
    assert ranks_to_try(needed=3, typical=5, high=20, largest=128) == (2, 4, 8, 16, 32)
    assert ranks_to_try(needed=40, typical=0, high=0, largest=128) == (1, 2, 4, 8, 16, 32, 64)
    assert ranks_to_try(needed=1, typical=1, high=1, largest=128) == (1,)
    assert ranks_to_try(needed=500, typical=60, high=90, largest=96)[-1] == 64, "no update is larger than its matrix"
    assert all(math.log2(rank).is_integer() for rank in ranks_to_try(7, 11, 29, 64))
