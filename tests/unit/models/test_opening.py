"""What of a base's files is loaded: all weights and nothing drawn at random, or a refusal."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rankscope.errors import UserError
from rankscope.models.opening import read_model
from tiny import tiny_llama

# What files of older versions hold beside weights, by architecture; and a head of another task.
NO_WEIGHTS = {
    "gpt2": {"transformer.h.0.attn.masked_bias": (), "transformer.h.0.attn.bias": (1, 1, 8, 8)},
    "gpt_neo": {"transformer.h.0.attn.attention.bias": (1, 1, 8, 8), "transformer.h.0.attn.attention.masked_bias": ()},
    "gptj": {"transformer.h.0.attn.bias": (1, 1, 8, 8), "transformer.h.0.attn.masked_bias": ()},
    "codegen": {"transformer.h.0.attn.causal_mask": (1, 1, 8, 8)},
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,), "v_head.0.weight": (1, 32)},
}
_OLD = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
SIZES = {
    "gpt2": _OLD,
    "gpt_neo": {"vocab_size": 40, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                "attention_types": [[["global"], 2]]},
    "gptj": {**_OLD, "rotary_dim": 8},
    "codegen": {**_OLD, "rotary_dim": 8},
    "llama": {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4},
}  # fmt: skip


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 3}, r"lack weights that LlamaForCausalLM has: model\.layers\.2\."),
        ({"num_key_value_heads": 4}, r"of other shapes than those of Llama.*: model\.layers\.0\.self_attn\.k_proj"),
        ({"num_hidden_layers": 1}, r"hold weights that LlamaForCausalLM would leave out: model\.layers\.1\."),
    ],
    ids=["missing", "shape", "left out"],
)
def test_weights_are_neither_drawn_at_random_nor_left_out(tmp_path: Path, values: dict, words: str) -> None:
    tiny_llama(torch.float32).save_pretrained(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(UserError, match=words):
        read_model(tmp_path, torch.float32)


@pytest.mark.parametrize("model_type", NO_WEIGHTS)
def test_what_is_no_weight_of_the_model_may_be_left_out(tmp_path: Path, model_type: str) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES[model_type])).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    others = {name: torch.ones(shape) for name, shape in NO_WEIGHTS[model_type].items()}
    save_file({**load_file(path), **others}, path, {"format": "pt"})
    read_model(tmp_path, torch.float32)


@pytest.mark.parametrize(("num_further", "is_right"), [(1, True), (0, False)])
def test_layers_that_predict_further_tokens_are_not_loaded(tmp_path: Path, num_further: int, is_right: bool) -> None:
    tiny_llama(torch.float32).save_pretrained(tmp_path)
    change(tmp_path, num_hidden_layers=1, num_nextn_predict_layers=num_further)
    with contextlib.nullcontext() if is_right else pytest.raises(UserError, match="would leave out"):
        read_model(tmp_path, torch.float32)
