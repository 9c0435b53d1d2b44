"""Means over changed neurons: of sizes, not of shifts; infinite ones stand outside; by layer and over all."""

import math

import polars as pl
import pytest

from rankscope.internals.neuron_means import neuron_means, neuron_means_by_layer

CHANGES = pl.DataFrame(
    {
        "layer": [1, 0, 0, 0, 2],
        "neuron_shift": [-3.0, 1.0, -2.0, math.inf, -math.inf],
        "is_newly_dead": [True, False, True, False, False],
        "is_newly_active": [False, True, False, False, True],
    }
)


def test_over_all_neurons():
    means = CHANGES.select(neuron_means()).row(0, named=True)
    assert means == {"neuron_shift": pytest.approx(2.0), "neurons_newly_dead": 2, "neurons_newly_active": 2}


def test_by_layer_in_order():
    assert neuron_means_by_layer(CHANGES.lazy()).collect().rows(named=True) == [
        {"layer": 0, "neuron_shift": 1.5, "neurons_newly_dead": 1, "neurons_newly_active": 1, "num_neurons": 3},
        {"layer": 1, "neuron_shift": 3.0, "neurons_newly_dead": 1, "neurons_newly_active": 0, "num_neurons": 1},
        # Every shift is infinite: there is no mean.
        {"layer": 2, "neuron_shift": None, "neurons_newly_dead": 0, "neurons_newly_active": 1, "num_neurons": 1},
    ]
