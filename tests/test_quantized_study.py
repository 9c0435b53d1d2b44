"""A study over a base in 4 bits, from its file to its report; and what cannot be done over few bits, refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED, USER_ERROR, main
from rankscope.outline import make_outline
from rankscope.plan import Plan
from rankscope.planning import make_plan
from rankscope.store import read_model
from rankscope.study_file import load_study
from studies import write_study

STUDY = """\
study: tiny
model: {source: smallworld:base, quantization_config: {load_in_4bit: true, bnb_4bit_quant_type: nf4}}
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 8, validation: {fraction: 0.25}}
arms:
  - {method: lora, rank: [2, 4], learning_rate: 1.0e-3}
  - {method: ia3, learning_rate: 1.0e-3}
optimization: {max_steps: 2, batch_size: 4, max_length: 64}
seeds: [0]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 4, in_domain_for: [facts]}
  problems: {source: smallworld:general_reasoning, split: test, max_examples: 2, scoring: generate, max_new_tokens: 4}
analyse: {spectra: true, subspaces: true, attention: true, representations: true, neurons: true, num_probe_texts: 2}
derive: {rewind: true, truncate: true, intruders: true}
execute: {num_workers: 1, threads_per_worker: 1, pack_size: 2, measure: false}
"""


LOFTQ = "  - {method: lora, rank: 2, init_lora_weights: loftq, learning_rate: 1.0e-3}\n"


def refused(folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str) -> str:
    assert old in STUDY
    out = folder / "out"
    assert main(["run", str(write_study(folder, STUDY.replace(old, new))), "--out", str(out)]) == USER_ERROR
    assert not out.exists()
    return capsys.readouterr().err


def test_a_study_over_four_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    text = STUDY.replace("optimization:", f"{LOFTQ}optimization:")
    out = tmp_path / "out"
    assert main(["run", str(write_study(tmp_path, text)), "--out", str(out)]) in (DONE, UNDECIDED)
    assert "failed" not in capsys.readouterr().out
    plan = read_model(out / "plan.json", Plan)
    assert plan.bases["smallworld-base"].opening.quantization_config.bits == 4
    records = {path: json.loads(path.read_text()) for path in out.glob("runs/*/**/record.json")}
    assert len(records) >= 4 * 7 and {record["status"] for record in records.values()} == {"complete"}
    spectra = [record for path, record in records.items() if path.parent.name == "spectra"]
    assert len(spectra) == 4
    assert all("the base is held in 4 bits (nf4)" in " ".join(record["notes"]) for record in spectra)
    assert len([path for path in records if "derive" in path.parts]) >= 8
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "held in 4 bits (nf4) by bitsandbytes" in page
    assert "its matrices are what these bits stand for" in page
    # LoftQ trains, is scored and looked into as the others are, and does not start where LoRA starts.
    paths = {path.parts[-3]: path for path in out.glob("runs/*/train/steps.jsonl")}
    first = {
        settings.arm.label: json.loads(paths[settings.run_id].read_text().splitlines()[0])["loss_nats_per_token"]
        for settings in plan.runs
    }
    assert first["lora-r2"] == pytest.approx(first["ia3"], abs=1e-5)
    assert abs(first["lora-r2-loftq"] - first["lora-r2"]) > 1e-4
    assert "lora-r2-loftq: the update began as what the bits had lost of each matrix" in page


def test_the_plan_counts_few_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, STUDY.replace("smallworld:base", "meta-llama/Llama-2-7b-hf"))
    few, _ = make_outline(load_study(path))
    study = load_study(path, ["model.quantization_config=null"])
    whole, _ = make_outline(study)
    saved = whole.estimate.memory_bytes - few.estimate.memory_bytes
    # 6,476,005,376 numbers inside the layers at 4 bytes, less half a byte and a float32 for 64 of them.
    matrices = 6_476_005_376
    assert saved == pytest.approx(matrices * (4 - 0.5 - 4 / 64), rel=1e-6)


def test_only_eight_bits_keep_runs_apart(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    plan, _ = make_plan(load_study(write_study(tmp_path, STUDY)))
    assert {run.packs for run in plan.runs if run.arm.method == "lora"} == {True}
    eight = STUDY.replace("load_in_4bit: true, bnb_4bit_quant_type: nf4", "load_in_8bit: true")
    plan, _ = make_plan(load_study(write_study(tmp_path, eight)))
    assert {run.packs for run in plan.runs} == {False}


def test_other_bits_are_another_model(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    path = write_study(tmp_path, STUDY)
    others = ([], ["model.quantization_config.bnb_4bit_quant_type=fp4"], ["model=smallworld:base"])
    plans = [make_plan(load_study(path, more))[0] for more in others]
    assert len({plan.runs[0].settings_hash for plan in plans}) == 3
    assert len({plan.bases["smallworld-base"].model_hash for plan in plans}) == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "method: ia3",
            "method: full",
            [":7: arm full, method", "in 4 bits (nf4): weights of 4 or 8 bits have no grad"],
        ),
        ("method: ia3", "method: boft", ["boft works on the base's weights"]),
        ("rank: [2, 4]", "rank: 2, init_lora_weights: pissa", [":6: ", "pissa takes a part out"]),
        ("rank: [2, 4]", "rank: 2, modules_to_save: [lm_head]", ["only what the packed layers have"]),
        ("nf4", "nf5", [":2: ", "bnb_4bit_quant_type", "nf4"]),
        ("load_in_4bit: true", "load_in_4bits: true", [":2: ", "did you mean 'load_in_4bit'"]),
        ("load_in_4bit: true", "load_in_4bit: true, load_in_8bit: true", ["one of the two"]),
        ("load_in_4bit: true", "load_in_8bit: true", ["'bnb_4bit_quant_type' is of no use in 8 bits"]),
        ("max_length: 64", "max_length: 64, dtype: float64", ["quantization_config: bitsandbytes knows no", "float64"]),
    ],
)
def test_what_does_not_go_with_few_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: list[str]
) -> None:
    message = refused(tmp_path, capsys, old, new)
    for word in words:
        assert word in message


def test_loftq_over_a_base_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = STUDY.replace("rank: [2, 4]", "rank: 2, init_lora_weights: loftq")
    path = write_study(tmp_path, text)
    assert main(["plan", str(path), "--set", "model.quantization_config=null"]) == USER_ERROR
    error = capsys.readouterr().err
    assert ":6: arm lora-r2-loftq" in error
    assert "loftq starts from what 4 bits lose" in error and "load_in_4bit: true" in error


def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused(tmp_path, capsys, "rank: [2, 4]", "rank: 2")
    assert (
        "study.yaml:2: model.smallworld-base.quantization_config: the package bitsandbytes is not installed" in message
    )
    assert "pip install 'rankscope[bitsandbytes]'" in message


def test_the_forecast_of_ranks_needs_gradients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(write_study(tmp_path, STUDY)), "--forecast"]) == USER_ERROR
    assert "what is in 4 or 8 bits has none" in capsys.readouterr().err
