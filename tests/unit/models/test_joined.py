"""Texts in one row get the numbers that each of them gets alone, and so do their branches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rankscope.models import joined
from rankscope.models.joined import JoinedRow, can_join, joined_attention, joined_inputs
from rankscope.models.text_trees import TextTree

_SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "llama": ("llama", _SHAPE),
    "qwen2": ("qwen2", _SHAPE),
    "qwen3": ("qwen3", {**_SHAPE, "head_dim": 8}),
    "mistral": ("mistral", {**_SHAPE, "sliding_window": None}),
    "mixtral": ("mixtral", {**_SHAPE, "num_local_experts": 4, "sliding_window": None}),
    "phi3": ("phi3", {**_SHAPE, "sliding_window": None}),
    "gpt2": ("gpt2", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("gpt_neox", _SHAPE),
    "opt": ("opt", {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "mistral, window": ("mistral", {**_SHAPE, "sliding_window": 5}),
    "qwen2, window": (
        "qwen2", {**_SHAPE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
}  # fmt: skip


def with_leaves(length: int, sizes: tuple[int, ...]) -> TextTree:
    return TextTree(length, tuple(TextTree(size) for size in sizes))


TEXTS = [
    with_leaves(9, (3, 2, 4)), TextTree(1), TextTree(14), with_leaves(6, (1, 5)), with_leaves(0, (3, 4)),
    TextTree(7, (with_leaves(2, (3, 1)), TextTree(4), with_leaves(1, (2,)))),  # items behind what they share
    TextTree(6), with_leaves(4, (2, 1)),  # one position deeper than the window of some architectures
]  # fmt: skip


def tiny(name: str) -> PreTrainedModel:
    model_type, options = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **options)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    # The experts' grouped product exists in float32 and below only.
    return (model if name == "mixtral" else model.double()).eval()


def tokens(number: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 97, (number,), generator=generator).tolist()


def apart(model: PreTrainedModel, text: TextTree, ids: list[int], before: tuple[int, ...] = ()) -> torch.Tensor:
    """Logits of a text, then of each branch behind it, a forward pass each by the model itself."""
    begin = [*before, *ids[: text.length]]
    parts = [model(torch.tensor([begin]), use_cache=False).logits[0, len(before) :]] if text.length else []
    start = text.length
    for branch in text.branches:
        parts.append(apart(model, branch, ids[start : start + branch.total], tuple(begin)))
        start += branch.total
    return torch.cat(parts)


@pytest.mark.parametrize("stretch", [None, 3], ids=["", "in stretches"])
@pytest.mark.parametrize("one_call", [0, 10_000], ids=["branch by branch", "at once"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_joined_texts_equal_texts_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, one_call: int, stretch: int | None
) -> None:
    monkeypatch.setattr(joined, "_ONE_CALL", one_call)
    if stretch:
        in_stretches(monkeypatch, stretch)
    model = tiny(name)
    ids = [tokens(text.total, seed) for seed, text in enumerate(TEXTS)]
    expected = torch.cat([apart(model, text, own) for text, own in zip(TEXTS, ids, strict=True)])
    row = JoinedRow(TEXTS)
    with joined_attention(model):
        found = model(use_cache=False, **joined_inputs(row, list(itertools.chain(*ids)), model.device)).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if name == "mixtral" else 1e-10)
    assert model.config._attn_implementation == "sdpa"


def in_stretches(monkeypatch: pytest.MonkeyPatch, stretch: int) -> None:
    """Texts of 4 to 13 positions are not one call, as longer ones are not elsewhere."""
    monkeypatch.setattr(joined, "_STRETCH", stretch)
    monkeypatch.setattr(joined, "_IN_STRETCHES", range(4, 14))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_known_architecture_joins(name: str) -> None:
    assert can_join(tiny(name))


def test_every_known_architecture_is_tried() -> None:
    assert {model_type for model_type, _ in ARCHITECTURES.values()} == joined._KNOWN


@pytest.mark.parametrize("stretch", [None, 4], ids=["", "in stretches"])
def test_gradients_are_those_of_texts_alone(monkeypatch: pytest.MonkeyPatch, stretch: int | None) -> None:
    if stretch:
        in_stretches(monkeypatch, stretch)
    model = tiny("llama").requires_grad_(True)
    ids = [tokens(number, number) for number in (5, 9, 2)]

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    alone = gradients(sum(model(torch.tensor([own])).logits.square().sum() for own in ids))
    row = JoinedRow([TextTree(len(own)) for own in ids])
    with joined_attention(model):
        inputs = joined_inputs(row, list(itertools.chain(*ids)), model.device)
        together = gradients(model(use_cache=False, **inputs).logits.square().sum())
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [128, 129, 300, 1024, 1025])
@torch.no_grad()
def test_long_texts_are_divided_without_a_gap(length: int) -> None:
    parts = JoinedRow([TextTree(length)]).parts(None, 1, torch.zeros(1))[0]
    assert [part.queries.start for part in parts] == [0, *(part.queries.stop for part in parts[:-1])]
    assert parts[-1].queries.stop == length
    assert len(parts) == (math.ceil(length / 64) if 128 < length < 1025 else 1)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    found, _ = joined._attention(torch.nn.Identity(), q, k, v, None, joined=JoinedRow([TextTree(length)]))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_what_was_not_tried_is_padded() -> None:
    options = {"vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 4}
    assert not can_join(AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **options)))
    eager = tiny("llama")
    eager.set_attn_implementation("eager")
    assert not can_join(eager)


def test_a_model_that_mixes_texts_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as it would be if the row were one long text, of all that four texts have in 64 positions."""
    monkeypatch.setattr(JoinedRow, "lengths", property(lambda row: [sum(text.total for text in row.texts)]))
    monkeypatch.setattr(JoinedRow, "texts", property(lambda _: (TextTree(76),)), raising=False)
    monkeypatch.setattr(JoinedRow, "__init__", lambda row, _: setattr(row, "_parts", {}))
    monkeypatch.setattr(JoinedRow, "position_ids", lambda _, device: torch.arange(76, device=device)[None])
    assert not can_join(tiny("llama"))
