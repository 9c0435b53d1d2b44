"""A name is found in a base exactly where PEFT would find it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from rankscope.data.shapes import layer_matrices
from rankscope.data.targets import check_targets
from rankscope.errors import UserError
from tiny import tiny_llama

LLAMA = {
    f"model.layers.{layer}.{part}.weight": (8, 8)
    for layer in range(2)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
} | {"model.embed_tokens.weight": (40, 8), "model.norm.weight": (8,)}
GPT2 = {f"h.{layer}.attn.c_attn.weight": (8, 24) for layer in range(2)}


def refusal(targets, **bases) -> UserError:
    with pytest.raises(UserError) as caught:
        check_targets({"lora-r2": targets}, bases)
    return caught.value


@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        "ALL-LINEAR",
        ["q_proj"],
        ["self_attn.q_proj", "up_proj"],
        ["q_prj"],
        ["proj"],
        ["q_proj.weight"],
        ["model.layers.1.mlp.up_proj"],
        r".*\.(q|v)_proj",
        r"model\.layers\.0\..*",
        "q_proj",
        r".*\.w_proj",
    ],
)
def test_what_is_found_is_what_peft_finds(targets) -> None:
    model: nn.Module = tiny_llama(torch.float32)
    config = LoraConfig(target_modules=targets)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    is_all = isinstance(targets, str) and targets.lower() == "all-linear"
    expected = is_all or any(check_target_module_exists(config, name) for name in linear)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert layer_matrices(shapes)
    if expected:
        check_targets({"lora-r2": targets}, {"tiny": shapes})
    else:
        refusal(targets, tiny=shapes)


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    error = refusal(["q_proj", "v_prog"], small=LLAMA)
    assert "'v_prog'" in error.message()
    assert "'v_proj'" in error.mend
    assert "lora-r2" in error.message()


def test_a_name_written_as_text_is_told_to_be_a_list() -> None:
    assert "[q_proj]" in refusal("q_proj", small=LLAMA).mend


def test_a_broken_expression_is_refused() -> None:
    assert "no regular expression" in refusal("(q_proj", small=LLAMA).message()


def test_embeddings_are_no_targets() -> None:
    assert "embed_tokens" in refusal(["embed_tokens"], small=LLAMA).message()


def test_names_of_several_bases_may_stand_together() -> None:
    check_targets({"lora-r2": ["q_proj", "c_attn"]}, {"llama": LLAMA, "gpt2": GPT2})
    error = refusal(["q_proj", "v_proj"], llama=LLAMA, gpt2=GPT2)
    assert "gpt2" in error.message()
    assert "c_attn" in error.mend


def test_paths_may_have_what_files_leave_out() -> None:
    check_targets({"lora-r2": ["transformer.h.0.attn.c_attn"]}, {"gpt2": GPT2})
    check_targets({"lora-r2": r"transformer\.h\.[01]\.attn\.c_attn"}, {"gpt2": GPT2})
