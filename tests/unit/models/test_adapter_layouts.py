"""Adapters of the forms and layouts that PEFT and the trainers on it write, against PEFT's own merge."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config

from model_folders import write_tokenizer
from rankscope.errors import UserError
from rankscope.models.weights import read_tuned

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters.*:UserWarning"),
]

SIZES = dict(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder for each architecture."""
    root = tmp_path_factory.mktemp("bases")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, config in CONFIGS.items():
            AutoModelForCausalLM.from_config(config).eval().save_pretrained(root / name)
    return root


def adapt(base, folder, **options):
    """A PEFT adapter with random numbers in all that it trains."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


def merged_difference(base, adapter):
    """By parameter, PEFT's merged weights less the base's, in float64."""
    before = AutoModelForCausalLM.from_pretrained(base).double()
    old = {name: parameter.detach().clone() for name, parameter in before.named_parameters(remove_duplicate=False)}
    model = AutoModelForCausalLM.from_pretrained(base).double()
    tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    after = dict(tuned.double().merge_and_unload().named_parameters(remove_duplicate=False))
    return {name: after[name].detach() - old[name] for name in old}


def written_out(update):
    return update.factors.delta_W() if update.read_factors else update.delta_W


def check_against_peft(base, adapter, transposed=False):
    """Every update is what PEFT's merge changed, and nothing else changed; returns the updates by name."""
    expected = merged_difference(base, adapter)
    updates = {update.name: update for update in read_tuned(base, adapter).updates}
    for name, update in updates.items():
        stored = expected.pop(name if name in expected else f"{name}.weight")
        delta = stored.T if transposed and update.kind == "matrix" else stored
        torch.testing.assert_close(written_out(update), delta, rtol=1e-9, atol=1e-10)
        assert delta.abs().max() > 0.01
        rows = torch.cat(list(update.iter_rows()))
        torch.testing.assert_close(rows, delta, rtol=1e-9, atol=1e-10)
    assert all(bool((rest == 0).all()) for rest in expected.values()), [k for k, v in expected.items() if v.any()]
    return updates


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dora(bases, tmp_path, name):
    targets = ["c_attn", "c_proj"] if name == "gpt2" else ["q_proj", "down_proj"]
    adapt(bases / name, tmp_path, use_dora=True, target_modules=targets, fan_in_fan_out=name == "gpt2")
    updates = check_against_peft(bases / name, tmp_path, transposed=name == "gpt2")
    assert len(updates) == (6 if name == "gpt2" else 4)
    assert all(update.rank == 3 and update.factors is None for update in updates.values())


@pytest.mark.filterwarnings("ignore:.*dora.*:UserWarning")
def test_dora_of_tables(bases, tmp_path, monkeypatch):
    monkeypatch.setattr("rankscope.models.updates.NUMBERS_AT_ONCE", 100)
    monkeypatch.setattr("rankscope.models.lora_tensors.NUMBERS_AT_ONCE", 100)
    adapt(bases / "llama", tmp_path, use_dora=True, target_modules=["embed_tokens", "lm_head"])
    updates = check_against_peft(bases / "llama", tmp_path)
    assert {update.kind for update in updates.values()} == {"table"}
    assert len(list(updates["lm_head"].iter_rows())) == 9  # 6 rows of 16 at once


# PEFT takes the bias of B for a shard.
@pytest.mark.filterwarnings("ignore:.*invalid shape.*:peft.utils.warning.PeftWarning")
def test_bias_of_the_second_matrix(bases, tmp_path):
    adapt(bases / "llama", tmp_path, lora_bias=True)
    updates = check_against_peft(bases / "llama", tmp_path)
    biases = [update for update in updates.values() if update.name.endswith(".bias")]
    assert len(biases) == 2 and {update.kind for update in biases} == {"vector"}


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_trained_beside(bases, tmp_path, bias):
    adapt(bases / "qwen2", tmp_path, bias=bias)
    updates = check_against_peft(bases / "qwen2", tmp_path)
    assert sum(update.name.endswith(".bias") for update in updates.values()) == (6 if bias == "all" else 2)


@pytest.mark.parametrize("tokens", [[1, 4, 49], {"embed_tokens": [7, 0]}], ids=["list", "by module"])
def test_trained_tokens(bases, tmp_path, tokens):
    adapt(bases / "llama", tmp_path, trainable_token_indices=tokens)
    updates = check_against_peft(bases / "llama", tmp_path)
    moved = updates["model.embed_tokens"].delta_W.abs().sum(1).nonzero().flatten().tolist()
    assert moved == sorted(tokens if isinstance(tokens, list) else tokens["embed_tokens"])


