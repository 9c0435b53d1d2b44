"""A study of two bases: each with its own data, scores and verdict, and named wherever it could be the other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED, main
from studies import write_study

STUDY = """\
study: two
model:
  one: smallworld:base
  other: {source: smallworld:plain}
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 16, validation: {fraction: 0.25}}
arms:
  - {method: lora, rank: 2, learning_rate: [1.0e-3, 3.0e-3]}
optimization: {max_steps: 2, batch_size: 4, max_length: 64}
seeds: [0, 1]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 8, in_domain_for: [facts]}
  recall: {source: smallworld:general_recall, max_examples: 8, role: retention}
analyse: {spectra: true, attention: false, representations: false, neurons: false, subspaces: false}
execute: {num_workers: 1, threads_per_worker: 1, measure: false}
"""


def test_two_bases_have_a_verdict_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_study(tmp_path, STUDY), tmp_path / "out"
    assert main(["plan", str(path)]) == DONE
    planned = capsys.readouterr().out
    assert "base one: smallworld:base" in planned and "base other: smallworld:plain" in planned
    first, second = (planned.index(f"as base {name} reads them:") for name in ("one", "other"))
    assert first < planned.index("train facts") < second < planned.rindex("train facts")
    assert main(["run", str(path), "--out", str(out)]) in (DONE, UNDECIDED)
    shown = capsys.readouterr().out
    assert "trained on facts, base one" in shown and "trained on facts, base other" in shown
    verdicts = json.loads((out / "decide" / "record.json").read_text(encoding="utf-8"))["verdicts"]
    assert [(verdict["base"], verdict["training_set"]) for verdict in verdicts] == [
        ("one", "facts"),
        ("other", "facts"),
    ]
    losses = {  # the same seed, rate and data over two bases are not the same numbers
        json.loads(file.read_text(encoding="utf-8"))["final_loss_nats_per_token"]
        for file in out.glob("runs/*-lr0.001-seed0-*/train/record.json")
    }
    assert len(losses) == 2
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "1 arm on 1 training set, 2 seeds, bases one, other." in text
    assert "Trained on facts on one" in text and "Trained on facts on other" in text


def test_a_single_base_needs_no_heading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, STUDY.replace("  other: {source: smallworld:plain}\n", ""))
    assert main(["plan", str(path)]) == DONE
    assert "reads them" not in capsys.readouterr().out
