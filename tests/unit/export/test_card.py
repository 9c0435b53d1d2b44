"""The card: which base it names, and that no name of a person's is markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from rankscope.data.contamination import Overlap
from rankscope.data.summaries import DataSummary
from rankscope.export.card import CardFacts, model_card
from rankscope.export.model import base_id
from rankscope.models.loading import load_model
from rankscope.models.methods.making import make_trainable
from rankscope.models.methods.pack import ADAPTER
from rankscope.quantization import QuantizationConfig
from rankscope.records import TrainRecord
from rankscope.runs import BaseSettings, DataOrigin, HarnessSettings, Opening
from synthetic import ARMS, Synthetic, write_study
from tiny import lora_run, method_run, tiny_llama


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


def with_sample(study: Synthetic, prompt: str, trained: str) -> str:
    told = facts(study, base("org/small", "a" * 40))
    summary = DataSummary(
        base="small", name="new", role="train", source="new.jsonl", form="question_answer", num_rows=1, num_used=1,
        num_duplicates=0, num_truncated=0, num_tokens=9, num_scored_tokens=3, longest_tokens=9, sample_prompt=prompt,
        sample_trained=trained,
    )  # fmt: skip
    others = [summary.model_copy(update=other) for other in ({"role": "validation"}, {"base": "b"}, {"name": "n"})]
    others = [other.model_copy(update={"sample_prompt": "ANOTHER"}) for other in others]
    return model_card(replace(told, plan=told.plan.model_copy(update={"data": (*others, summary)})))


def test_the_form_of_prompts_is_shown_as_it_was_trained_on(study: Synthetic) -> None:
    text = with_sample(study, "<s>Question: 1 + 1?\nAnswer:", " 2</s>")
    assert "```text\n<s>Question: 1 + 1?\nAnswer:\n```\n" in text and "go on with\n\n```text\n 2</s>\n```\n" in text
    assert "ANOTHER" not in text
    assert "all of it is learned.\n\n```text\nOnce upon\n```\n" in with_sample(study, "", "Once upon")
    assert "does not say it" in model_card(facts(study, base("org/small", "a" * 40)))


def test_a_prompt_with_fences_stays_one_block_and_a_long_one_is_cut_in_its_middle(study: Synthetic) -> None:
    text = with_sample(study, "````\n# no heading\n````\nAnswer:", "x" * 9000 + "END")
    assert "\n`````text\n````\n# no heading\n````\nAnswer:\n`````\n" in text
    assert "xxx [...] xxx" in text and "xEND\n```" in text and len(text) < 7000


def test_what_is_in_the_training_data_is_said_once_and_of_validation_rows_apart(study: Synthetic) -> None:
    common = {"base": "small", "training_set": "new", "task": "legal", "num_items": 40}
    overlaps = (
        Overlap(**common, part="train", num_exact=3, num_ngram=5),
        Overlap(**common, part="validation", num_exact=1, num_ngram=0),
        Overlap(**{**common, "base": "another"}, part="train", num_exact=39, num_ngram=0),
    )
    made = facts(study, base("org/model", "a" * 40))
    card = model_card(replace(made, plan=made.plan.model_copy(update={"overlaps": overlaps})))
    assert "evaluate.legal: 3 of 40 items are in train.new too, 5 share 13 words in a row with it" in card
    assert "1 of 40 items are in the validation rows of train.new" in card and "39" not in card.split("---")[-1]


def test_a_task_of_lm_eval_has_its_name_and_version_for_a_source(study: Synthetic) -> None:
    told = facts(study, base("org/small", "a" * 40))
    harness = HarnessSettings(
        task="arc_easy", include_path="/home/me/secret", sha256=None, num_fewshot=0, apply_chat_template=False,
        limit=None, version="0.4.9",
    )  # fmt: skip
    tasks = {name: task.model_copy(update={"harness": harness}) for name, task in told.plan.tasks["small"].items()}
    text = model_card(replace(told, plan=told.plan.model_copy(update={"tasks": {"small": tasks}})))
    assert "| in domain | `taught` | `lm_eval arc_easy` |  | `lm_eval 0.4.9` |" in text and "/home/me" not in text


def test_the_base_is_loaded_at_the_commit_and_in_the_precision_that_were_measured(study: Synthetic) -> None:
    text = model_card(facts(study, base("org/small", "a" * 40)))
    assert f'from_pretrained("org/small", revision="{"a" * 40}", dtype="float32")' in text


BITS = [
    None,
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    {"load_in_8bit": True, "llm_int8_skip_modules": ("lm_head", "up_proj")},
]


@pytest.mark.parametrize("bits", BITS, ids=["whole", "4 bits", "8 bits"])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_the_lines_of_a_card_load_the_model_that_was_measured(
    study: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, bits: dict | None
) -> None:
    if bits:
        pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    tiny_llama(torch.bfloat16).save_pretrained(tmp_path / "small")  # not the precision that it is opened in
    opening = Opening(quantization_config=QuantizationConfig(**bits) if bits else None)
    told = facts(study, base("small", None).model_copy(update={"opening": opening}))
    run = lora_run(4, 1e-2, 0, 4) if method == "lora" else method_run(method, 1e-2, 0, 4)
    run = told.train.run.model_copy(update={"arm": run.arm})
    pack = make_trainable(load_model(tmp_path / "small", torch.float32, "cpu", opening), [run])
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), torch.random.fork_rng():
        for tensor in pack.state(0).values():
            tensor.normal_(std=0.2)
        pack.route((0,), (1,), is_training=False)
        measured = pack.model(ids).logits
    pack.save(0, tmp_path)
    (tmp_path / ADAPTER / "small").symlink_to(tmp_path / "small")
    monkeypatch.chdir(tmp_path / ADAPTER)
    text = model_card(replace(told, train=told.train.model_copy(update={"run": run})))
    # With AVX512-BF16 bitsandbytes would multiply in bfloat16, and not at all matrices as narrow as these.
    if bits:
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    named: dict = {}
    exec(text.partition("```python\n")[2].partition("```")[0], named)
    with torch.no_grad():
        torch.testing.assert_close(named["model"](ids).logits, measured, rtol=0, atol=1e-5)
