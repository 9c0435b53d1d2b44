"""A model that cannot serve as a base is refused by one message, with file or key and the mend; nothing is started."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM, T5Config

from dozen import CONFIGS, make_model
from model_folders import write_tokenizer
from rankscope.cli import DONE, SOME_FAILED, UNDECIDED, USER_ERROR, main
from rankscope.data.architectures import check_architecture
from rankscope.data.shapes import tensor_shapes
from rankscope.errors import UserError
from rankscope.status import study_status
from rankscope.store import Store
from studies import run, write_study

STUDY = """\
study: tiny
model: MODEL
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 8, validation: {fraction: 0.25}}
arms:
  - {method: lora, rank: 2, learning_rate: 1.0e-3}
optimization: {max_steps: 2, batch_size: 4, max_length: 64}
seeds: [0]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 4, in_domain_for: [facts]}
  problems: {source: smallworld:general_reasoning, split: test, max_examples: 2, scoring: generate, max_new_tokens: 4}
execute: {num_workers: 1, threads_per_worker: 1, measure: false}
"""


def write_base(folder: Path, vocab: int = 400, **tokenizer: object) -> Path:
    """A tiny Llama with its tokenizer."""
    write_tokenizer(folder, **tokenizer)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def refused(folder: Path, capsys: pytest.CaptureFixture[str], model: object) -> str:
    out = folder / "out"
    path = write_study(folder, STUDY.replace("MODEL", str(model)))
    capsys.readouterr()  # transformers' own lines, of writing the model
    assert main(["run", str(path), "--out", str(out)]) == USER_ERROR
    assert not out.exists()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("rankscope: ") and "  mend: " in captured.err
    assert "study.yaml:2: model." in captured.err
    return captured.err


def changed(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return folder


def test_a_base_without_a_pad_token_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, STUDY.replace("MODEL", str(write_base(tmp_path / "base", pad_token=None))))
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) in (DONE, UNDECIDED)
    assert "failed" not in capsys.readouterr().out


def test_a_base_without_an_end_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(tmp_path, capsys, write_base(tmp_path / "base", eos_token=None))
    assert "tokenizer_config.json: the tokenizer has no token that ends a text" in error and "eos_token" in error


def test_a_folder_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "*.safetensors missing" in refused(tmp_path, capsys, write_tokenizer(tmp_path / "base"))


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("t5", "model_type 't5' is no causal language model"),
        ("grokking", "model_type 'grokking' is no causal language model"),
        (None, "names no model_type"),
    ],
)
def test_a_foreign_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str | None, words: str
) -> None:
    base = changed(write_base(tmp_path / "base"), model_type=model_type)
    error = refused(tmp_path, capsys, base)
    assert f"{base / 'config.json'}: " in error and words in error


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is an encoder, which sees what comes later"),
        ({"model_type": "roberta", "is_decoder": False}, "model_type 'roberta' is an encoder"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "model_type 'bart' is an encoder-decoder"),
    ],
    ids=["bert", "roberta", "bart"],
)
def test_an_encoder_that_transformers_loads_as_a_causal_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict, words: str
) -> None:
    base = changed(write_base(tmp_path / "base"), **values)
    error = refused(tmp_path, capsys, base)
    assert f"{base / 'config.json'}: {words}" in error and "and no causal language model" in error


def test_an_encoder_made_a_decoder_is_one(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    check_architecture(tmp_path, "base", trust_remote_code=False)


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "opt", "phi3", "falcon", "bloom"])
def test_a_configuration_over_another_architecture_s_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str
) -> None:
    base = changed(write_base(tmp_path / "base"), model_type=model_type)
    error = refused(tmp_path, capsys, base)
    assert f"matrices in the files have names that no '{model_type}' has, such as " in error
    assert f"{base / 'config.json'}: " in error
    assert "is config.json of this model?" in error


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, and the weights in the files are of 2"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and the weights in the files are of 2"),
        ({"hidden_size": 16}, "hidden_size is 16, and the weights in the files are of 32"),
    ],
    ids=["fewer", "more", "width"],
)
def test_a_configuration_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict, words: str
) -> None:
    """Of more layers than it names transformers reads the first, and says so in a warning: half a model was studied."""
    base = changed(write_base(tmp_path / "base"), **values)
    error = refused(tmp_path, capsys, base)
    assert f"{base / 'config.json'}: {words}" in error and "is config.json of this model?" in error


def test_what_shows_only_when_the_model_is_loaded_stops_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = changed(write_base(tmp_path / "base"), num_key_value_heads=4)
    path, out = write_study(tmp_path, STUDY.replace("MODEL", str(base))), tmp_path / "out"
    assert main(["run", str(path), "--out", str(out)]) == SOME_FAILED
    error = capsys.readouterr().err
    assert f"stopped: base base ({base}): " in error and "k_proj.weight (16, 32) for (32, 32)" in error
    assert "is config.json of this model?" in error
    assert not list(out.glob("runs/*/*/record.json")) and not (out / "report").exists()


@pytest.mark.slow
def test_of_several_bases_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = changed(write_base(tmp_path / "bad"), num_key_value_heads=4), write_base(tmp_path / "good")
    path = write_study(tmp_path, STUDY.replace("model: MODEL", f"model: {{bad: {bad}, good: {good}}}"))
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == SOME_FAILED
    assert "stopped" not in capsys.readouterr().err
    state = study_status(Store(tmp_path / "out"))
    assert {row["base"]: row["state"] for row in state["runs"]} == {"bad": "failed", "good": "done"}


@pytest.mark.parametrize(("num_layers", "is_right"), [(2, True), (3, True), (4, False)])
def test_layers_that_predict_further_tokens_may_be_there(tmp_path: Path, num_layers: int, is_right: bool) -> None:
    config = {"model_type": "deepseek_v3", "hidden_size": 2, "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [f"model.layers.{number}.self_attn.o_proj.weight" for number in range(num_layers)]
    tensors = {name: torch.ones(2, 2) for name in ("model.embed_tokens.weight", *names)}
    save_file(tensors, tmp_path / "model.safetensors")
    with contextlib.nullcontext() if is_right else pytest.raises(UserError, match="num_hidden_layers is 2"):
        check_architecture(tmp_path, "base", trust_remote_code=False)


def test_the_same_model_in_its_authors_own_names_may_lie_beside_it(tmp_path: Path) -> None:
    """As Mistral publishes its models: shards for transformers, and one file for its own program."""
    make_model("mistral-window").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_file({f"layers.{n}.wq.weight": torch.ones(2, 2) for n in range(99)}, tmp_path / "consolidated.safetensors")
    check_architecture(tmp_path, "base", trust_remote_code=False)
    assert set(tensor_shapes(tmp_path)) == set(tensors), "and nothing is counted twice"


def test_a_shard_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "the shard model-00002-of-00002.safetensors is missing" in refused(tmp_path, capsys, base)


def test_experts_have_names_of_their_own_in_the_files(tmp_path: Path) -> None:
    config = {"model_type": "phimoe"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [f"model.layers.0.block_sparse_moe.experts.{n}.w{part}.weight" for n in range(16) for part in (1, 2, 3)]
    names += [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "model.safetensors")
    check_architecture(tmp_path, "base", trust_remote_code=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_a_configuration_s_own_class_are_its_own(tmp_path: Path, name: str) -> None:
    make_model(name).save_pretrained(tmp_path)
    check_architecture(tmp_path, "base", trust_remote_code=False)


def test_a_whole_model_that_generates_in_another_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    T5Config().save_pretrained(base)
    assert "'t5' is no causal language model" in refused(tmp_path, capsys, base)


def test_a_configuration_that_is_no_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    (base / "config.json").write_text("{", encoding="utf-8")
    assert "config.json: not valid JSON" in refused(tmp_path, capsys, base)


def test_quantised_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = changed(write_base(tmp_path / "base"), quantization_config={"quant_method": "gptq"})
    assert "weights are quantised" in refused(tmp_path, capsys, base)


@pytest.mark.parametrize(("share", "words"), [(0.5, "is cut short"), (0.0, "is no safetensors file")])
def test_a_file_that_was_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, words: str
) -> None:
    path = write_base(tmp_path / "base") / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: max(5, int(share * len(content)))])
    assert f"{path}: {words}" in refused(tmp_path, capsys, path.parent)


def test_a_tokenizer_of_more_tokens_than_the_model_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(tmp_path, capsys, write_base(tmp_path / "base", vocab=100))
    assert "tokenizer.json: the tokenizer gives token" in error and "embeddings of 100 tokens" in error


@pytest.mark.parametrize("has_model", [False, True])
def test_an_adapter_as_base(tmp_path: Path, capsys: pytest.CaptureFixture[str], has_model: bool) -> None:
    folder = write_base(tmp_path / "base") if has_model else write_tokenizer(tmp_path / "base")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}', encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    error = refused(tmp_path, capsys, folder)
    assert "a model and an adapter" in error if has_model else "holds an adapter, not a model" in error
    assert "merge_and_unload" in error


def test_a_revision_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(tmp_path, capsys, f"{{source: {write_base(tmp_path / 'base')}, revision: v2}}")
    assert "study.yaml:2: model.base.revision: " in error and "there are no revisions" in error


class Hub(BaseHTTPRequestHandler):
    """A hub that has the repository org/name, and of it none but the branch main."""

    def do_GET(self) -> None:
        """Answer as the hub answers."""
        self.send_response(404)
        code = "RevisionNotFound" if "/org/name/" in self.path else "RepoNotFound"
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which a process asks a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", ["v2", "0123456789" * 4])
def test_a_revision_that_the_hub_does_not_have(tmp_path: Path, hub: dict[str, str], revision: str) -> None:
    path = write_study(tmp_path, STUDY.replace("MODEL", f"{{source: org/name, revision: '{revision}'}}"))
    done = run(path, tmp_path / "out", environment=hub)
    assert (done.returncode, done.stdout) == (USER_ERROR, "") and not (tmp_path / "out").exists()
    assert done.stderr == (
        f"rankscope: {path}:2: model.name.revision: the hub's 'org/name' has no revision '{revision}'\n"
        "  mend: name one of its branches, tags or commits, or leave revision out\n"
    )


def test_a_model_that_the_hub_does_not_have(tmp_path: Path, hub: dict[str, str]) -> None:
    done = run(write_study(tmp_path, STUDY.replace("MODEL", "org/nmae")), tmp_path / "out", environment=hub)
    assert (done.returncode, done.stdout) == (USER_ERROR, "") and not (tmp_path / "out").exists()
    assert "study.yaml:2: model.nmae: the model 'org/nmae' cannot be had from the hub (Repository" in done.stderr
    assert "  mend: check id and network" in done.stderr and "Traceback" not in done.stderr


def test_a_revision_that_the_cache_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, with another commit of the same model in the cache."""
    cached, commit = tmp_path / "hub" / "models--org--name", "a" * 40
    write_base(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    error = refused(tmp_path, capsys, "{source: org/name, revision: v2}")
    assert "model.name: the model 'org/name' at revision 'v2' cannot be had from the hub (LocalEntryNotFound" in error
    assert "check id, revision and network (HF_HUB_OFFLINE" in error
