"""What a run took: whole steps, and all calls of a run that was stopped."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest
import torch

from rankscope.data.examples import Example, examples_frame
from rankscope.data.order import batches
from rankscope.models.loading import Models
from rankscope.models.methods.making import make_trainable
from rankscope.plan import Pack, Plan
from rankscope.records import TrainRecord
from rankscope.runs import BaseSettings
from rankscope.store import Store
from rankscope.train import stage
from rankscope.train.loop import RunState, start_run, train
from tiny import examples, lora_run, save_tiny, tiny_llama

NUM_STEPS, SLEEP = 6, 0.05


class Slow:
    """Takes a while over every step, and asks to stop after some."""

    def __init__(self, stop_after: int) -> None:
        self.left = stop_after

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        time.sleep(SLEEP)
        self.left -= 1

    def after_step(self, state: RunState) -> None:
        self.left -= 1

    def wants_stop(self) -> bool:
        return self.left <= 0


def test_a_resumed_run_took_what_all_its_calls_took(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")  # a base has one; nothing here is tokenised
    base = BaseSettings(name="tiny", source=str(folder), revision=None, fingerprint="f")
    settings = lora_run(2, 1e-3, 0, NUM_STEPS).model_copy(update={"base": base})
    store = Store(tmp_path / "out")
    texts = [Example(f"e{index}", "", "") for index in range(24)]
    data = [examples_frame(examples(24), texts, split) for split in ("train", "validation")]
    store.training_data("tiny", "set").mkdir(parents=True)
    pl.concat(data).write_parquet(store.training_data("tiny", "set") / "examples.parquet")
    plan = Plan.model_construct(runs=(settings,), max_tokens_per_batch=10_000, checkpoint_seconds=60.0)
    models, pack = Models(store, "float32", "cpu"), Pack("train", "tiny", (settings.run_id,), ())

    def call(steps: int) -> TrainRecord:
        stage.run(pack, plan, store, models, Slow(steps))
        return store.read_train(settings.run_id)

    first, second = call(3), call(NUM_STEPS)
    assert (first.status, second.status) == ("interrupted", "complete")
    assert first.seconds > 3 * SLEEP
    assert second.seconds > first.seconds + 3 * SLEEP


def test_a_step_is_timed_with_its_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    run = lora_run(2, 1e-3, 0, 2)
    pack = make_trainable(tiny_llama(torch.float32), [run])
    state = start_run(pack, 0, examples(24), examples(4), batches(24, run.optimization.batch_size, 2, 0))
    monkeypatch.setattr(state.optimizer, "step", lambda: time.sleep(SLEEP))
    train(pack, [state], 10_000, Slow(2))
    assert all(log.seconds > SLEEP for log in state.logs)
