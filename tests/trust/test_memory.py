"""Memory does not grow from run to run in one worker, and the disk is what the plan said."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest
import torch

from rankscope.data.order import batches
from rankscope.models.loading import Models
from rankscope.planning import make_plan
from rankscope.runs import BaseSettings, RunSettings
from rankscope.store import Store
from rankscope.study_file import load_study
from rankscope.train.loop import start_run, train
from solo import Silent
from studies import plan_of, run, write_study
from tiny import examples, full_run, lora_run, save_tiny

NUM_RUNS, FIRST = 50, 10
MOST_GROWTH_BYTES = 10_000_000
EXAMPLES = examples(24)


def train_and_read_back(models: Models, store: Store, settings: RunSettings) -> None:
    """What a worker does with a run: train, save, and load what was saved."""
    order = batches(len(EXAMPLES), settings.optimization.batch_size, settings.num_steps, settings.seed)
    with models.trainable((settings,)) as pack:
        train(pack, [start_run(pack, 0, EXAMPLES, EXAMPLES[:4], order)], 10_000, Silent())
        pack.save(0, store.train(settings.run_id))
    with models.tuned(settings) as model, torch.no_grad():
        assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fifty_runs_in_one_process_need_no_more_memory_than_ten(tmp_path: Path, method: str) -> None:
    folder = save_tiny(tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")  # a base has one; nothing here is tokenised
    base = BaseSettings(name="tiny", source=str(folder), revision=None, fingerprint="f")
    store = Store(tmp_path / "out")
    models = Models(store, "float32", "cpu")
    resident = []
    for seed in range(NUM_RUNS):
        made = full_run(1e-3, seed, 3) if method == "full" else lora_run(2 + seed % 3, 1e-3, seed, 3, lora_dropout=0.1)
        train_and_read_back(models, store, made.model_copy(update={"base": base}))
        gc.collect()
        resident.append(psutil.Process().memory_info().rss)
    assert resident[NUM_RUNS - 1] - resident[FIRST - 1] < MOST_GROWTH_BYTES


def weight_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("runs/*/train/*/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["chosen", "all"])
def test_the_disk_is_what_the_plan_said(whole: Path, tmp_path: Path, keep: str) -> None:
    study, out = write_study(tmp_path), tmp_path / "out"
    if keep == "chosen":
        out = whole
    else:
        overrides = ["arms.0.learning_rate=[1.0e-3, 5.0e-4]", f"keep={keep}", "seeds=[0]", "analyse.attention=false"]
        done = run(study, out, *[word for override in overrides for word in ("--set", override)])
        assert done.returncode in {0, 3}, done.stdout + done.stderr
    estimate = plan_of(out).estimate
    assert weight_bytes(out) == pytest.approx(estimate.disk_bytes_by_use["weights"], rel=0.2)
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= estimate.disk_bytes


def test_the_plan_counts_what_each_rule_keeps(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    two_rates = "arms.0.learning_rate=[1.0e-3, 5.0e-4]"
    sizes = {
        keep: make_plan(load_study(study, [two_rates, f"keep={keep}"]))[0].estimate.disk_bytes_by_use["weights"]
        for keep in ("chosen", "all", "records")
    }
    one = make_plan(load_study(study))[0].estimate.disk_bytes_by_use["weights"]
    assert sizes["records"] == 0
    assert sizes["chosen"] == one  # of full fine-tuning only the chosen rate stays
    assert sizes["all"] - sizes["chosen"] > 0.4 * one  # one model more, of the two that were counted
