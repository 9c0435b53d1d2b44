"""The number of trainable parameters, from shapes alone, is the number that a run's optimizer gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from architectures import CONFIGS, OWN_NAMES, tiny_model
from rankscope.methods.table import BY_NAME
from rankscope.models.methods.making import make_trainable
from rankscope.runs import ArmSettings
from rankscope.sizes import num_trainable
from solo import calibration
from tiny import method_run, tiny_llama

CASES = [
    ("full", {}),
    ("full", {"layers": [0], "freeze_embeddings": True}),
    ("lora", {"rank": 4}),
    ("lora", {"rank": 4, "target_modules": "attention", "layers_to_transform": [1]}),
    ("lora", {"rank": 4, "use_dora": True, "rank_pattern": {"q_proj": 2}}),
    ("lora", {"rank": 4, "init_lora_weights": "corda"}),
    ("adalora", {"rank": 2, "init_r": 5}),
    ("ia3", {}),
    ("vera", {"rank": 8}),
    ("oft", {"oft_block_size": 8}),
    ("oft", {"rank": 4}),
    ("prompt_tuning", {"num_virtual_tokens": 5}),
    ("p_tuning", {"num_virtual_tokens": 5, "encoder_hidden_size": 12}),
    ("prefix_tuning", {"num_virtual_tokens": 5}),
    ("ln_tuning", {}),
    ("bottleneck", {"placement": "houlsby", "reduction_factor": 8}),
    ("bottleneck", {"placement": "pfeiffer", "reduction_factor": 8}),
]
UNCOUNTED = [
    ("lora", {"rank": 4, "modules_to_save": ["norm"]}),
    ("lora", {"rank": 4, "init_lora_weights": "eva"}),
    ("p_tuning", {"num_virtual_tokens": 5, "encoder_reparameterization_type": "LSTM"}),
    ("loha", {"rank": 4}),
]


def shapes() -> dict[str, tuple[int, ...]]:
    model = tiny_llama(torch.float32)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}  # a tied head once, as in files


def test_every_named_method_is_counted() -> None:
    assert {method for method, _ in CASES} == set(BY_NAME)


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize(("method", "said"), CASES)
def test_it_is_what_the_optimizer_gets(method: str, said: dict) -> None:
    run = method_run(method, 1e-3, 0, 4, **said)
    pack = make_trainable(tiny_llama(torch.float32), [run], calibration)
    counted = sum(p.numel() for group in pack.parameter_groups(0) for p in group["params"])
    assert num_trainable(run.arm, shapes()) == counted


@pytest.mark.parametrize(("method", "said"), UNCOUNTED)
def test_what_only_training_can_tell_is_not_guessed(method: str, said: dict) -> None:
    assert num_trainable(method_run(method, 1e-3, 0, 4, **said).arm, shapes()) is None


def test_gpt2s_matrices_lie_transposed() -> None:
    gpt2 = {"wte.weight": (50, 8), "h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_proj.weight": (8, 8),
            "h.0.mlp.c_fc.weight": (8, 32), "h.0.mlp.c_proj.weight": (32, 8)}  # fmt: skip
    options = {"r": 2, "use_dora": True, "target_modules": "all-linear"}
    arm = ArmSettings(label="lora", method="lora", options=options)
    pairs = [(24, 8), (8, 8), (32, 8), (8, 32)]
    assert num_trainable(arm, gpt2) == sum(2 * (d_out + d_in) + d_out for d_out, d_in in pairs)
    arm = ArmSettings(label="b", method="bottleneck", options={"placement": "houlsby", "reduction_factor": 4})
    assert num_trainable(arm, gpt2) == 2 * (2 * 8 * 2 + 2 + 8)


@pytest.mark.parametrize("name", [*CONFIGS, *OWN_NAMES])
def test_what_is_not_embeddings_or_head_is_counted_on_every_architecture(name: str) -> None:
    model = tiny_model(name)
    run = method_run("full", 1e-3, 0, 1, layers=[1], freeze_embeddings=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    pack = make_trainable(model, [run])
    trained = {id(p) for group in pack.parameter_groups(0) for p in group["params"]}
    assert num_trainable(run.arm, shapes) == sum(p.numel() for p in model.parameters() if id(p) in trained)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    assert not any(id(module.weight) in trained for module in [*tables, model.get_output_embeddings()])


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_gpt1_names_its_embeddings_in_its_own_way(method: str) -> None:
    model = tiny_model("openai-gpt")
    said = {"num_virtual_tokens": 5} if method == "prompt_tuning" else {"rank": 2, "target_modules": ["c_fc", "c_proj"]}
    run = method_run(method, 1e-3, 0, 1, **said)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    pack = make_trainable(model, [run])
    assert num_trainable(run.arm, shapes) == sum(p.numel() for g in pack.parameter_groups(0) for p in g["params"])
