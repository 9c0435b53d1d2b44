"""docs/scale.md: the simulated clock against sums and bounds that need none, and against a study that was run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rankscope.plan import Pack, Plan
from rankscope.schedule import pack_seconds

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_simulation", ROOT / "benchmarks" / "scale_simulation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_simulation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def costs(simulation: ModuleType) -> dict:
    return json.loads(simulation.COSTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plan(simulation: ModuleType, costs: dict) -> Plan:
    return simulation.measured_plan(costs)


def test_measured_costs_in_the_schedule_give_the_time_that_the_study_took(
    simulation: ModuleType, plan: Plan, costs: dict
) -> None:
    again = simulation.Simulation(simulation.parts_of(plan, 1), costs["num_workers"], 0.0).run()
    assert again.seconds == pytest.approx(costs["seconds"], rel=0.1)
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"says {again.seconds:.0f} s" in " ".join(page.split())
    assert f"took {costs['seconds']:.0f} s" in " ".join(page.split())


def test_one_worker_takes_the_sum_and_many_no_less_than_the_longest_chain(simulation: ModuleType, plan: Plan) -> None:
    alone, two, many = (simulation.Simulation(simulation.parts_of(plan, 1), n, 5.0).run() for n in (1, 2, 256))
    assert alone.seconds == pytest.approx(5.0 + alone.busy)
    assert [two.busy, many.busy] == pytest.approx([alone.busy] * 2)
    assert alone.seconds / 2 <= two.seconds < alone.seconds
    assert simulation.shortest(plan, 5.0) <= many.seconds < two.seconds


def test_a_lost_node_costs_what_has_no_record_and_no_checkpoint(simulation: ModuleType, plan: Plan) -> None:
    run = plan.runs[0]
    tasks = tuple(plan.tasks[run.base.name])
    train, score = (Pack("train", run.base.name, (run.run_id,)), Pack("evaluate", run.base.name, (run.run_id,), tasks))
    assert simulation.kept_seconds(plan, train, plan.checkpoint_seconds + 7.0) == pytest.approx(7.0)
    assert simulation.kept_seconds(plan, train, 7.0) == 0.0
    first = pack_seconds(plan, Pack("evaluate", run.base.name, (run.run_id,), tasks[:1]))
    second = pack_seconds(plan, Pack("evaluate", run.base.name, (run.run_id,), tasks[:2]))
    assert simulation.kept_seconds(plan, score, 0.9 * first) == 0.0
    assert simulation.kept_seconds(plan, score, 0.5 * (first + second)) == pytest.approx(first)
    plain = simulation.Simulation(simulation.parts_of(plan, 1), 8, 5.0).run()
    failing = simulation.Simulation(simulation.parts_of(plan, 1), 8, 5.0, plain.seconds / 3).run()
    assert failing.num_lost > 0 and failing.busy == pytest.approx(plain.busy)
    assert failing.seconds > plain.seconds and failing.lost > 0
