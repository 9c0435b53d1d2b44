"""The forecast before training: gradients against autograd, bits against a plain sum, and its record."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
import torch

from rankscope.analyse import forecast as stage
from rankscope.data.examples import Example, examples_frame
from rankscope.models.loading import Models
from rankscope.plan import Plan
from rankscope.runs import BaseSettings
from rankscope.store import Store, check_files
from tiny import VOCAB, examples, lora_run, save_tiny, tiny_llama


def test_the_gradient_is_that_of_the_mean_loss_over_scored_tokens() -> None:
    model, batch = tiny_llama(torch.float64), examples(6)
    matrices = stage.adapted_matrices(model)
    loss, found = stage.gradient(model, matrices, batch)
    for weight in matrices.values():
        assert weight.grad is None and not weight.requires_grad
    # An independent way: transformers' own loss on labels that hide the prompt, weighed by tokens.
    for weight in matrices.values():
        weight.requires_grad_(True)
    total = sum(example.num_scored_tokens for example in batch)
    expected = torch.zeros((), dtype=torch.float64)
    for example in batch:
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[0, : example.num_prompt_tokens] = -100
        expected = expected + model(input_ids=ids, labels=labels).loss * example.num_scored_tokens / total
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, weight in matrices.items():
        assert torch.allclose(found[name], weight.grad, rtol=1e-4, atol=1e-9), name


def test_all_linear_layers_but_the_head_are_asked() -> None:
    names = set(stage.adapted_matrices(tiny_llama(torch.float32)))
    assert len(names) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_bits_and_capacity_are_plain_sums() -> None:
    model, data = tiny_llama(torch.float32), examples(20)
    values, table = stage.forecast(model, data)
    num_scored = sum(len(example.input_ids) - example.num_prompt_tokens for example in data)
    assert values["num_scored_tokens"] == num_scored
    assert values["loss_nats_per_token"] == pytest.approx(math.log(VOCAB), rel=0.1), "random weights know nothing"
    assert values["bits_to_store"] == pytest.approx(values["loss_nats_per_token"] * num_scored / math.log(2))
    sizes = [weight.shape for weight in stage.adapted_matrices(model).values()]
    assert values["bits_per_rank"] == 2 * sum(sum(size) for size in sizes)
    assert values["capacity_rank"] == math.ceil(values["bits_to_store"] / values["bits_per_rank"])
    assert table.height == len(sizes)
    assert max(values["ranks_to_try"]) <= min(min(size) for size in sizes)


def test_it_is_recorded_once_and_made_anew_for_other_data(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")  # a base has one; nothing here is tokenised
    base = BaseSettings(name="tiny", source=str(folder), revision=None, fingerprint="f")
    run = lora_run(2, 1e-3, 0, 4).model_copy(update={"base": base})
    store = Store(tmp_path / "out")
    store.training_data("tiny", "set").mkdir(parents=True)
    frame = examples_frame(examples(24), [Example(f"e{index}", "", "") for index in range(24)], "train")
    frame.write_parquet(store.training_data("tiny", "set") / "examples.parquet")
    plan = Plan.model_construct(bases={"tiny": base}, relations={"set": {}}, runs=(run,))
    models = Models(store, "float32", "cpu")
    (first,) = stage.run(plan, store, models)
    check_files(store.forecast("tiny", "set"), first)
    assert (first.kind, first.status, first.num_examples) == ("forecast", "complete", 24)
    assert pl.read_parquet(store.forecast("tiny", "set") / "matrices.parquet").height == 14
    assert stage.run(plan, store, models) == [store.read_forecast("tiny", "set")]
    assert store.read_forecast("tiny", "set").started_at == first.started_at
    other = run.model_copy(update={"training_set": run.training_set.model_copy(update={"fingerprint": "other"})})
    (again,) = stage.run(plan.model_copy(update={"runs": (other,)}), store, models)
    assert again.settings_hash != first.settings_hash