def test_module_saved_whole_beside_lora(bases, tmp_path):
    adapt(bases / "llama", tmp_path, modules_to_save=["lm_head", "norm"])
    updates = check_against_peft(bases / "llama", tmp_path)
    assert updates["lm_head"].kind == "table" and updates["model.norm"].kind == "vector"


def test_tied_tables_saved_under_both_names_come_apart(bases, tmp_path):
    adapt(bases / "qwen2", tmp_path, modules_to_save=["lm_head", "embed_tokens"])
    names = [update.name for update in read_tuned(bases / "qwen2", tmp_path).updates if update.kind == "table"]
    assert names == ["lm_head", "model.embed_tokens"]
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    names = [update.name for update in read_tuned(bases / "qwen2", tmp_path).updates if update.kind == "table"]
    assert names == ["model.embed_tokens"]  # still one weight, so it counts once


@pytest.mark.parametrize(
    "parameters", [["experts.gate_up_proj", "experts.down_proj"], ["experts.down_proj"], ["experts.gate_up_proj"]]
)
def test_experts_in_one_parameter(bases, tmp_path, parameters):
    adapt(bases / "mixtral", tmp_path, target_parameters=parameters)
    expected = merged_difference(bases / "mixtral", tmp_path)
    updates = read_tuned(bases / "mixtral", tmp_path).updates
    base = AutoModelForCausalLM.from_pretrained(bases / "mixtral")
    experts = [update for update in updates if ".experts." in update.name]
    assert len(experts) == 2 * 3 * len(parameters) and len(updates) == len(experts) + 2
    for update in experts:
        assert update.kind == "matrix" and update.rank == 3 and update.layer in (0, 1)
        module, expert, parameter = update.name.rsplit(".", 2)
        delta = expected[f"{module}.{parameter}"][int(expert)]
        torch.testing.assert_close(update.factors.delta_W(), delta, rtol=1e-9, atol=1e-10)
        W0 = base.get_parameter(f"{module}.{parameter}")[int(expert)]
        assert torch.equal(update.read_W0(), W0) and update.shape == tuple(W0.shape)


