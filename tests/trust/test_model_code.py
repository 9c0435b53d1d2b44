"""Python code of a model's folder is run by the study's word `trust_remote_code`, and not before or without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model_folders import write_tokenizer
from rankscope.cli import DONE, UNDECIDED, USER_ERROR, main
from rankscope.data.hub import fingerprint
from rankscope.models.loading import load_model
from rankscope.plan import Plan
from rankscope.runs import Opening
from rankscope.store import read_model
from studies import write_study

CODE = """\
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()


class OursConfig(LlamaConfig):
    model_type = "ours"


class OursModel(LlamaForCausalLM):
    config_class = OursConfig

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = 2.0 * output.logits
        return output
"""
STUDY = """\
study: tiny
model: {source: FOLDER, trust_remote_code: WORD}
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 8, validation: {fraction: 0.25}}
arms:
  - {method: full, learning_rate: 1.0e-3}
  - {method: lora, rank: 2, learning_rate: 1.0e-3, target_modules: all-linear}
optimization: {max_steps: 2, batch_size: 4, max_length: 64}
seeds: [0]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 4, in_domain_for: [facts]}
analyse: {spectra: true, attention: false, representations: false, neurons: false, subspaces: false}
execute: {num_workers: 1, threads_per_worker: 1, measure: false}
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that exists when the model's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path, mark: Path) -> Path:
    """A Llama whose folder has a class of its own, which doubles the logits."""
    folder = write_tokenizer(tmp_path / "model")
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "modeling_ours.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    classes = {"AutoConfig": "modeling_ours.OursConfig", "AutoModelForCausalLM": "modeling_ours.OursModel"}
    change(folder, model_type="ours", architectures=["OursModel"], auto_map=classes)
    return folder


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def study(folder: Path, word: str) -> Path:
    return write_study(folder.parent, STUDY.replace("FOLDER", str(folder)).replace("WORD", word))


def test_it_is_refused_without_the_word_and_nothing_has_run(
    folder: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "out"
    for verb in (["plan"], ["run", "--out", str(out)]):
        assert main([verb[0], str(study(folder, "false")), *verb[1:]]) == USER_ERROR
        error = capsys.readouterr().err
        assert "study.yaml:2: " in error and "only Python code of its own (modeling_ours.py) can load it" in error
        assert "say `trust_remote_code: true` beside `source:` of model.model" in error
    assert not mark.exists() and not out.exists()


def test_with_the_word_it_is_loaded_trained_scored_and_recorded(
    folder: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "out"
    assert main(["plan", str(study(folder, "true"))]) == DONE
    assert "Python code of its folder is run (modeling_ours.py)" in capsys.readouterr().out
    assert not mark.exists()  # planning needs no code
    assert main(["run", str(study(folder, "true")), "--out", str(out)]) in (DONE, UNDECIDED)
    assert mark.exists()
    assert "base model: Python code of its folder is run" in " ".join(capsys.readouterr().out.split())
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "Python code of its folder was run (trust_remote_code)" in page
    assert "Python code of its folder is run (modeling_ours.py)" in page
    plan = read_model(out / "plan.json", Plan)
    assert plan.bases["model"].opening.trust_remote_code
    assert all(json.loads(path.read_text())["base"]["opening"]["trust_remote_code"]
               for path in out.glob("runs/*/run.json"))  # fmt: skip
    spectra = [json.loads(path.read_text()) for path in out.glob("runs/*/analyse/spectra/record.json")]
    assert len(spectra) == 2 and all(record["status"] == "complete" for record in spectra)


def test_the_code_is_what_computes(folder: Path) -> None:
    ids = torch.tensor([[3, 4, 5]])
    trusted = load_model(folder, torch.float32, "cpu", Opening(trust_remote_code=True))
    change(folder, model_type="llama", auto_map={})
    plain = load_model(folder, torch.float32, "cpu")
    torch.testing.assert_close(trusted(input_ids=ids).logits, 2.0 * plain(input_ids=ids).logits)


def test_a_known_architecture_with_code_is_loaded_without_it_and_that_is_said(
    folder: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, model_type="llama")
    assert main(["plan", str(study(folder, "false"))]) == DONE
    text = capsys.readouterr().out
    assert "(modeling_ours.py) is not run; transformers' own class is loaded instead" in text
    load_model(folder, torch.float32, "cpu")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("auto_map", "words"),
    [
        ({"AutoModelForCausalLM": "org/other--modeling.Model"}, "lies in another repository (org/other)"),
        ({"AutoModelForCausalLM": "org/repo.v2--modeling.Model"}, "lies in another repository (org/repo.v2)"),
        ({"AutoConfig": "inner/modeling.Config"}, "'inner/modeling.Config', which is not directly in the folder"),
        ({"AutoModelForCausalLM": "modeling_gone.Model"}, "modeling_gone.py, which is not there"),
    ],
)
def test_code_that_is_not_in_the_folder_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], auto_map: dict, words: str
) -> None:
    change(folder, auto_map=auto_map)
    for name in ("org/repo.py", "inner/modeling.py"):  # what a name cut at its first dot, or with a folder, would find
        (folder / name).parent.mkdir()
        (folder / name).touch()
    assert main(["plan", str(study(folder, "true"))]) == USER_ERROR
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["ours", "llama"])
def test_code_that_would_write_the_answers_is_refused(
    folder: Path, mark: Path, capsys: pytest.CaptureFixture[str], model_type: str
) -> None:
    if model_type == "llama":
        change(folder, model_type="llama", auto_map={})
    (folder / "custom_generate").mkdir()
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef generate(model, **kwargs): ...\n"
    (folder / "custom_generate" / "generate.py").write_text(code, encoding="utf-8")
    assert main(["plan", str(study(folder, "true"))]) == USER_ERROR
    error = capsys.readouterr().err
    assert "custom_generate would be run" in error and "copy the model into a folder without custom_generate" in error
    assert not mark.exists()
    if model_type == "llama":  # without the word transformers passes it by, and so does the plan
        assert main(["plan", str(study(folder, "false"))]) == DONE
        load_model(folder, torch.float32, "cpu")
        assert not mark.exists()


def test_changed_code_is_another_model(folder: Path) -> None:
    before = fingerprint(folder), fingerprint(folder, with_code=True)
    with (folder / "modeling_ours.py").open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    changed = fingerprint(folder, with_code=True)
    assert fingerprint(folder) == before[0] and changed != before[1]
    (folder / "inner").mkdir()
    (folder / "inner" / "part.py").touch()
    assert fingerprint(folder) == before[0] and fingerprint(folder, with_code=True) not in (changed, before[1])
