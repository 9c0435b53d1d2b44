"""Halving, really trained: the full grid's choice for half of its training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from rankscope.pipeline import run_study
from rankscope.records import RateChoice
from rankscope.spec import Study
from rankscope.store import Store
from rankscope.study_file import load_study
from studies import plan_of

ARMS = {"full", "lora-r1", "lora-r4", "lora-r16", "lora-r64"}


def demo_grid(halving: bool) -> Study:
    """The demo's search on its facts, and hardly anything to score."""
    path = Path(str(files("rankscope.data.smallworld") / "study.yaml"))
    demo = load_study(path)
    assert {len(arm.learning_rate) for arm in demo.arms} == {4}
    return load_study(
        path,
        [
            f"train={{facts: {demo.train['facts'].model_dump_json(exclude_none=True)}}}",
            "evaluate={facts: {source: smallworld:medical_new, split: test, max_examples: 20, in_domain_for: [facts]}}",
            "analyse={spectra: false, subspaces: false, attention: false}",
            f"search={{halving: {str(halving).lower()}}}",
            "seeds=[0]",
        ],
    )


def searched(out: Path, halving: bool) -> tuple[dict[str, RateChoice], int]:
    """The choices of a study, and the steps that its runs were trained in all."""
    run_study(demo_grid(halving), out)
    records = [Store(out).read_train(run.run_id) for run in plan_of(out).runs]
    assert all(record is not None for record in records)
    choices = {choice.arm: choice for choice in Store(out).read_rates().choices}
    return choices, sum(record.num_steps for record in records)


@pytest.mark.heavy
def test_halving_chooses_as_the_full_grid_does_at_half_its_training(tmp_path: Path) -> None:
    whole, whole_steps = searched(tmp_path / "whole", halving=False)
    halved, halved_steps = searched(tmp_path / "halved", halving=True)
    assert set(whole) == set(halved) == ARMS
    for arm in ARMS:
        assert halved[arm].learning_rate == whole[arm].learning_rate, (halved[arm], whole[arm])
        chosen = f"{halved[arm].learning_rate:g}"
        assert halved[arm].scores[chosen] == whole[arm].scores[chosen], "the run that went on is the whole one"
        assert len(halved[arm].steps) == len(whole[arm].scores) - 1
    assert halved_steps <= whole_steps / 2
