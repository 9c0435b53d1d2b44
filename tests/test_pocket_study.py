"""A study of real text with a really pretrained model, from the folder of real data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from rankscope.cli import DONE, UNDECIDED, main
from rankscope.plan import Plan
from rankscope.store import Store, read_model

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RANKSCOPE_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no folder of real data at {DATA}; set RANKSCOPE_SHARED"),
]

SOURCES = json.loads((ROOT / "benchmarks" / "pocket_sources.json").read_text(encoding="utf-8"))
# One rate an arm, one seed, fewer items: the same study in two minutes instead of twenty.
SMALLER = {
    "arms.0.learning_rate": "[1e-4]",
    "arms.1.learning_rate": "[1e-3]",
    "arms.1.rank": "[8]",
    "optimization.max_steps": "30",
    "seeds": "[0]",
    "train.medmcqa.validation.max_examples": "20",
    "train.gsm8k.validation.max_examples": "10",
    "evaluate.medmcqa.max_examples": "60",
    "evaluate.gsm8k.max_examples": "20",
    "evaluate.mathqa.max_examples": "30",
    "evaluate.mmlu.max_examples": "60",
    "evaluate.casehold.max_examples": "4",
    "evaluate.tinystories.max_examples": "40",
    "analyse.num_probe_texts": "8",
}


def test_real_text_is_learned_and_stories_are_forgotten(tmp_path: Path) -> None:
    overrides = {key: str(DATA / path) for key, path in SOURCES.items()} | SMALLER
    arguments = [text for key, value in overrides.items() for text in ("--set", f"{key}={value}")]
    out = tmp_path / "out"
    status = main(["run", str(ROOT / "studies" / "pocket_paper.yaml"), "--out", str(out), *arguments])
    assert status in {DONE, UNDECIDED}
    store = Store(out)
    plan = read_model(store.plan_file, Plan)
    assert plan is not None
    base = store.read_evaluate(store.base_task("stories3M", "tinystories"))
    assert base is not None
    before = base.values["loss_nats_per_token"]
    # Known of these texts: 1.367 nats a token over another choice of stories.
    assert 1.1 < before < 1.6
    assert len(plan.runs) == 4
    for run in plan.runs:
        train = store.read_train(run.run_id)
        after = store.read_evaluate(store.task(run.run_id, "tinystories"))
        assert train is not None and after is not None
        assert train.validations[-1].loss_nats_per_token < train.validations[0].loss_nats_per_token
        assert after.values["loss_nats_per_token"] > before + 0.1
        matrices = pl.read_parquet(store.analysis(run.run_id, "spectra") / "matrices.parquet")
        assert len(matrices) == 6 * 7
        assert matrices["update_norm"].min() > 0
    chance = store.read_evaluate(store.base_task("stories3M", "medmcqa"))
    assert chance is not None
    assert 0.05 < chance.values["accuracy"] < 0.5
    verdicts = json.loads((out / "decide" / "record.json").read_text())["verdicts"]
    assert {verdict["training_set"] for verdict in verdicts} == {"medmcqa", "gsm8k"}
    assert (out / "report" / "index.html").stat().st_size > 100_000
