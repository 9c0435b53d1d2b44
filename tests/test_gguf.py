"""A GGUF file is a base like any other: converted once, with the numbers that it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model_folders import write_tokenizer
from rankscope.data.hub import model_folder
from rankscope.errors import UserError

WIDTH, HIDDEN, HEADS, LAYERS = 32, 64, 4, 2
pytestmark = pytest.mark.slow  # a process that imports transformers


def write_gguf(path: Path, kind: str = "F32") -> dict[str, np.ndarray]:
    """A Llama of random weights with a byte-level tokenizer, as llama.cpp writes one; its tensors as they are read."""
    gguf = pytest.importorskip("gguf", reason="the reader of GGUF files is not installed")
    tokenizer = json.loads((write_tokenizer(path.parent / "tokenizer") / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)
    square, wide = (WIDTH, WIDTH), (HIDDEN, WIDTH)
    shapes = {"token_embd": (len(vocabulary), WIDTH), "output": (len(vocabulary), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        parts = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square, "ffn_gate": wide}
        parts |= {"ffn_up": wide, "ffn_down": wide[::-1], "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    tensors = {f"{name}.weight": generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        held = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        blocks = gguf.quants.quantize(tensor, held)
        writer.add_tensor(name, blocks, raw_dtype=held)
        tensors[name] = gguf.quants.dequantize(blocks, held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_gguf_file_is_converted_once_with_its_own_numbers(tmp_path: Path, monkeypatch, capfd, kind: str) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    tensors = write_gguf(path, kind)
    folder = model_folder(str(path))
    assert folder.is_relative_to(tmp_path / "cache")
    assert "converting" in capfd.readouterr().err
    assert model_folder(str(path)) == folder
    assert "converting" not in capfd.readouterr().err
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    for ours, theirs in (("token_embd", "model.embed_tokens"), ("blk.1.ffn_down", "model.layers.1.mlp.down_proj")):
        assert torch.equal(state[f"{theirs}.weight"], torch.from_numpy(tensors[f"{ours}.weight"]))
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, direct(ids).logits)


def test_a_file_that_is_none_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "none.gguf"
    path.write_bytes(b"this is no model")
    with pytest.raises(UserError, match="cannot read this GGUF file") as caught:
        model_folder(str(path))
    assert str(path) in caught.value.message()
    assert not list((tmp_path / "cache" / "gguf").iterdir())