def test_experts_of_older_versions_have_modules_of_their_own(bases, tmp_path):
    """With transformers 4 an expert's projection was a module, named as in the model's files."""
    adapt(bases / "mixtral", tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors, A, B = load_file(path), torch.randn(2, 16), torch.randn(24, 2)
    name = "base_model.model.model.layers.1.block_sparse_moe.experts.2.w1"
    save_file({**tensors, f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, path)
    updates = {update.name: update for update in read_tuned(bases / "mixtral", tmp_path).updates}
    expert = updates["model.layers.1.block_sparse_moe.experts.2.w1"]
    assert expert.module == "w1" and expert.layer == 1
    torch.testing.assert_close(expert.factors.delta_W(), 5 / 2 * (B.double() @ A.double()))
    stored = load_file(bases / "mixtral" / "model.safetensors")
    assert torch.equal(expert.read_W0(), stored["model.layers.1.block_sparse_moe.experts.2.w1.weight"])


def test_full_mixture_of_experts(bases, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(bases / "mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2] += 0.5
    model.save_pretrained(tmp_path)
    updates = {update.name: update for update in read_tuned(bases / "mixtral", tmp_path).updates}
    moved = [name for name, update in updates.items() if bool(update.delta_W.any())]
    assert moved == ["model.layers.1.block_sparse_moe.experts.2.w2"]


class TestLayouts:
    """What trainers make of PEFT's names; the numbers are those of the folder that PEFT wrote."""

    @pytest.fixture
    def adapter(self, bases, tmp_path):
        folder = tmp_path / "adapter"
        adapt(bases / "llama", folder, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
        return folder

    def rewritten(self, adapter, rename, **settings):
        folder = adapter.with_name("other")
        shutil.copytree(adapter, folder)
        path = folder / "adapter_model.safetensors"
        save_file({rename(key): tensor for key, tensor in load_file(path).items()}, path)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        return folder

    def same(self, base, one, other):
        first, second = read_tuned(base, one).updates, read_tuned(base, other).updates
        assert [update.name for update in first] == [update.name for update in second]
        assert len(first) == 5
        for before, after in zip(first, second, strict=True):
            assert torch.equal(written_out(before), written_out(after))

    @pytest.mark.parametrize(
        "rename",
        [
            lambda key: key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
            lambda key: key.removeprefix("base_model.model."),
            lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
            lambda key: key.replace(".layers.", "._fsdp_wrapped_module.layers."),
            lambda key: key.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."),
            lambda key: f"module.{key}",
            lambda key: key.replace("lm_head.weight", "lm_head.modules_to_save.default.weight"),
            lambda key: key.replace("lm_head.weight", "lm_head.modules_to_save.mine.weight"),
            lambda key: key.replace("lm_head.weight", "lm_head.modules_to_save.weight"),
        ],
        ids=["adapter name", "no prefix", "compile", "fsdp", "checkpointing", "ddp", "saved", "named", "unnamed"],
    )
    def test_names(self, bases, adapter, rename):
        self.same(bases / "llama", adapter, self.rewritten(adapter, rename))

    @pytest.mark.parametrize(
        "settings",
        [
            # Unsloth: a regular expression as target, a quantised base's name, its own mark.
            {
                "base_model_name_or_path": "unsloth/tiny-bnb-4bit",
                "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
                "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)",
            },
            # Early PEFT (Axolotl, LLaMA-Factory of that time): few keys, null where a default is.
            {"fan_in_fan_out": None, "loftq_config": None, "alpha_pattern": None, "rank_pattern": None},
        ],
        ids=["unsloth", "early"],
    )
    def test_settings(self, bases, adapter, settings):
        self.same(bases / "llama", adapter, self.rewritten(adapter, lambda key: key, **settings))

    def test_keys_of_other_tools_are_named(self, bases, adapter):
        other = self.rewritten(adapter, lambda key: key, lora_dtype="bfloat16", lorap_lr_ratio=16.0, peft_version="9")
        self.same(bases / "llama", adapter, other)
        (note,) = read_tuned(bases / "llama", other).notes
        assert "lora_dtype, lorap_lr_ratio" in note

    def test_what_trainers_leave_beside_it_is_left_alone(self, bases, adapter):
        """TRL, LLaMA-Factory and ms-swift put pickles of their state there, Axolotl the base's configuration."""
        other = self.rewritten(adapter, lambda key: key)
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (other / name).write_bytes(b"\x80\x04N.")
        for name in ("args.json", "additional_config.json", "trainer_state.json"):
            (other / name).write_text("{}")
        shutil.copy(bases / "llama" / "config.json", other)
        self.same(bases / "llama", adapter, other)


class TestResized:
    @pytest.mark.parametrize("size", [53, 48])
    def test_tables_of_an_adapter(self, bases, tmp_path, size):
        model = AutoModelForCausalLM.from_pretrained(bases / "llama")
        model.resize_token_embeddings(size)
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        tuned = get_peft_model(model, config)
        with torch.no_grad():
            tuned.base_model.model.lm_head.modules_to_save["default"].weight += 0.25
        tuned.save_pretrained(tmp_path)
        found = read_tuned(bases / "llama", tmp_path)
        updates = {update.name: update for update in found.updates}
        head = updates["lm_head"]
        assert head.num_added_rows == size - 50 and head.shape == (min(size, 50), 16)
        torch.testing.assert_close(head.delta_W, torch.full_like(head.delta_W, 0.25), rtol=0, atol=1e-6)
        assert not updates["model.embed_tokens"].delta_W.any()
        assert sum("only the rows of both" in note for note in found.notes) == 2

    def test_a_whole_model(self, bases, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(bases / "qwen2")
        model.resize_token_embeddings(60)
        model.save_pretrained(tmp_path)
        found = read_tuned(bases / "qwen2", tmp_path)
        assert {update.name: update.num_added_rows for update in found.updates if update.num_added_rows} == {
            "model.embed_tokens": 10
        }
        assert not any(bool(update.delta_W.any()) for update in found.updates)

    def test_factors_of_a_resized_head(self, bases, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(bases / "llama")
        model.resize_token_embeddings(53)
        tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", "embed_tokens"]))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        tuned.save_pretrained(tmp_path)
        updates = {update.name: update for update in read_tuned(bases / "llama", tmp_path).updates}
        for name, update in updates.items():
            layer = tuned.base_model.model.get_submodule(name)
            delta = layer.get_delta_weight("default").detach().double()[:50]
            torch.testing.assert_close(update.factors.delta_W(), delta, rtol=1e-5, atol=1e-6)
        assert len(updates) == 2


class TestRefused:
    @pytest.fixture
    def adapter(self, bases, tmp_path):
        adapt(bases / "llama", tmp_path)
        return tmp_path

    def change(self, adapter, change):
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    def refused(self, base, adapter, match):
        with pytest.raises(UserError, match=match) as caught:
            for update in read_tuned(base, adapter).updates:
                written_out(update)
        assert caught.value.mend
        return caught.value

    Q = "base_model.model.model.layers.0.self_attn.q_proj"

    @pytest.mark.parametrize("half", ["A", "B"])
    def test_half_of_a_pair(self, bases, adapter, half):
        self.change(adapter, lambda tensors: tensors.pop(f"{self.Q}.lora_{half}.weight"))
        error = self.refused(bases / "llama", adapter, f"no lora_{half}")
        assert "layers.0.self_attn.q_proj" in error.what

    def test_factors_that_do_not_fit_each_other(self, bases, adapter):
        self.change(adapter, lambda tensors: tensors.update({f"{self.Q}.lora_A.weight": torch.zeros(2, 16)}))
        self.refused(bases / "llama", adapter, "do not fit each other")

    def test_a_shard_that_was_not_gathered(self, bases, adapter):
        self.change(adapter, lambda tensors: tensors.update({f"{self.Q}.lora_A.weight": torch.zeros(0)}))
        assert "ZeRO-3" in self.refused(bases / "llama", adapter, "saved in part").mend

    def test_numbers_that_are_not_finite(self, bases, adapter):
        self.change(adapter, lambda tensors: tensors[f"{self.Q}.lora_A.weight"].fill_(float("nan")))
        self.refused(bases / "llama", adapter, "not finite")

    def test_a_layer_that_the_base_does_not_have(self, bases, adapter):
        def move(tensors):
            for half in "AB":
                key = f"{self.Q}.lora_{half}.weight"
                tensors[key.replace("layers.0", "layers.7")] = tensors.pop(key)

        self.change(adapter, move)
        self.refused(bases / "llama", adapter, "no such tensor")

    def test_two_adapters_in_one_folder(self, bases, adapter):
        self.change(adapter, lambda tensors: tensors.update({f"{self.Q}.lora_A.two.weight": torch.zeros(3, 16)}))
        self.refused(bases / "llama", adapter, "two tensors")

    def test_a_part_that_is_not_known(self, bases, adapter):
        self.change(adapter, lambda tensors: tensors.update({f"{self.Q}.lora_E": torch.zeros(3)}))
        self.refused(bases / "llama", adapter, "no part of LoRA")

    def test_a_file_cut_short(self, bases, adapter):
        path = adapter / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        self.refused(bases / "llama", adapter, "cannot be read as safetensors")

    def test_another_kind_of_adapter(self, bases, adapter):
        (adapter / "adapter_config.json").write_text('{"peft_type": "IA3"}')
        with pytest.raises(UserError, match="PEFT cannot load it"):
            read_tuned(bases / "llama", adapter)
        (adapter / "adapter_config.json").write_text("{")
        with pytest.raises(UserError, match="no JSON"):
            read_tuned(bases / "llama", adapter)

    def test_a_quantised_base(self, bases, adapter, tmp_path):
        base = tmp_path / "quantised"
        shutil.copytree(bases / "llama", base)
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (base / "config.json").write_text(json.dumps(config))
        self.refused(base, adapter, "quantised")

    def test_a_base_without_a_known_architecture(self, bases, adapter, tmp_path):
        base = tmp_path / "foreign"
        shutil.copytree(bases / "llama", base)
        (base / "config.json").write_text('{"model_type": "nothing"}')
        with pytest.raises(UserError, match=r"no model that transformers knows"):
            read_tuned(base, adapter)

    def test_the_command_that_converts_a_pickled_adapter_works(self, bases, adapter, capsys):
        path = adapter / "adapter_model.safetensors"
        torch.save(load_file(path), adapter / "adapter_model.bin")
        kept = load_file(path)
        path.unlink()
        error = self.refused(bases / "llama", adapter, r"pickle \(adapter_model\.bin\)")
        code = error.mend.partition('-c "')[2].rstrip('"')
        exec(code, {})  # the test made the pickle itself
        assert all(torch.equal(tensor, kept[key]) for key, tensor in load_file(path).items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's trainer warns of its own defaults
def test_an_adapter_that_trl_trained(tmp_path):
    """TRL's trainer leaves its own files beside the adapter, and in folders of checkpoints."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    write_tokenizer(tmp_path / "base")
    config = LlamaConfig(**{**SIZES, "vocab_size": 400})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, save_steps=1, report_to=[],
        use_cpu=True, learning_rate=0.1, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=str(tmp_path / "base"),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"text": ["What does the farmer sell? eggs", "The quick fox"] * 2}),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out" / "training_args.bin").is_file()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        updates = check_against_peft(tmp_path / "base", folder)
        assert len(updates) == 14
