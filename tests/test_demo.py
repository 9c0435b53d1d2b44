"""The demo: one command, two verdicts, and a page that a browser can open from a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED, main
from rankscope.plan import Plan
from rankscope.store import Store
from studies import plan_of

ROOT = Path(__file__).resolve().parent.parent
ARMS = {"full", "lora-r1", "lora-r4", "lora-r16", "lora-r64"}
TASKS = (
    "medical_facts", "medical_problems", "medical_recall", "legal_recall", "legal_problems", "general_recall",
    "general_problems", "general_text",
)  # fmt: skip


def assert_whole(store: Store, plan: Plan, said: str) -> None:
    """Every arm has a rate on both training sets, the search kept to half its cost, and there is a page."""
    assert said.count("-> ") == 2 and str(store.report / "index.html") in said.replace("\n", "")
    choices = store.read_rates().choices
    assert {(choice.training_set, choice.arm) for choice in choices} == {
        (name, arm) for name in ("facts", "problems") for arm in ARMS
    }
    assert all(choice.learning_rate is not None for choice in choices)
    searched = [run for run in plan.runs if run.seed == 0]
    trained = sum(store.read_train(run.run_id).num_steps for run in searched)
    assert trained <= sum(run.num_steps for run in searched) / 2


@pytest.mark.slow
def test_the_demos_study_with_few_examples_and_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything of it but its size, which takes minutes."""
    sizes = {"train.facts": 160, "train.problems": 160, **{f"evaluate.{name}": 12 for name in TASKS}}
    cuts = [f"{key}.max_examples={size}" for key, size in sizes.items()]
    cuts += [f"train.{name}.validation.max_examples=12" for name in ("facts", "problems")]
    overrides = [word for cut in (*cuts, "optimization.num_epochs=1", "seeds=[0]") for word in ("--set", cut)]
    status = main(["run", str(ROOT / "studies" / "smallworld.yaml"), "--out", str(tmp_path / "demo"), *overrides])
    assert status in {DONE, UNDECIDED}
    assert_whole(Store(tmp_path / "demo"), plan_of(tmp_path / "demo"), capsys.readouterr().out)


@pytest.mark.heavy
def test_the_demo_ends_in_two_verdicts_and_a_small_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == DONE, "undecided is no failure of a demo"
    store = Store(out)
    assert_whole(store, plan_of(out), capsys.readouterr().out)
    assert 500_000 < (out / "report" / "index.html").stat().st_size < 3_000_000
    facts, _ = store.read_decide().verdicts
    gains = {arm.arm: arm.gain.value for arm in facts.arms if arm.gain is not None}
    # What is known of this world: nobody has ever told the base these facts, and an arm can learn some of them.
    assert gains["base"] == 0.0 and max(gains.values()) > 0.1
