"""Streams and neurons as the model runs: equal to what transformers returns, over architectures."""

import copy
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, OpenAIGPTConfig, OPTConfig

from dozen import CONFIGS, SIZE, make_model, texts
from rankscope.errors import NotAvailable
from rankscope.internals.patterns import batches, show_patterns
from rankscope.internals.streams import is_relu, show_neurons, show_streams

# Where the last matrix of an MLP is, and which are four times as wide as the model.
LAST = {"gpt2": "mlp.c_proj", "gpt-neo": "mlp.c_proj", "gpt-neox": "mlp.dense_4h_to_h", "opt": "fc2",
        "bloom": "mlp.dense_4h_to_h", "falcon": "mlp.dense_4h_to_h", "falcon-alibi": "mlp.dense_4h_to_h"}  # fmt: skip
WIDE = ("gpt2", "gpt-neo", "bloom")


@pytest.mark.parametrize("name", CONFIGS)
def test_streams_are_the_hidden_states(name):
    model = make_model(name)
    [batch] = batches(texts(5, 9, 7), max_tokens=100)
    seen = {}
    show_streams(model, batch, lambda layer, stream: seen.update({layer: stream.clone()}))
    with torch.no_grad():
        states = model(
            batch.input_ids, attention_mask=batch.is_token.long(), output_hidden_states=True, use_cache=False
        ).hidden_states
    assert list(seen) == list(range(len(states) - 1))
    for layer in list(seen)[:-1]:  # the last one of transformers has gone through the final norm
        torch.testing.assert_close(seen[layer][batch.is_token], states[layer + 1][batch.is_token], rtol=1e-4, atol=1e-5)


def test_layers_that_return_a_list_have_streams_too():
    config = OpenAIGPTConfig(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config)
    [batch] = batches(texts(6), max_tokens=100)
    seen = []
    show_streams(model.eval(), batch, lambda layer, stream: seen.append(stream.clone()))
    with torch.no_grad():
        torch.testing.assert_close(seen[-1], model(batch.input_ids, output_hidden_states=True).hidden_states[-1])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mixtral"])
def test_neurons_are_what_the_last_matrix_multiplies(name):
    model = make_model(name)
    [batch] = batches(texts(5, 9), max_tokens=100)
    seen, multiplied = {}, []
    last = [module for path, module in model.named_modules() if path.endswith(LAST.get(name, "mlp.down_proj"))]
    handles = [m.register_forward_pre_hook(lambda _, given: multiplied.append(given[0].clone())) for m in last]
    show_neurons(model, batch, lambda layer, activations: seen.update({layer: activations.clone()}))
    for handle in handles:
        handle.remove()
    assert list(seen) == list(range(model.config.get_text_config().num_hidden_layers))
    for activations, expected in zip(seen.values(), multiplied, strict=True):
        torch.testing.assert_close(activations, expected.reshape(activations.shape), rtol=0, atol=0)
        assert activations.shape == (*batch.input_ids.shape, 64 if name in WIDE else 24)


def test_a_neuron_is_behind_gate_and_activation():
    model = make_model("llama")
    [batch] = batches(texts(6), max_tokens=100)
    seen, inputs = {}, []
    mlp = model.model.layers[1].mlp
    handle = mlp.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    show_neurons(model, batch, lambda layer, activations: seen.update({layer: activations.clone()}))
    handle.remove()
    with torch.no_grad():
        expected = nn.functional.silu(mlp.gate_proj(inputs[0])) * mlp.up_proj(inputs[0])
    torch.testing.assert_close(seen[1], expected)


def test_relu_is_recognised():
    assert is_relu(make_model("opt")) and not is_relu(make_model("llama")) and not is_relu(make_model("gpt2"))
    silent = OPTConfig(vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=4,
                       word_embed_proj_dim=16, activation_function="gelu")  # fmt: skip
    assert not is_relu(AutoModelForCausalLM.from_config(silent))


def test_experts_have_no_neurons_that_are_known():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZE, num_local_experts=2)).eval()
    [batch] = batches(texts(4), max_tokens=100)
    with pytest.raises(NotAvailable, match="MixtralForCausalLM"):
        show_neurons(model, batch, lambda layer, activations: None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_unknown_architecture_is_not_available():
    model = make_model("llama")
    for layer in model.model.layers:
        layer.other, layer.self_attn = layer.self_attn, None
    [batch] = batches(texts(4), max_tokens=100)
    with pytest.raises(NotAvailable, match="no attention modules"):
        show_patterns(model, batch, lambda layer: None)


@pytest.mark.parametrize("show", [show_streams, show_neurons])
def test_one_layer_in_memory_however_deep(show):
    alive = {}
    for depth in (2, 10):
        torch.manual_seed(0)
        config = LlamaConfig(**{**copy.deepcopy(SIZE), "num_hidden_layers": depth})
        model = AutoModelForCausalLM.from_config(config).eval()
        references, most = [], 0

        def on_layer(layer, tensor, references=references):
            nonlocal most
            references.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in references))

        [batch] = batches(texts(9, 9), max_tokens=100)
        show(model, batch, on_layer)
        assert len(references) == depth
        alive[depth] = most
    assert alive[2] == alive[10] <= 2
