"""Where options cannot stand behind one prompt, a person reads why: in plan, log, records and report."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import CONFIGS
from model_folders import write_tokenizer
from rankscope.cli import DONE, UNDECIDED, main
from rankscope.store import Store
from studies import plan_of, write_study

STUDY = """\
study: apart
model: {gemma: BASE}
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 8, validation: {fraction: 0.25}}
arms:
  - {method: lora, rank: 2, learning_rate: 1.0e-3}
  - {method: prompt_tuning, num_virtual_tokens: 2, learning_rate: 1.0e-3}
optimization: {max_steps: 2, batch_size: 4, max_length: 128}
seeds: [0]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 4, in_domain_for: [facts]}
analyse: {spectra: true, subspaces: false, attention: false, representations: false, neurons: false}
execute: {num_workers: 1, threads_per_worker: 1, measure: false}
"""
VIRTUAL = "prompt_tuning puts virtual tokens before every row"


def write_base(folder: Path, name: str) -> Path:
    """A tiny model of an architecture, with a tokenizer."""
    write_tokenizer(folder, pad_token=None)
    model_type, options = CONFIGS[name]
    config = AutoConfig.for_model(model_type, **{**options, "vocab_size": 400, "max_position_embeddings": 256})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "model_type"), [("gemma2", "gemma2"), ("gemma3", "gemma3_text")])
def test_an_architecture_whose_masks_were_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, model_type: str
) -> None:
    path = write_study(tmp_path, STUDY.replace("BASE", str(write_base(tmp_path / "base", name))))
    reason = f"option trees were not tried with {model_type}"
    warning = "base gemma: options are scored in separate rows, slower and with the same numbers"
    capsys.readouterr()
    assert main(["plan", str(path)]) == DONE
    assert f"warning: {warning}: {reason}\n" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["run", str(path), "--out", str(out)]) in (DONE, UNDECIDED)
    said = capsys.readouterr().out
    assert f"note: {warning}: {reason}\n" in said and said.count(reason) == 1
    ours = warning.replace("base gemma", "prompt_tuning of base gemma")
    assert said.count(f"{ours}: {VIRTUAL}\n") == 1, "what only the way shows is said once"
    store, plan = Store(out), plan_of(out)
    folders = {"base": store.base_task("gemma", "facts")} | {
        run.arm.label: store.task(run.run_id, "facts") for run in plan.runs
    }
    records = {label: store.read_evaluate(folder) for label, folder in folders.items()}
    assert {record.scored_by for record in records.values()} == {"separate_rows"}
    assert records["base"].note == records["lora-r2"].note == reason
    assert records["prompt_tuning"].note == VIRTUAL
    found = pl.read_csv(out / "report" / "tables" / "separate_rows.csv")
    assert found["arm"].to_list() == [None, "prompt_tuning"] and found["reason"][0] == reason
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert f">base gemma: {reason}.</li>" in page and f">prompt_tuning: {VIRTUAL}.</li>" in page


def test_nothing_is_said_where_options_stand_behind_one_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, STUDY.replace("BASE", "smallworld:base"))
    assert main(["plan", str(path)]) == DONE
    assert "separate rows" not in capsys.readouterr().out
