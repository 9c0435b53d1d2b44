"""A run that a round of the search pauses: it leaves weights to score, and goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from rankscope.data.examples import Example, examples_frame
from rankscope.models.loading import Models
from rankscope.plan import Pack, Plan
from rankscope.records import TrainRecord
from rankscope.runs import BaseSettings, RunSettings
from rankscope.store import Store, check_files
from rankscope.train import stage
from tiny import examples, full_run, lora_run, save_tiny

NUM_STEPS = 6


class Quiet:
    """Watches, and asks to stop before a step where told to."""

    def __init__(self, stop_after: int = NUM_STEPS + 1) -> None:
        self.left = stop_after

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        self.left -= 1

    def wants_stop(self) -> bool:
        return self.left <= 0


class Bench:
    """A study directory with one run, and the training stage on it."""

    def __init__(self, root: Path, run: RunSettings) -> None:
        folder = root.parent / "tiny-base"  # all runs of this module start from one
        if not folder.exists():
            save_tiny(folder)
            (folder / "tokenizer.json").write_text("{}")  # a base has one; nothing here is tokenised
        base = BaseSettings(name="tiny", source=str(folder), revision=None, fingerprint="f")
        self.run = run.model_copy(update={"base": base})
        self.store = Store(root / "out")
        texts = [Example(f"e{index}", "", "") for index in range(24)]
        data = [examples_frame(examples(24), texts, split) for split in ("train", "validation")]
        self.store.training_data("tiny", "set").mkdir(parents=True)
        pl.concat(data).write_parquet(self.store.training_data("tiny", "set") / "examples.parquet")
        self.plan = Plan.model_construct(runs=(self.run,), max_tokens_per_batch=10_000, checkpoint_seconds=60.0)
        self.models = Models(self.store, "float32", "cpu")

    def train(self, until: int | None = None, stop_after: int = NUM_STEPS + 1) -> TrainRecord:
        pack = Pack("train", "tiny", (self.run.run_id,), () if until is None else (str(until),))
        stage.run(pack, self.plan, self.store, self.models, Quiet(stop_after))
        record = self.store.read_train(self.run.run_id)
        check_files(self.store.train(self.run.run_id), record)
        return record

    def weights(self) -> dict:
        (path,) = self.store.train(self.run.run_id).glob("*/*.safetensors")
        return load_file(path)


@pytest.mark.parametrize("run", [lora_run(2, 1e-3, 0, NUM_STEPS), full_run(1e-3, 0, NUM_STEPS)], ids=["lora", "full"])
def test_a_paused_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path, run: RunSettings) -> None:
    whole, paused = Bench(tmp_path / "whole", run), Bench(tmp_path / "paused", run)
    expected = whole.train()
    assert (expected.status, expected.num_steps) == ("complete", NUM_STEPS)
    for until in (2, 4):
        record = paused.train(until)
        assert (record.status, record.num_steps) == ("paused", until)
        assert any(name.endswith(".safetensors") for name in record.files), "there are weights to score"
    found = paused.train()
    assert (found.status, found.num_steps) == ("complete", NUM_STEPS)
    assert found.settings_hash == expected.settings_hash
    losses = {point.step: point.loss_nats_per_token for point in found.validations}
    assert {2, 4} <= set(losses), "a round compares losses"
    assert all(losses[point.step] == point.loss_nats_per_token for point in expected.validations)
    one, two = whole.weights(), paused.weights()
    assert set(one) == set(two)
    assert all(one[name].equal(two[name]) for name in one), "bit for bit"
    assert not (paused.store.train(paused.run.run_id) / "checkpoint").exists()


def test_a_run_that_is_far_enough_is_not_trained_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lora_run(2, 1e-3, 0, NUM_STEPS))
    first = bench.train(until=2)
    assert bench.train(until=2) == first
    whole = bench.train()
    assert bench.train(until=2) == whole


def test_a_run_that_is_stopped_on_its_way_to_a_round_vouches_for_no_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lora_run(2, 1e-3, 0, NUM_STEPS))
    bench.train(until=2)
    record = bench.train(until=5, stop_after=1)
    assert (record.status, record.num_steps) == ("interrupted", 3)
    assert not any(name.endswith(".safetensors") for name in record.files)
    assert bench.train(until=5).status == "paused"
