"""A small version of `make simulate`: intervals cover, and the rule is seldom wrong, where the truth is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "simulate.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("simulate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def world(simulation: ModuleType, name: str) -> object:
    return next(item for item in simulation.WORLDS if item.name == name)


@pytest.mark.parametrize("name", ["weak seeds", "strong seeds, 2 of them", "100 items", "nearly all right"])
def test_intervals_cover(simulation: ModuleType, name: str) -> None:
    tally = simulation.simulate(world(simulation, name), 60, np.random.default_rng(0))
    for shares in (tally.gain, tally.forgetting, tally.pair):
        # 60 studies of 5 arms that share items: a standard error of about 1.5 points.
        assert 0.90 <= np.mean(shares) <= 0.995


@pytest.mark.parametrize("name", ["a smaller arm just beyond the margin", "the best just beyond the budget"])
def test_the_rule_is_seldom_wrong_where_it_is_hardest(simulation: ModuleType, name: str) -> None:
    tally = simulation.simulate(world(simulation, name), 60, np.random.default_rng(1))
    assert tally.wrong <= 6  # 5% would be 3


def test_equal_arms_are_undecided_with_few_items_and_settled_with_many(simulation: ModuleType) -> None:
    few = simulation.simulate(world(simulation, "equal arms, few items"), 30, np.random.default_rng(2))
    many = simulation.simulate(world(simulation, "equal arms, many items"), 30, np.random.default_rng(3))
    assert few.undecided >= 28
    assert many.undecided <= 10
    assert many.wrong == 0


def test_a_clear_winner_is_found_with_enough_items(simulation: ModuleType) -> None:
    from dataclasses import replace

    clear = replace(world(simulation, "one clear winner"), num_items=4000, num_seeds=5)
    tally = simulation.simulate(clear, 20, np.random.default_rng(4))
    assert tally.undecided <= 4
    assert tally.wrong == 0


def test_the_truth_of_a_world_is_what_is_drawn(simulation: ModuleType) -> None:
    strong = world(simulation, "strong seeds")
    drawn = []
    for draw in range(400):
        task = simulation.draw_task(strong, "taught", 0.4, [0.5] * 5, np.random.default_rng(draw))
        drawn.append(np.mean(list(task.tuned["arm2"].values())))
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.006)
    assert np.std(drawn) == pytest.approx(np.sqrt(0.03**2 / 3 + 0.25 / 400 * (0.33 + 0.67 / 3)), rel=0.2)
