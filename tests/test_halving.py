"""Halving, really trained: a choice nearly as good as the full grid's for half of its training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from rich.console import Console

from rankscope.display import PlainDisplay
from rankscope.pipeline import run_study
from rankscope.records import RateChoice
from rankscope.spec import Study
from rankscope.store import Store
from rankscope.study_file import load_study
from studies import plan_of

ARMS = ("full", "lora-r4", "lora-r64")
# A little more than the standard error of an accuracy on the search's 150 validation items: rates that are closer than
# that are told apart by neither search.
LARGEST_LOSS = 0.05


def demo_grid(halving: bool) -> Study:
    """The demo's search on its facts, each arm with all four of the demo's rates, and hardly anything to score."""
    path = Path(str(files("rankscope.data.smallworld") / "study.yaml"))
    demo = load_study(path)
    rates = sorted({rate for arm in demo.arms for rate in arm.learning_rate})
    assert len(rates) >= 4
    return load_study(
        path,
        [
            f"arms=[{{method: full, learning_rate: {rates}}}, {{method: lora, rank: [4, 64], learning_rate: {rates}}}]",
            f"train={{facts: {demo.train['facts'].model_dump_json(exclude_none=True)}}}",
            "evaluate={facts: {source: smallworld:medical_new, split: test, max_examples: 20, in_domain_for: [facts]}}",
            "analyse={spectra: false, subspaces: false, attention: false}",
            f"search={{halving: {str(halving).lower()}}}",
            "seeds=[0]",
        ],
    )


def searched(out: Path, halving: bool) -> tuple[dict[str, RateChoice], int]:
    """The choices of a study, and the steps that its runs were trained in all."""
    run_study(demo_grid(halving), out, PlainDisplay(Console(quiet=True)))
    records = [Store(out).read_train(run.run_id) for run in plan_of(out).runs]
    assert all(record is not None for record in records)
    choices = {choice.arm: choice for choice in Store(out).read_rates().choices}
    return choices, sum(record.num_steps for record in records)


@pytest.mark.heavy
def test_halving_chooses_nearly_as_well_as_the_full_grid_at_half_its_training(tmp_path: Path) -> None:
    whole, whole_steps = searched(tmp_path / "whole", halving=False)
    halved, halved_steps = searched(tmp_path / "halved", halving=True)
    assert set(whole) == set(halved) == set(ARMS)
    for arm in ARMS:
        best, chosen = (f"{choices[arm].learning_rate:g}" for choices in (whole, halved))
        assert halved[arm].scores[chosen] == whole[arm].scores[chosen], "the run that went on is the whole one"
        assert whole[arm].scores[best] - whole[arm].scores[chosen] <= LARGEST_LOSS, (halved[arm], whole[arm])
        assert len(halved[arm].steps) == len(whole[arm].scores) - 1
    assert halved_steps <= whole_steps / 2
