"""Patterns as the model runs: equal to what transformers returns, windows seen, one layer in memory at a time."""

import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GptOssConfig, LlamaConfig, MiniMaxConfig, MptConfig

from dozen import CONFIGS, SIZE, make_model, texts
from rankscope.errors import NotAvailable
from rankscope.internals.patterns import Batch, _hook, batches, packed_pattern, show_patterns, unpacked_pattern

WINDOWED = {
    "mistral-window": {0, 1, 2},
    "qwen2-window": {1, 2},
    "gemma2": {0, 2},
    "gpt-neo": {1, 3},
    "gemma3": {0, 2},
}
HIDDEN = ("falcon", "falcon-alibi")  # their attention cannot be exchanged


def shown(model, batch):
    layers = []
    show_patterns(model, batch, layers.append)
    return layers


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in HIDDEN])
def test_equal_what_transformers_returns_text_by_text(name):
    model = make_model(name)
    before = model.config._attn_implementation
    [batch] = batches(texts(5, 9, 7), max_tokens=100)
    layers = shown(model, batch)
    assert model.config._attn_implementation == before
    assert [layer.layer for layer in layers] == list(range(model.config.num_hidden_layers))
    eager = make_model(name, attn_implementation="eager")
    for row, length in enumerate(batch.lengths.tolist()):
        with torch.no_grad():
            alone = eager(batch.input_ids[row : row + 1, :length], output_attentions=True, use_cache=False).attentions
        for layer, expected in zip(layers, alone, strict=True):
            found = layer.pattern[row, :, :length, :length]
            torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-6)
            window = 3 if layer.layer in WINDOWED.get(name, ()) else length
            ones = torch.ones(length, length, dtype=torch.bool)
            visible = torch.zeros_like(layer.visible[row])
            visible[:length, :length] = ones.tril() & ~ones.tril(-window)
            assert torch.equal(layer.visible[row], visible)
            # Nothing outside what is visible, and all of each row inside.
            torch.testing.assert_close(found.sum(-1), torch.ones_like(found.sum(-1)))
            assert float(found[:, ~visible[:length, :length]].abs().sum()) == 0.0


@pytest.mark.parametrize("name", HIDDEN)
def test_what_does_not_show_its_pattern_is_named(name):
    model = make_model(name)
    [batch] = batches(texts(5, 9), max_tokens=100)
    with pytest.raises(NotAvailable, match="FalconAttention does not show its attention pattern"):
        shown(model, batch)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


NO_PATTERNS = {
    # It shows the state that it ends with: as large as a pattern where texts are as long as heads are wide.
    "MiniMaxLightningAttention": MiniMaxConfig(
        **SIZE, num_local_experts=2, head_dim=4, layer_types=["linear_attention", "full_attention", "full_attention"]
    ),
    "GptOssAttention": GptOssConfig(**SIZE, num_local_experts=2, head_dim=4),  # a share of each row is for no key
    "MptAttention": MptConfig(vocab_size=40, d_model=16, n_heads=4, n_layers=3),  # its mask says what is not seen
}


@pytest.mark.parametrize("lengths", [(5, 9), (4, 4)], ids=["padded", "as long as heads are wide"])
@pytest.mark.parametrize("name", NO_PATTERNS)
def test_what_is_no_pattern_of_the_keys_that_are_seen_is_named(name, lengths):
    model = AutoModelForCausalLM.from_config(NO_PATTERNS[name]).eval()
    [batch] = batches(texts(*lengths), max_tokens=100)
    with pytest.raises(NotAvailable, match=f"what {name} shows is no share of attention for each key"):
        shown(model, batch)


def test_a_module_that_is_given_no_mask_sees_what_came_before():
    handed, is_token = [], torch.tensor([[True, True, True], [True, True, False]])

    class Attention(torch.nn.Module):
        def forward(self, hidden, attention_mask=None):
            return hidden, torch.eye(3).expand(2, 1, 3, 3)

    _hook(4, is_token, handed.append)(Attention(), (torch.zeros(2, 3, 8),), {}, Attention()(torch.zeros(2, 3, 8)))
    [layer] = handed
    assert layer.layer == 4
    assert layer.visible[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert layer.visible[1].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_packed_and_unpacked():
    model = make_model("mistral-window")
    [batch] = batches(texts(5, 9), max_tokens=100)
    for layer in shown(model, batch):
        packed = packed_pattern(layer)
        assert packed.shape == (int(layer.visible.sum()), 4)
        expected = layer.pattern.masked_fill(~layer.visible.unsqueeze(1), 0.0)
        assert torch.equal(unpacked_pattern(packed, layer.visible), expected)


@pytest.mark.parametrize("num_layers", [2, 12])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_one_pattern_in_memory_however_deep(name, num_layers):
    torch.manual_seed(0)
    kinds = {"llama": LlamaConfig(**{**SIZE, "num_hidden_layers": num_layers}), "gpt2": None}
    config = kinds[name] or GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=num_layers, n_head=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    references, alive = [], []

    def on_layer(layer):
        references.append(weakref.ref(layer.pattern))
        alive.append(sum(reference() is not None for reference in references))

    [batch] = batches(texts(9, 9), max_tokens=100)
    show_patterns(model, batch, on_layer)
    assert alive == [1] * num_layers
    assert all(reference() is None for reference in references)


def test_hooks_and_implementation_are_given_back_after_a_failure():
    model = make_model("llama")
    [batch] = batches(texts(4), max_tokens=100)

    def fail(layer):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        show_patterns(model, batch, fail)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_batches_keep_every_text_and_their_size():
    made = batches(texts(3, 8, 8, 2, 30, 5), max_tokens=16)
    assert [batch.lengths.tolist() for batch in made] == [[30], [8, 8], [5, 3, 2]]
    assert all(batch.input_ids.numel() <= 16 or len(batch.lengths) == 1 for batch in made)
    found = [row[:n].tolist() for b in made for row, n in zip(b.input_ids, b.lengths.tolist(), strict=True)]
    assert sorted(found) == sorted(texts(3, 8, 8, 2, 30, 5))


def test_where_tokens_are():
    batch = Batch(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 1]))
    assert batch.is_token.tolist() == [[True] * 3, [True, False, False]]
