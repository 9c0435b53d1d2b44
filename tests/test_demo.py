"""The demo as it is shipped: one command, two verdicts, and a page that a browser can open from a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.cli import DONE, main
from rankscope.store import Store
from studies import plan_of

ARMS = {"full", "lora-r1", "lora-r4", "lora-r16", "lora-r64"}


@pytest.mark.slow
def test_the_demo_ends_in_two_verdicts_and_a_small_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == DONE, "undecided is no failure of a demo"
    said = capsys.readouterr().out
    assert said.count("-> ") == 2 and str(out / "report" / "index.html") in said.replace("\n", "")
    assert 500_000 < (out / "report" / "index.html").stat().st_size < 3_000_000
    store = Store(out)
    choices = store.read_rates().choices
    assert {(choice.training_set, choice.arm) for choice in choices} == {
        (name, arm) for name in ("facts", "problems") for arm in ARMS
    }
    assert all(choice.learning_rate is not None for choice in choices)
    facts, _ = store.read_decide().verdicts
    gains = {arm.arm: arm.gain.value for arm in facts.arms if arm.gain is not None}
    # What is known of this world: nobody has ever told the base these facts, and an arm can learn some of them.
    assert gains["base"] == 0.0 and max(gains.values()) > 0.1
    # The search cost half of what all rates in full would have.
    searched = [run for run in plan_of(out).runs if run.seed == 0]
    trained = sum(store.read_train(run.run_id).num_steps for run in searched)
    assert trained <= sum(run.num_steps for run in searched) / 2
