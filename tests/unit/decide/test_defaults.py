"""The recommended arm as files for other programs, read back by those programs' own code."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, PeftConfig
from transformers import TrainingArguments

from rankscope.decide import stage
from rankscope.decide.defaults import ADAPTER_CONFIG, AXOLOTL, LLAMA_FACTORY, TRL, default_files
from rankscope.decide.rates import update_rates
from rankscope.report import stage as report
from rankscope.runs import ArmSettings, RunSettings
from rankscope.store import check_files
from synthetic import write_study
from tiny import full_run, lora_run


def run_of(method: str, **options: Any) -> RunSettings:
    return lora_run(2, 1e-5, 3, 20).model_copy(
        update={"arm": ArmSettings(label=method, method=method, options=options), "learning_rate": 1e-5}
    )


def lora(**options: Any) -> RunSettings:
    usual = {"r": 16, "lora_alpha": 32.0, "lora_dropout": 0.1, "use_rslora": True, "target_modules": "all-linear"}
    return run_of("lora", **{**usual, **options})


def sft_arguments(text: str) -> dict[str, Any]:
    """The arguments that the snippet gives SFTConfig, read without running it."""
    (call,) = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.keywords]
    assert call.func.id == "SFTConfig"
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def test_peft_loads_the_configuration_and_it_equals_the_arm(tmp_path: Path) -> None:
    run = lora(target_modules=["q_proj", "v_proj"], use_dora=True, rank_pattern={"q_proj": 4}, init_lora_weights=True)
    (tmp_path / ADAPTER_CONFIG).write_text(default_files(run)[ADAPTER_CONFIG])
    found = PeftConfig.from_pretrained(str(tmp_path))
    expected = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path="tiny", **run.arm.options)
    assert isinstance(found, LoraConfig)
    assert found.to_dict() == expected.to_dict()
    assert LoraConfig.from_pretrained(str(tmp_path)).to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("method", "options"),
    [("ia3", {}), ("vera", {"r": 8, "target_modules": "all-linear"}), ("prefix_tuning", {"num_virtual_tokens": 20})],
)
def test_the_other_methods_have_peft_s_file_and_trl_s(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    files = default_files(run_of(method, **options))
    assert set(files) == {ADAPTER_CONFIG, TRL}
    (tmp_path / ADAPTER_CONFIG).write_text(files[ADAPTER_CONFIG])
    found = PeftConfig.from_pretrained(str(tmp_path))
    assert found.peft_type.value.lower() == method
    assert all(getattr(found, name) == value for name, value in options.items())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of transformers, about TRL
def test_trl_takes_the_snippet_s_arguments(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")  # installed for comparisons only
    arguments = sft_arguments(default_files(lora())[TRL])
    config = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **arguments)
    assert config.learning_rate == 1e-5
    assert config.max_length == lora().optimization.max_length
    assert config.completion_only_loss is True


def test_the_snippet_s_arguments_are_those_of_the_run(tmp_path: Path) -> None:
    for run in (lora(), full_run(1e-3, 5, 20, warmup_ratio=0.2, lr_scheduler="linear", max_grad_norm=0.5)):
        arguments = sft_arguments(default_files(run)[TRL])
        own = {"max_length", "completion_only_loss"}  # of SFTConfig; the rest are the Trainer's
        config = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], **{k: v for k, v in arguments.items() if k not in own}
        )
        for name in ("weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"):
            assert getattr(config, name) == getattr(run.optimization, name)
        assert config.lr_scheduler_type.value == run.optimization.lr_scheduler
        assert (config.learning_rate, config.warmup_steps, config.seed) == (run.learning_rate, 4, run.seed)
        assert config.num_train_epochs == run.optimization.num_epochs


def test_steps_outrank_epochs_everywhere() -> None:
    run = lora()
    run = run.model_copy(update={"optimization": run.optimization.model_copy(update={"max_steps": 20})})
    files = default_files(run)
    for name in (AXOLOTL, LLAMA_FACTORY):
        keys = yaml.safe_load(files[name])
        assert keys["max_steps"] == 20 and not {"num_epochs", "num_train_epochs"} & set(keys)
    assert sft_arguments(files[TRL])["max_steps"] == 20


def test_yaml_has_numbers_where_numbers_are_meant() -> None:
    for name in (AXOLOTL, LLAMA_FACTORY):
        keys = yaml.safe_load(default_files(lora())[name])
        assert keys["learning_rate"] == 1e-5, "YAML 1.1 reads 1e-05 as a text"
        assert keys["adam_epsilon"] == 1e-8


def test_axolotl_and_llama_factory_have_the_arm_in_their_words() -> None:
    files = default_files(lora(use_dora=False))
    axolotl, factory = yaml.safe_load(files[AXOLOTL]), yaml.safe_load(files[LLAMA_FACTORY])
    found = [axolotl[key] for key in ("adapter", "lora_r", "lora_alpha", "lora_dropout")]
    assert found == ["lora", 16, 32, 0.1]
    assert axolotl["peft_use_rslora"] is True and axolotl["lora_target_linear"] is True
    assert (factory["finetuning_type"], factory["lora_rank"], factory["lora_target"]) == ("lora", 16, "all")
    named = default_files(lora(target_modules=["q_proj", "v_proj"]))
    assert yaml.safe_load(named[AXOLOTL])["lora_target_modules"] == ["q_proj", "v_proj"]
    assert yaml.safe_load(named[LLAMA_FACTORY])["lora_target"] == "q_proj,v_proj"


def test_a_program_without_a_word_for_an_option_has_no_file() -> None:
    assert set(default_files(lora(init_lora_weights="pissa"))) == {ADAPTER_CONFIG, TRL}
    assert set(default_files(lora(target_modules=r".*\.q_proj"))) == {ADAPTER_CONFIG, TRL}
    assert set(default_files(run_of("bottleneck", placement="houlsby"))) == set()


def test_lora_plus_is_the_optimizer_s_and_said_so() -> None:
    files = default_files(lora(loraplus_lr_ratio=16.0))
    assert "loraplus_lr_ratio" not in json.loads(files[ADAPTER_CONFIG])
    assert "have 16 times the rate" in files[TRL]
    assert yaml.safe_load(files[AXOLOTL])["loraplus_lr_ratio"] == 16


def test_full_fine_tuning_has_no_adapter() -> None:
    files = default_files(full_run(1e-3, 0, 20))
    assert set(files) == {TRL, AXOLOTL, LLAMA_FACTORY}
    assert "adapter" not in yaml.safe_load(files[AXOLOTL])
    assert yaml.safe_load(files[LLAMA_FACTORY])["finetuning_type"] == "full"
    assert "peft" not in files[TRL]


def test_decide_writes_them_and_the_report_links_them(tmp_path: Path) -> None:
    made = write_study(tmp_path, decide={"forgetting_budget": 0.06, "margin": 0.08})
    update_rates(made.store, made.plan)
    record = stage.run(made.store, made.study, made.plan)
    (verdict,) = record.verdicts
    assert verdict.arm == "lora-r16"
    assert [name.rsplit("/", 1)[-1] for name in verdict.defaults] == [ADAPTER_CONFIG, TRL, AXOLOTL, LLAMA_FACTORY]
    check_files(made.store.decide, record)
    config = LoraConfig.from_pretrained(str(made.store.decide / "defaults" / "small" / "new"))
    assert (config.r, config.lora_alpha) == (16, 32)
    page = report.run(made.store)
    for name in verdict.defaults:
        link = f"../decide/{name}"
        assert f'href="{link}"' in page.read_text() and (page.parent / link).is_file()


def test_what_is_no_longer_recommended_leaves_nothing_behind(tmp_path: Path) -> None:
    made = write_study(tmp_path, decide={"forgetting_budget": 0.06, "margin": 0.08})
    update_rates(made.store, made.plan)
    stage.run(made.store, made.study, made.plan)
    strict = made.study.model_copy(update={"decide": made.study.decide.model_copy(update={"forgetting_budget": 0.006})})
    (verdict,) = stage.run(made.store, strict, made.plan).verdicts
    assert (verdict.decision, verdict.defaults) == ("undecided", ())
    assert not (made.store.decide / "defaults").exists()
