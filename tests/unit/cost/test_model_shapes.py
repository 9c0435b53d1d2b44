"""The table of models: sizes as published, and as transformers builds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rankscope.cost.model_shapes import known_model, known_models, shape_of_entry, shape_of_folder

TYPES = {
    "meta-llama/Llama-3.2-1B": "llama",
    "Qwen/Qwen2.5-0.5B": "qwen2",
    "Qwen/Qwen3-0.6B": "qwen3",
    "mistralai/Mistral-7B-v0.1": "mistral",
    "google/gemma-2-2b": "gemma2",
    "google/gemma-3-1b-it": "gemma3_text",
    "microsoft/Phi-3-mini-4k-instruct": "phi3",
    "HuggingFaceTB/SmolLM2-135M": "llama",
    "gpt2": "gpt2",
    "EleutherAI/pythia-160m": "gpt_neox",
}


def transformers_shapes(name: str) -> dict[str, tuple[int, ...]]:
    entry = known_models()[name.lower()]
    sizes = {
        "hidden_size": entry.d_model, "intermediate_size": entry.d_mlp, "num_hidden_layers": entry.layers,
        "num_attention_heads": entry.heads, "num_key_value_heads": entry.kv_heads, "head_dim": entry.d_head,
        "pad_token_id": 0,
    }  # fmt: skip
    if TYPES[name] == "gpt2":
        sizes = {"n_embd": entry.d_model, "n_layer": entry.layers, "n_head": entry.heads}
    config = AutoConfig.for_model(TYPES[name], vocab_size=entry.vocab, tie_word_embeddings=entry.tied, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {key.removeprefix("transformer."): tuple(value.shape) for key, value in model.named_parameters()}
    # The module's new name; the files on the hub keep the old one.
    return {key.replace("lm_head", "embed_out") if "pythia" in name else key: size for key, size in shapes.items()}


@pytest.mark.parametrize("name", TYPES)
def test_the_shapes_are_those_of_transformers(name: str) -> None:
    entry = known_model(name)
    assert entry is not None
    assert dict(shape_of_entry(entry).tensors) == transformers_shapes(name)


def test_every_entry_has_the_published_size() -> None:
    assert len(known_models()) > 80
    for name, entry in known_models().items():
        assert shape_of_entry(entry).num_parameters == entry.parameters, name


def test_a_folder_says_the_same_as_the_table_and_a_name_is_found_in_any_case(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    save_file(dict(model.named_parameters()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    shape = shape_of_folder(tmp_path)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.num_layers, shape.d_model, shape.d_mlp, shape.vocab_size) == (2, 32, 48, 100)
    assert (shape.num_heads, shape.num_kv_heads, shape.d_head, shape.is_tied) == (4, 2, 8, True)
    assert known_model("qwen/QWEN2.5-7b-instruct") == known_model("Qwen/Qwen2.5-7B-Instruct")
    assert known_model("nobody/nothing") is None


def test_a_folder_whose_configuration_says_little_is_read_off_its_tensors(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": torch.zeros(50, 8),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(16, 8),
        "model.layers.1.mlp.up_proj.weight": torch.zeros(16, 8),
        "lm_head.weight": torch.zeros(50, 8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    shape = shape_of_folder(tmp_path)
    assert (shape.num_layers, shape.d_model, shape.d_mlp, shape.vocab_size, shape.is_tied) == (2, 8, 16, 50, False)


@pytest.mark.parametrize(
    ("config", "d_mlp"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336}, 2 * 14336),
        ({"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144}, 6144),
        (
            {
                "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632, "intermediate_size": 5632,
            },
            4 * 1408 + 5632,
        ),
        (
            {
                "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
                "moe_intermediate_size": 1408, "intermediate_size": 10944,
            },
            (6 + 2) * 1408,
        ),
    ],
    ids=["Mixtral 8x7B", "Qwen3 30B-A3B", "Qwen1.5 MoE A2.7B", "DeepSeek-V2-Lite"],
)  # fmt: skip
def test_a_token_has_the_hidden_values_of_all_experts_that_it_goes_through(
    config: dict[str, int], d_mlp: int, tmp_path: Path
) -> None:
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of_folder(tmp_path).d_mlp == d_mlp


def test_every_entry_is_one_line_of_the_table() -> None:
    """A name is looked up in its line alone."""
    assert all(known_model(name) == entry for name, entry in known_models().items())
