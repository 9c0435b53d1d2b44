"""The card: which base it names, and that no name of a person's is markup."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from rankscope.export.card import CardFacts, model_card
from rankscope.export.model import base_id
from rankscope.records import TrainRecord
from rankscope.runs import BaseSettings, DataOrigin
from synthetic import ARMS, Synthetic, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_study(tmp_path_factory.mktemp("card") / "study", arms=ARMS[:1])


def facts(study: Synthetic, base: BaseSettings, source: str = "org/data") -> CardFacts:
    run = next(one for one in study.plan.runs if study.store.read_train(one.run_id))
    training_set = run.training_set.model_copy(update={"data": DataOrigin(source=source)})
    run = run.model_copy(update={"base": base, "training_set": training_set})
    train: TrainRecord = study.store.read_train(next(iter(study.plan.runs)).run_id).model_copy(update={"run": run})
    identity, is_hub = base_id(run)
    return CardFacts(
        plan=study.plan, train=train, point=None, choice=None, verdict=None, comparisons=(), base_id=identity,
        is_hub_base=is_hub, has_tokenizer=False,
    )  # fmt: skip


def base(source: str, commit: str | None) -> BaseSettings:
    return BaseSettings(name="small", source=source, revision=None, fingerprint="f" * 64, commit=commit)


def test_a_base_of_the_hub_is_named_as_the_hub_wants_it(study: Synthetic) -> None:
    data = ModelCard(model_card(facts(study, base("org/small", "a" * 40)))).data.to_dict()
    assert data["base_model"] == "org/small" and data["library_name"] == "peft"
    assert "base_model:adapter:org/small" in data["tags"]


def test_a_folder_of_this_machine_is_not_told(study: Synthetic) -> None:
    text = model_card(facts(study, base("/home/me/secret/small", None)))
    assert ModelCard(text).data.base_model == "small"
    assert "/home/me" not in text
    assert "put its folder where the name stands" in text


def test_nor_is_the_folder_of_local_data(study: Synthetic) -> None:
    told = facts(study, base("org/small", "a" * 40))
    local = DataOrigin(source="/home/me/secret/ours.jsonl", split="train", sha256="c" * 64)
    training_set = told.train.run.training_set.model_copy(update={"data": local})
    run = told.train.run.model_copy(update={"training_set": training_set})
    text = model_card(replace(told, train=told.train.model_copy(update={"run": run})))
    assert "| `ours.jsonl` | `train` | `cccccccccccc` |" in text and "/home/me" not in text


def test_mixed_precision_is_said(study: Synthetic) -> None:
    told = facts(study, base("org/small", "a" * 40))
    assert "float32\n" in model_card(told)
    run = told.train.run
    run = run.model_copy(update={"optimization": run.optimization.model_copy(update={"bf16": True})})
    told = replace(told, train=told.train.model_copy(update={"run": run}))
    assert "float32, products in bfloat16" in model_card(told)


def test_markup_in_a_name_stays_text(study: Synthetic) -> None:
    text = model_card(facts(study, base("org/small", "a" * 40), "a|b ``` <script>`\nx"))
    (row,) = [line for line in text.splitlines() if "<script>" in line]
    assert row.startswith("| trained on | `new` | ```` a\\|b ``` <script>` x ```` |")
