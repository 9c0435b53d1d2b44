"""Methods on architectures other than Llama: trained, read back by their own library, their updates exact."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from peft import LilyConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from architectures import CONFIGS, SHARED, tiny_model
from rankscope.data.architectures import taken_for_experts
from rankscope.data.shapes import model_type, tensor_shapes
from rankscope.data.targets import read_past, resolve_targets, target_modules
from rankscope.errors import UserError
from rankscope.methods.checks import refusal
from rankscope.methods.resolve import resolved_options
from rankscope.methods.table import BY_NAME, ONLY_LINEAR, method_names
from rankscope.methods.table import REFUSED as NO_METHODS
from rankscope.models.merged import CannotMerge
from rankscope.models.methods.bottleneck import load_bottlenecks
from rankscope.models.methods.making import load_tuned
from rankscope.models.weights import iter_updates
from rankscope.runs import ArmSettings, RunSettings
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods
from solo import IDS, logits, losses_of, stopped_and_resumed, trained
from tiny import method_run

OPTIONS = {
    "ia3": {}, "vera": {"rank": 4}, "oft": {"oft_block_size": 8},
    "adalora": {"rank": 2, "init_r": 4, "tinit": 1, "tfinal": 1},
    "prefix_tuning": {"num_virtual_tokens": 3}, "prompt_tuning": {"num_virtual_tokens": 3},
    "bottleneck": {"reduction_factor": 8, "placement": "houlsby"}, "ln_tuning": {},
}  # fmt: skip
_NORMS = "PEFT has no choice of modules for ln_tuning"
# What does not go, and what is said of it before anything is loaded.
REFUSED = {
    ("oft", "gpt2"): "PEFT's oft takes linear layers only, and the matrices of gpt2 are Conv1D",
    ("ia3", "phi3"): "PEFT has no choice of modules for ia3 on phi3",
    ("ln_tuning", "phi3"): _NORMS, ("ln_tuning", "gpt_neox"): _NORMS, ("ln_tuning", "opt"): _NORMS,
    ("ln_tuning", "mixtral"): _NORMS,
    ("prefix_tuning", "falcon"): "heads of falcon share them", ("prefix_tuning", "falcon, ALiBi"): "share them",
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default':"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for name in CONFIGS:
        tiny_model(name).save_pretrained(folder / name)
    return {name: folder / name for name in CONFIGS}


def run_on(folder: Path, method: str) -> RunSettings:
    said = dict(OPTIONS.get(method) or MORE.get(method, {}))
    rank = said.pop("rank", None)
    assert refusal(method, [rank] if rank else [], said) is None
    arm = ArmSettings(label=method, method=method, options=resolved_options(method, rank, said))
    resolved = resolve_targets(arm, "base", tensor_shapes(folder), model_type(folder))
    return method_run("ln_tuning", 3e-2, 0, 4).model_copy(update={"arm": resolved})


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "llama"])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_method_trains_and_is_read_back(bases: dict[str, Path], tmp_path: Path, method: str, name: str) -> None:
    if why := REFUSED.get((method, name)):
        with pytest.raises(UserError, match=re.escape(why)):
            run_on(bases[name], method)
        return
    run = run_on(bases[name], method)
    pack, (state,) = trained(tiny_model(name), [run])
    mine = logits(pack)
    assert all(math.isfinite(log.loss_nats_per_token) for log in state.logs)
    assert (mine - tiny_model(name)(IDS).logits).abs().max() > 1e-4
    pack.save(0, tmp_path)
    torch.testing.assert_close(logits(load_tuned(tiny_model(name), [run], [tmp_path])), mine, rtol=0, atol=1e-5)
    if method == "bottleneck":
        theirs = tiny_model(name)
        load_bottlenecks(theirs, tmp_path / "adapter")
        found = theirs(IDS).logits
    else:
        theirs = PeftModel.from_pretrained(tiny_model(name), str(tmp_path / "adapter")).eval()
        found = theirs(input_ids=IDS).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(found, mine, rtol=0, atol=1e-5)
    assert_updates_are_exact(bases[name], tmp_path / "adapter", name, mine if run.arm.capabilities.merges else None)


def assert_updates_are_exact(base: Path, adapter: Path, name: str, expected: torch.Tensor | None) -> None:
    """The base's tensors plus what is read of the adapter are a plain model with the trained one's logits."""
    if expected is None:
        with pytest.raises(CannotMerge):
            list(iter_updates(base, adapter))
        return
    model = tiny_model(name)
    updates = list(iter_updates(base, adapter))
    assert updates
    with torch.no_grad():
        for update in updates:
            parameters = dict(model.named_parameters())
            parameter = parameters.get(f"{update.name}.weight", parameters.get(update.name))
            delta = torch.cat(list(update.iter_rows())) if update.shape else next(update.iter_rows())
            is_stored_transposed = tuple(parameter.shape) != tuple(delta.shape) or (
                name == "gpt2" and delta.ndim == 2 and update.kind == "matrix"
            )
            parameter += delta.T if is_stored_transposed else delta
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_linear_layers_beside_experts_train_and_are_read_back(tmp_path: Path, name: str) -> None:
    tiny_model(name).save_pretrained(tmp_path / "base")
    run = run_on(tmp_path / "base", "lora")
    pack, _ = trained(tiny_model(name), [run])
    mine = logits(pack)
    assert (mine - tiny_model(name)(IDS).logits).abs().max() > 1e-4
    pack.save(0, tmp_path)
    torch.testing.assert_close(logits(load_tuned(tiny_model(name), [run], [tmp_path])), mine, rtol=0, atol=1e-5)
    theirs = PeftModel.from_pretrained(tiny_model(name), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, mine, rtol=0, atol=1e-5)
    changed = {update.name for update in iter_updates(tmp_path / "base", tmp_path / "adapter")}
    assert changed == set(target_modules(run.arm.options["target_modules"], tensor_shapes(tmp_path / "base")))
    assert ("model.layers.0.mlp.shared_expert.gate_proj" in changed) == (not taken_for_experts(name))
    assert_updates_are_exact(tmp_path / "base", tmp_path / "adapter", name, mine)


# What PEFT's other methods need to be told on matrices of 32 x 96.
MORE = {
    "boft": {"boft_block_size": 4}, "c3a": {"block_size": 8}, "hra": {"rank": 2}, "delora": {"rank": 2},
    "road": {"group_size": 8}, "miss": {"rank": 2}, "fourierft": {"n_frequency": 5}, "waveft": {"n_frequency": 5},
    "vblora": {"vector_length": 8, "num_vectors": 4, "topk": 2}, "osf": {"effective_rank": 2}, "shira": {"rank": 2},
    "glora": {"rank": 2}, "pvera": {"rank": 4}, "deft": {"rank": 2}, "gralora": {"rank": 4}, "psoft": {"rank": 2},
    "lora": {"rank": 2}, "p_tuning": {"num_virtual_tokens": 3},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of each method's own
@pytest.mark.parametrize("method", [name for name in method_names() if name not in ("full", "bottleneck", "ln_tuning")])
def test_which_methods_take_no_conv1d_is_as_peft_has_it(method: str, bases: dict[str, Path]) -> None:
    said = dict(OPTIONS.get(method) or MORE.get(method, {}))
    rank = said.pop("rank", None)
    arm = ArmSettings(label=method, method=method, options=resolved_options(method, rank, said))
    run = method_run("ln_tuning", 1e-2, 0, 3)
    if method in ONLY_LINEAR:
        # osf says nothing of it: it finds no matrix to hold.
        refused = (IndexError, "list index out of range") if method == "osf" else (UserError, "Conv1D|not support")
        with pytest.raises(refused[0], match=refused[1]):
            trained(tiny_model("gpt2"), [run.model_copy(update={"arm": arm})])
    else:
        resolved = resolve_targets(arm, "base", tensor_shapes(bases["gpt2"]), "gpt2")
        trained(tiny_model("gpt2"), [run.model_copy(update={"arm": resolved})])


MIXED = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
OTHERS = sorted(set(method_names()) - set(BY_NAME))


@pytest.mark.filterwarnings("ignore")  # of each method's own
@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_of_peft_trains_and_is_read_back(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    run = run_on(bases["llama"], method)
    run = run.model_copy(update={"learning_rate": 1e-2})
    pack, (state,) = trained(tiny_model("llama"), [run])
    mine = logits(pack)
    assert len(state.logs) == run.num_steps and all(math.isfinite(log.loss_nats_per_token) for log in state.logs)
    assert (mine - tiny_model("llama")(IDS).logits).abs().max() > 1e-5
    pack.save(0, tmp_path)
    torch.testing.assert_close(logits(load_tuned(tiny_model("llama"), [run], [tmp_path])), mine, rtol=0, atol=1e-5)
    theirs = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, mine, rtol=0, atol=1e-5)
    is_merged = run.arm.capabilities.merges or method == "beft"  # which goes into biases, and this base has them
    assert_updates_are_exact(bases["llama"], tmp_path / "adapter", "llama", mine if is_merged else None)


ITEMS = [
    Choice(tuple(range(3, 9)), ((10, 11, 12), (13, 14), (15,), (16, 17, 18, 19))),
    Choice((5, 6), ((7, 8), (9, 9))),
]


@pytest.mark.filterwarnings("ignore")  # of each method's own
@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_of_peft_is_scored_and_goes_on_where_it_stopped(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    run = run_on(bases["llama"], method).model_copy(update={"learning_rate": 1e-2})
    pack, (whole,) = trained(tiny_model("llama"), [run])
    pack.route((0,), (1,), is_training=False)
    trees = checked_option_trees(pack.model, ITEMS, 64, 4096)
    assert trees == OptionTrees(None)
    found, alone = (
        option_log_likelihoods(pack.model, ITEMS, decided, 64, 4096).log_likelihoods
        for decided in (trees, OptionTrees("for the test"))
    )
    for one, other in zip(found, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-4)

    resumed = stopped_and_resumed(lambda: tiny_model("llama"), run, tmp_path, after_steps=2)
    assert losses_of(resumed) == losses_of(whole)


STATE_SPACES = {
    "mamba": {"state_size": 4},
    "falcon_mamba": {"state_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "jamba": {**MIXED, "attn_layer_offset": 1, "attn_layer_period": 2, "mamba_d_state": 4, "num_experts": 1},
    "bamba": {**MIXED, **MAMBA_2, "attn_layer_indices": [1]},
    "falcon_h1": {**MIXED, **MAMBA_2, "mamba_d_ssm": 64},
    "granitemoehybrid": {**MIXED, **MAMBA_2, "layer_types": ["mamba", "attention"], "num_local_experts": 0},
}


def state_space(name: str) -> PreTrainedModel:
    if name == "falcon_h1" and transformers.__version__.startswith("5.4."):
        pytest.skip("transformers 5.4 refuses the defaults of its own Falcon-H1")
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.1}
    config = AutoConfig.for_model(name, **sizes, **STATE_SPACES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.filterwarnings("ignore")  # of kernels that are not there
@pytest.mark.parametrize("method", ["lora", "vera"])
@pytest.mark.parametrize("name", STATE_SPACES)
def test_all_linear_leaves_out_what_a_state_space_reads_past_its_layers(name: str, method: str, tmp_path: Path) -> None:
    """Each matrix that is adapted has a gradient; what is left out is what its code names a weight of."""
    state_space(name).save_pretrained(tmp_path / "base")
    shapes, run = tensor_shapes(tmp_path / "base"), run_on(tmp_path / "base", method)
    left = {path.rpartition(".")[2] for path in read_past(shapes, name)}
    code = inspect.getsource(inspect.getmodule(type(state_space(name))))
    read = set(re.findall(r"(?:=|^) *self\.(\w+_proj)\.weight(?:,| @)", code, re.MULTILINE))
    assert left == read and left.isdisjoint(run.arm.options["target_modules"])
    pack, _ = trained(state_space(name), [run])
    assert all(p.grad is not None for group in pack.parameter_groups(0) for p in group["params"])
    pack.save(0, tmp_path)
    mine = logits(pack)
    theirs = PeftModel.from_pretrained(state_space(name), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, mine, rtol=0, atol=1e-5)
    named = ArmSettings(label=method, method=method, options=run.arm.options | {"target_modules": [min(left)]})
    with pytest.raises(UserError, match=rf"the code of {name} reads \w+ of base base past its layer"):
        resolve_targets(named, "base", shapes, name)


@pytest.mark.filterwarnings("ignore")  # of kernels that are not there
@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("name", ["mamba", "bamba", "jamba", "falcon_h1"])
def test_mlp_leaves_out_what_a_state_space_reads_past_its_layers(name: str, method: str, tmp_path: Path) -> None:
    state_space(name).save_pretrained(tmp_path / "base")
    shapes, run = tensor_shapes(tmp_path / "base"), run_on(tmp_path / "base", "lora")

    def resolved(**said: object) -> ArmSettings:
        rank, more = (4, {}) if method == "lora" else (None, {"feedforward_modules": []})
        options = resolved_options(method, rank, more | said)
        return resolve_targets(ArmSettings(label=method, method=method, options=options), "base", shapes, name)

    left = {path.rpartition(".")[2] for path in read_past(shapes, name)}
    arm = resolved(target_modules="mlp")
    mlp = arm.options["target_modules"]
    assert "in_proj" in mlp and left.isdisjoint(mlp) and set(mlp) <= set(run.arm.options["target_modules"])
    pack, _ = trained(state_space(name), [run.model_copy(update={"arm": arm})])
    assert all(p.grad is not None for group in pack.parameter_groups(0) for p in group["params"])
    named = ["in_proj", *sorted(left)]
    assert resolved(target_modules=named, exclude_modules=sorted(left)).options["target_modules"] == named
    if name == "mamba":
        with pytest.raises(UserError, match="no attention matrices") as caught:
            resolved(target_modules="attention")
        assert caught.value.mend == "name some of in_proj"


def test_lily_is_refused_because_it_looks_ahead() -> None:
    """A token's logits move with a later token and with another text: where they no longer do, it can be had."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(tiny_model("llama"), LilyConfig(r=4, num_B=2, stride_A=1, target_modules=["v_proj"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lily" in name:
                    torch.nn.init.normal_(parameter)
    later = torch.cat([IDS[:, :-1], IDS[:, :1]], dim=1)
    with torch.no_grad():
        one, other, beside = (
            model(input_ids=ids).logits[0, 0] for ids in (IDS, later, torch.cat([IDS, later.flip(1)]))
        )
    assert (one - other).abs().max() > 1e-4 and (one - beside).abs().max() > 1e-4
    assert "lily" in NO_METHODS and "lily" not in method_names()
