"""Configurations of one meaning are not told apart, and those that cut matrices into other heads are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankscope.audit.configurations import configuration_notes
from rankscope.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
QWEN2 = {"model_type": "qwen2", "intermediate_size": 48, **SIZES, "num_key_value_heads": 2}
LLAMA = QWEN2 | {"model_type": "llama"}
FALCON = {"model_type": "falcon", **SIZES}
ONE_KEY_HEAD = FALCON | {"multi_query": True, "new_decoder_architecture": False}
MANY = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}


def notes(tmp_path: Path, base: dict, tuned: dict) -> list[str]:
    for name, document in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(document))
    return configuration_notes(tmp_path / "base", tmp_path / "tuned")


@pytest.mark.parametrize(
    ("base", "more"),
    [
        (QWEN2, {"head_dim": 8}),
        (QWEN2 | {"num_key_value_heads": None}, {"num_key_value_heads": 4}),
        (LLAMA, {"head_dim": 8}),
        (ONE_KEY_HEAD, {"num_kv_heads": 1}),
        (LLAMA, {"unsloth_version": "2025.1", "unsloth_fixed": True, "use_sliding_window": False}),
        (LLAMA | {"unsloth_fixed": True}, {"unsloth_fixed": None}),
    ],
)
@pytest.mark.parametrize("is_base_the_shorter", [True, False])
def test_what_says_the_same_is_not_mentioned(tmp_path: Path, base: dict, more: dict, is_base_the_shorter: bool) -> None:
    both = (base, base | more) if is_base_the_shorter else (base | more, base)
    assert notes(tmp_path, *both) == []


@pytest.mark.parametrize(
    ("base", "more", "said"),
    [
        (QWEN2, {"head_dim": 16}, "head_dim is 16, and 8 in the base's"),
        (QWEN2, {"num_key_value_heads": 4}, "num_key_value_heads is 4, and 2 in the base's"),
        (MANY, {"num_kv_heads": 4}, "num_kv_heads is 4, and 2 in the base's"),
    ],
)
def test_other_heads_are_refused(tmp_path: Path, base: dict, more: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        notes(tmp_path, base, base | more)
    assert said in caught.value.message()


@pytest.mark.parametrize(
    ("base", "more", "said"),
    [
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window is True, the base's False"),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters.factor is 2.0, the base's unset",
        ),
        (LLAMA | {"own": {"a": 1}}, {"own": {"a": 1, "b": 2}}, "own.b is 2, the base's unset"),
    ],
)
def test_what_may_be_read_is_said(tmp_path: Path, base: dict, more: dict, said: str) -> None:
    (note,) = notes(tmp_path, base, base | more)
    assert said in note
