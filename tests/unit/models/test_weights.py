"""Updates read back from disk, against PEFT's own merge and against what was planted."""

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from rankscope.errors import UserError
from rankscope.models.tensor_files import TensorFiles
from rankscope.models.weights import iter_updates, trained_folder

# PEFT 0.21 asks transformers 5.23 for a property that is about to go.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning"),
]

LLAMA = dict(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=11,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
CONFIGS = {
    "llama": LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2),
}

_LLAMA_PATTERNS = {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 7, r"10\.mlp\.up_proj": 11, "up_proj": 2}}
PATTERNS = {
    "llama": _LLAMA_PATTERNS,
    "qwen2": _LLAMA_PATTERNS,
    "gpt2": {"rank_pattern": {r"mlp\.c_proj": 2}, "alpha_pattern": {r"0\.attn\.c_proj": 11, "c_proj": 2}},
}


def make_base(folder, name="llama"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    model.save_pretrained(folder)
    return model


def make_adapter(base, folder, **options):
    defaults = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = LoraConfig(**{**defaults, **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return model


def merged_difference(base, adapter):
    """By parameter, PEFT's merged weights less the base's, in float64."""
    before = AutoModelForCausalLM.from_pretrained(base).double()
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base).double(), adapter, autocast_adapter_dtype=False
    )
    after = tuned.double().merge_and_unload()
    old = dict(before.named_parameters())
    return {name: parameter.detach() - old[name].detach() for name, parameter in after.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        PATTERNS,
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_adapter_updates_are_what_peft_merges(tmp_path, name, options):
    make_base(tmp_path / "base", name)
    options = options[name] if options is PATTERNS else options
    options = {**options, "fan_in_fan_out": name == "gpt2"}
    make_adapter(tmp_path / "base", tmp_path / "adapter", **options)
    expected = merged_difference(tmp_path / "base", tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    seen = 0
    for update in iter_updates(tmp_path / "base", tmp_path / "adapter"):
        stored = expected.pop(f"{update.name}.weight")
        delta = stored.T if name == "gpt2" else stored
        weight = base.get_submodule(update.name).weight
        assert torch.equal(update.read_W0(), weight.T if name == "gpt2" else weight)
        assert update.shape == tuple(delta.shape)
        assert update.kind == "matrix"
        assert update.module == update.name.split(".")[-1]
        assert f".{update.layer}." in update.name
        torch.testing.assert_close(update.factors.delta_W(), delta, rtol=1e-9, atol=1e-10)
        assert delta.abs().max() > 0.1
        seen += 1
    assert seen == {"llama": 77, "qwen2": 77, "gpt2": 8}[name]
    assert all(bool((rest == 0).all()) for rest in expected.values())


def test_layers_come_in_the_order_of_their_numbers(tmp_path):
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter")
    layers = [update.layer for update in iter_updates(tmp_path / "base", tmp_path / "adapter")]
    assert layers == sorted(layers)
    assert max(layers) == 10


def test_adapter_of_embeddings_and_modules_saved_whole(tmp_path):
    base = make_base(tmp_path / "base")
    model = make_adapter(
        tmp_path / "base", tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"]
    )
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight += 0.5
    model.save_pretrained(tmp_path / "adapter")
    updates = {update.name: update for update in iter_updates(tmp_path / "base", tmp_path / "adapter")}
    assert len(updates) == 11 + 2
    head = updates["lm_head"]
    assert head.kind == "table" and head.factors is None
    torch.testing.assert_close(head.delta_W, torch.full_like(head.delta_W, 0.5), rtol=0, atol=1e-6)
    table = updates["model.embed_tokens"]
    assert table.kind == "table"
    delta = model.base_model.model.model.embed_tokens.get_delta_weight("default").detach().double()
    torch.testing.assert_close(table.factors.delta_W(), delta, rtol=1e-5, atol=1e-6)
    assert table.shape == tuple(base.model.embed_tokens.weight.shape)


def plant(model, layer):
    """Add a rank-2 update of known factors to a matrix; returns the update as (d_out, d_in)."""
    weight = model.get_submodule(layer).weight
    torch.manual_seed(2)
    delta = torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
    with torch.no_grad():
        before = weight.clone()
        weight += delta
        return (weight - before).double()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shard_size", ["100GB", "4KB"])
def test_full_updates_are_the_difference(tmp_path, name, shard_size):
    make_base(tmp_path / "base", name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    layer = "transformer.h.1.mlp.c_fc" if name == "gpt2" else "model.layers.1.mlp.down_proj"
    delta = plant(model, layer)
    delta = delta.T if name == "gpt2" else delta
    norm = model.get_submodule("transformer.ln_f" if name == "gpt2" else "model.norm")
    with torch.no_grad():
        norm.weight += 0.25
    model.save_pretrained(tmp_path / "tuned", max_shard_size=shard_size)
    assert (tmp_path / "tuned" / "model.safetensors.index.json").is_file() == (shard_size == "4KB")
    updates = {update.name: update for update in iter_updates(tmp_path / "base", tmp_path / "tuned")}
    assert len(updates) == len(list(model.parameters()))
    moved = updates.pop(layer)
    assert moved.kind == "matrix" and moved.layer == 1 and moved.shape == tuple(delta.shape)
    torch.testing.assert_close(moved.delta_W, delta, rtol=0, atol=1e-6)
    norms = updates.pop("transformer.ln_f" if name == "gpt2" else "model.norm")
    assert norms.kind == "vector" and norms.layer is None
    torch.testing.assert_close(norms.delta_W, torch.full_like(norms.delta_W, 0.25), rtol=0, atol=1e-6)
    assert all(bool((update.delta_W == 0).all()) for update in updates.values())
    tables = {name for name, update in updates.items() if update.kind == "table"}
    expected = {
        "llama": {"model.embed_tokens", "lm_head"},
        "qwen2": {"model.embed_tokens"},
        "gpt2": {"transformer.wte", "transformer.wpe"},
    }
    assert tables == expected[name]


def test_names_without_the_models_prefix_are_understood(tmp_path):
    model = make_base(tmp_path / "base", "gpt2")
    model.save_pretrained(tmp_path / "tuned")
    path = tmp_path / "base" / "model.safetensors"
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    # The files of the first GPT-2 hold the causal mask of every layer too.
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(tensors, path, metadata={"format": "pt"})
    updates = list(iter_updates(tmp_path / "base", tmp_path / "tuned"))
    assert len(updates) == len(list(model.parameters()))
    assert all(update.name.startswith("transformer.") for update in updates)


def test_only_one_tensor_is_read_at_a_time(tmp_path, monkeypatch):
    make_base(tmp_path / "base")
    make_base(tmp_path / "tuned")
    iterator = iter_updates(tmp_path / "base", tmp_path / "tuned")
    read = []
    for name in ("read", "read_rows"):
        original = getattr(TensorFiles, name)
        wrapped = lambda self, key, *rows, original=original: read.append(key) or original(self, key, *rows)  # noqa: E731
        monkeypatch.setattr(TensorFiles, name, wrapped)
    update = next(iterator)
    assert not read
    assert next(iterator).delta_W is not None
    assert len(read) == 2  # the base's and the tuned one's
    assert update.delta_W is not None
    assert len(read) == 4


class TestRefused:
    def test_pickled_weights(self, tmp_path):
        make_base(tmp_path / "base")
        (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"pytorch_model\.bin") as caught:
            list(iter_updates(tmp_path / "base", tmp_path / "base"))
        assert "save_pretrained" in caught.value.mend

    def test_pickled_adapter(self, tmp_path):
        make_base(tmp_path / "base")
        make_adapter(tmp_path / "base", tmp_path / "adapter")
        (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
        with pytest.raises(UserError, match=r"adapter_model\.bin"):
            list(iter_updates(tmp_path / "base", tmp_path / "adapter"))

    def test_another_base(self, tmp_path):
        make_base(tmp_path / "base")
        make_base(tmp_path / "other", "gpt2")
        make_adapter(tmp_path / "base", tmp_path / "adapter")
        with pytest.raises(UserError, match="no such tensor"):
            list(iter_updates(tmp_path / "other", tmp_path / "adapter"))
        with pytest.raises(UserError, match="only"):
            list(iter_updates(tmp_path / "other", tmp_path / "base"))

    @pytest.mark.parametrize("kind", ["adapter", "full"])
    def test_a_base_of_another_shape(self, tmp_path, kind):
        make_base(tmp_path / "base")
        wide = LlamaConfig(**{**LLAMA, "intermediate_size": 32}, tie_word_embeddings=False)
        AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
        make_adapter(tmp_path / "base", tmp_path / "adapter")
        tuned = tmp_path / ("adapter" if kind == "adapter" else "base")
        with pytest.raises(UserError, match="in the base"):
            list(iter_updates(tmp_path / "wide", tuned))

    @pytest.mark.parametrize(
        "options", [{"use_qalora": True}, {"layer_replication": [[0, 2]]}, {"init_lora_weights": "pissa"}]
    )
    def test_what_is_more_than_the_product(self, tmp_path, options):
        make_base(tmp_path / "base")
        make_adapter(tmp_path / "base", tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, **options}))
        with pytest.raises(UserError, match=next(iter(options))):
            list(iter_updates(tmp_path / "base", tmp_path / "adapter"))

    def test_a_missing_shard(self, tmp_path):
        model = make_base(tmp_path / "base")
        model.save_pretrained(tmp_path / "tuned", max_shard_size="4KB")
        shard = sorted((tmp_path / "tuned").glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(UserError, match=shard.name):
            list(iter_updates(tmp_path / "base", tmp_path / "tuned"))


def test_scaling_is_alpha_over_the_square_root_for_rslora(tmp_path):
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter", r=4, lora_alpha=6, use_rslora=True)
    scalings = {update.factors.scaling for update in iter_updates(tmp_path / "base", tmp_path / "adapter")}
    assert scalings == {6 / math.sqrt(4)}


def test_trained_folder(tmp_path):
    with pytest.raises(UserError, match="no trained weights"):
        trained_folder(tmp_path)
    (tmp_path / "model").mkdir()
    assert trained_folder(tmp_path) == tmp_path / "model"
