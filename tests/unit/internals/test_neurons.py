"""Neurons with known activations: activity, selectivity, shifts, the newly dead, and texts that excite them."""

import numpy as np
import pytest
import torch

from rankscope.internals.neurons import (
    active_fraction,
    all_tasks,
    excitation,
    mean_activation,
    neuron_shift,
    neuron_sums,
    newly_active,
    newly_dead,
    pooled_deviation,
    selectivity,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_batches_add_up():
    activations = normal(50, 6)
    whole, parts = neuron_sums(activations, 0.5), neuron_sums(activations[:7], 0.5) + neuron_sums(activations[7:], 0.5)
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
    torch.testing.assert_close(mean_activation(whole), activations.double().mean(0))
    torch.testing.assert_close(active_fraction(whole), (activations.abs() > 0.5).double().mean(0))


def test_active_is_above_the_threshold_on_either_side():
    sums = neuron_sums(torch.tensor([[0.0, 0.5, -0.6], [0.1, -0.5, 0.0], [0.7, 0.6, 0.0]]), 0.5)
    assert active_fraction(sums).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    relu = neuron_sums(torch.tensor([[0.0, 1e-9], [0.0, 0.0]]), 0.0)
    assert active_fraction(relu).tolist() == [0.0, 0.5]


def test_selectivity_is_a_difference_in_pooled_deviations():
    values = {"a": normal(40, 3) + 1.0, "b": normal(25, 3, seed=1) * 2, "c": normal(9, 3, seed=2)}
    values = {name: task.numpy() for name, task in values.items()}
    tasks = {name: neuron_sums(torch.from_numpy(task), 0.1) for name, task in values.items()}
    pooled = np.sqrt(
        sum((len(task) - 1) * task.var(axis=0, ddof=1) for task in values.values())
        / sum(len(task) - 1 for task in values.values())
    )
    torch.testing.assert_close(pooled_deviation(tasks), torch.from_numpy(pooled).double(), rtol=1e-6, atol=0)
    means = {name: task.mean(axis=0) for name, task in values.items()}
    expected = (means["a"] - (means["b"] + means["c"]) / 2) / pooled
    torch.testing.assert_close(selectivity(tasks, "a"), torch.from_numpy(expected).double(), rtol=1e-5, atol=1e-8)
    assert selectivity({"a": tasks["a"]}, "a") is None


def test_a_neuron_that_never_varies_is_selective_for_nothing():
    tasks = {name: neuron_sums(torch.zeros(5, 1), 0.0) for name in "ab"}
    assert selectivity(tasks, "a").tolist() == [0.0]


def test_shift_is_in_the_bases_deviations():
    before = normal(500, 2)
    base = {"a": neuron_sums(before, 0.1)}
    tuned = {"a": neuron_sums(before + torch.tensor([0.0, 1.5]), 0.1)}
    found = neuron_shift(base, tuned)
    assert found[0] == 0.0
    assert float(found[1]) == pytest.approx(1.5 / float(before[:, 1].std()), rel=1e-5)
    # A tuned model that varies more is not measured by its own spread.
    wider = {"a": neuron_sums(3.0 * (before - before.mean(0)) + before.mean(0) + 1.5, 0.1)}
    assert neuron_shift(base, wider).tolist() == pytest.approx((1.5 / before.std(0)).tolist(), rel=1e-5)
    still, moves = neuron_sums(torch.zeros(4, 2), 0.0), neuron_sums(torch.tensor([[0.0, 1.0]] * 4), 0.0)
    assert neuron_shift({"a": still}, {"a": moves}).tolist() == [0.0, float("inf")]


def test_a_neuron_switched_off_and_one_switched_on():
    before, after = torch.zeros(200, 4), torch.zeros(200, 4)
    before[:2, 0], before[:1, 1], after[:2, 2], after[:1, 3] = 1.0, 1.0, 1.0, 1.0
    base, tuned = neuron_sums(before, 0.0), neuron_sums(after, 0.0)
    # One position of 200 is less than a hundredth.
    assert newly_dead(base, tuned).tolist() == [True, False, False, False]
    assert newly_active(base, tuned).tolist() == [False, False, True, False]


def test_who_still_speaks_once_is_neither_dead_nor_new():
    often, once = torch.zeros(200, 1), torch.zeros(200, 1)
    often[:2], once[:1] = 1.0, 1.0
    base, tuned = neuron_sums(often, 0.0), neuron_sums(once, 0.0)
    assert not newly_dead(base, tuned).any() and not newly_active(tuned, base).any()


def test_all_tasks_is_every_position():
    values = normal(30, 2)
    found = all_tasks({"a": neuron_sums(values[:4], 0.1), "b": neuron_sums(values[4:], 0.1)})
    torch.testing.assert_close(mean_activation(found), values.double().mean(0))


def test_the_strongest_position_of_a_text_is_no_padding():
    activations = torch.zeros(2, 3, 2)
    activations[0, 1, 0], activations[0, 2, 1] = -2.0, 3.0
    activations[1, 0, 0], activations[1, 2, 0] = 1.0, 9.0  # the second is padding
    is_token = torch.tensor([[True, True, True], [True, True, False]])
    values, where = excitation(activations, is_token)
    assert values.tolist() == [[-2.0, 3.0], [1.0, 0.0]]
    assert where[0].tolist() == [1, 2] and where[1, 0] == 0 and where[1, 1] < 2
