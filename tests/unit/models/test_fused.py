"""Fused tensors taken apart, against what the architecture's own forward makes of their rows."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    Phi3Config,
)

from rankscope.models.fused import iter_parts
from rankscope.models.updates import Factors, Update

SIZE = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=4)
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=4),
    "gpt-neox": GPTNeoXConfig(**SIZE, intermediate_size=24),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=4),
    "falcon": FalconConfig(**SIZE, multi_query=False, alibi=False),
    "falcon-multi-query": FalconConfig(**SIZE, multi_query=True, alibi=False),
    "falcon-new": FalconConfig(**SIZE, num_kv_heads=2, new_decoder_architecture=True, alibi=False),
    "phi3": Phi3Config(**SIZE, num_key_value_heads=2, intermediate_size=24, pad_token_id=0),
}
FUSED = {"gpt2": "c_attn", "phi3": "qkv_proj"}


def model_of(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation="eager").eval()


def update_of(model, name, delta_W=None, factors=None):
    weight = model.get_submodule(name).weight.detach()
    W0 = weight.T if model.config.model_type == "gpt2" else weight
    return Update(
        name=name, layer=0, module=name.rpartition(".")[2], kind="matrix", shape=tuple(W0.shape),
        read_W0=lambda: W0, rank=None if factors is None else factors.rank,
        read_factors=None if factors is None else lambda: factors,
        read_rows=None if delta_W is None else lambda start, stop: delta_W[start:stop],
    )  # fmt: skip


def fused_name(model, last):
    return next(name for name, _ in model.named_modules() if name.endswith(last))


def attention_of(model):
    seen = []
    model(torch.arange(5, 12).unsqueeze(0), output_attentions=True, use_cache=False)
    out = model(torch.arange(5, 12).unsqueeze(0), output_attentions=True, use_cache=False)
    seen.append(out.attentions[0].detach())
    return seen[0], out.logits.detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_are_what_the_forward_takes_them_for(name):
    """Values do not change the pattern, queries of one head only that head's, keys only their heads'."""
    model = model_of(name)
    module = fused_name(model, FUSED.get(name, "query_key_value"))
    parts = {part.module.rpartition(".")[2]: part for part in iter_parts([update_of(model, module)], model.config)}
    assert list(parts) == ["q", "k", "v"]
    weight = model.get_submodule(module).weight
    rows = weight.T if name == "gpt2" else weight
    assert sorted(torch.cat([part.rows for part in parts.values()]).tolist()) == list(range(rows.shape[0]))
    with torch.no_grad():
        rows *= 8.0  # patterns far from uniform, so that a change shows
    pattern, logits = attention_of(model)
    head_rows = {}
    for letter, part in parts.items():
        assert torch.equal(part.read_W0(), rows[part.rows])
        before = rows.detach().clone()
        width = 4  # of a head
        with torch.no_grad():
            rows[part.rows[:width]] = 0.0
        after, changed = attention_of(model)
        with torch.no_grad():
            rows.copy_(before)
        assert not torch.allclose(changed, logits)
        head_rows[letter] = [h for h in range(4) if not torch.allclose(after[0, h], pattern[0, h], atol=1e-6)]
    heads_of_a_key = 4 * width // len(parts["k"].rows)
    assert head_rows == {"q": [0], "k": list(range(heads_of_a_key)), "v": []}


def test_halves_of_the_gated_layer():
    model = model_of("phi3")
    name = "model.layers.0.mlp.gate_up_proj"
    gate, up = iter_parts([update_of(model, name)], model.config)
    assert (gate.name, up.name) == (f"{name}.gate", f"{name}.up")
    mlp, x = model.get_submodule("model.layers.0.mlp"), torch.randn(2, 16)
    expected = (torch.nn.functional.silu(x @ gate.read_W0().T) * (x @ up.read_W0().T)) @ mlp.down_proj.weight.T
    torch.testing.assert_close(mlp(x), expected)


def test_an_adapter_stays_in_factors():
    model = model_of("phi3")
    name = "model.layers.0.self_attn.qkv_proj"
    factors = Factors(torch.randn(2, 16), torch.randn(32, 2), 1.5)
    parts = list(iter_parts([update_of(model, name, factors=factors)], model.config))
    assert [part.shape for part in parts] == [(16, 16), (8, 16), (8, 16)]
    whole = factors.delta_W()
    for part in parts:
        assert part.delta_W is None and part.rank == 2
        torch.testing.assert_close(part.factors.delta_W(), whole[part.rows])
        torch.testing.assert_close(part.tuned(), (part.read_W0().double() + whole[part.rows]))


def test_a_full_update_is_cut_like_its_matrix():
    model = model_of("gpt-neox")
    name = "gpt_neox.layers.0.attention.query_key_value"
    delta_W = torch.randn(48, 16, dtype=torch.float64)
    for part in iter_parts([update_of(model, name, delta_W=delta_W)], model.config):
        assert part.factors is None
        assert torch.equal(part.delta_W, delta_W[part.rows])


def test_experts_in_one_tensor_against_the_models_own_forward():
    config = GptOssConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, head_dim=4, layer_types=["full_attention"], eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    experts = AutoModelForCausalLM.from_config(config).model.layers[0].mlp.experts
    gate_up, down = experts.gate_up_proj.detach(), experts.down_proj.detach()
    with torch.no_grad():
        gate_up.normal_()
        down.normal_()
        experts.gate_up_proj_bias.zero_()
        experts.down_proj_bias.zero_()
    updates = [
        Update(
            name=f"mlp.experts.{name}", layer=0, module=name, kind="other", shape=tuple(W0.shape),
            read_W0=lambda W0=W0: W0, read_rows=lambda start, stop, W0=W0: 2.0 * W0.double()[start:stop],
        )
        for name, W0 in (("gate_up_proj", gate_up), ("down_proj", down))
    ]  # fmt: skip
    parts = {part.name: part for part in iter_parts(updates, config)}
    assert len(parts) == 3 * 3
    x, expert = torch.randn(5, 16), 1
    W = {key: parts[f"mlp.experts.1.{name}"].read_W0() for key, name in
         (("gate", "gate_up_proj.gate"), ("up", "gate_up_proj.up"), ("down", "down_proj"))}  # fmt: skip
    assert (W["gate"].shape, W["down"].shape) == ((24, 16), (16, 24))
    hidden = torch.cat([x @ W["gate"].T, x @ W["up"].T], -1)
    interleaved = hidden.reshape(5, 2, 24).transpose(1, 2).reshape(5, 48)
    expected = experts._apply_gate(interleaved) @ W["down"].T
    ones = torch.ones(5, 1)
    found = experts(x, torch.full((5, 1), expert), ones)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["mlp.experts.1.down_proj"].delta_W, 2 * W["down"].double())


def test_what_is_not_in_the_table_comes_as_it_is():
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_attention_heads=4)
    vector = Update("norm", None, "norm", "vector", (4,), lambda: torch.ones(4))
    stack = Update("a.experts", 0, "experts", "other", (2, 3, 4), lambda: torch.ones(2, 3, 4))
    plain = Update("q_proj", 0, "q_proj", "matrix", (4, 4), lambda: torch.ones(4, 4))
    found = list(iter_parts([vector, stack, plain], config))
    assert found[:2] == [vector, stack]
    assert (found[2].name, found[2].module, found[2].rows) == ("q_proj", "q_proj", None)
