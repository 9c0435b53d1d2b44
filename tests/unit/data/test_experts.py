"""What of a mixture of experts is no linear layer, told from its files, is what is none in the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from architectures import CONFIGS, tiny_model
from model_folders import write_tokenizer
from rankscope.cli import DONE, USER_ERROR, main
from rankscope.cost.model_shapes import shape_of_folder
from rankscope.data.experts import expert_parameters, named_parameters
from rankscope.data.shapes import layer_matrices, num_parameters, tensor_shapes
from rankscope.data.targets import resolve_targets
from rankscope.methods.resolve import resolved_options
from rankscope.runs import ArmSettings
from studies import write_study

STUDY = """\
study: tiny
model: FOLDER
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 8, validation: {fraction: 0.25}}
arms:
  - {method: lora, rank: 2, learning_rate: 1.0e-3}
  - {method: vera, rank: 2, learning_rate: 1.0e-3}
optimization: {max_steps: 2, batch_size: 4, max_length: 64}
seeds: [0]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 4, in_domain_for: [facts]}
"""


def mixtral_model() -> PreTrainedModel:
    """With embeddings of every token of the tests' tokenizer."""
    model_type, options = CONFIGS["mixtral"]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**options, "vocab_size": 400}))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("mixtral"))
    mixtral_model().save_pretrained(folder)
    return folder


def test_files_and_model_agree(mixtral: Path) -> None:
    model, shapes = mixtral_model(), tensor_shapes(mixtral)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not model.lm_head}
    assert {name.removesuffix(".weight") for name in layer_matrices(shapes)} == linear
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:
            end = ".".join(name.split(".")[-2:])
            sizes[end] = sizes.get(end, 0) + parameter.numel()
    assert expert_parameters(shapes) == sizes and len(sizes) == 2
    assert {"experts.gate_up_proj", "experts.down_proj", "gate.weight"} <= named_parameters(shapes)
    assert num_parameters(shapes) == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_without_experts_has_none() -> None:
    shapes = {name: tuple(p.shape) for name, p in tiny_model("llama").named_parameters()}
    assert expert_parameters(shapes) == {} and len(layer_matrices(shapes)) == 14


def test_all_linear_means_linear_layers(mixtral: Path) -> None:
    shapes = tensor_shapes(mixtral)
    arm = ArmSettings(label="lora", method="lora", options=resolved_options("lora", 2, {}))
    assert resolve_targets(arm, "b", shapes, "mixtral").options["target_modules"] == [
        "k_proj", "o_proj", "q_proj", "v_proj"
    ]  # fmt: skip


def test_tokens_go_through_two_of_four_experts(mixtral: Path) -> None:
    shape = shape_of_folder(mixtral)
    experts = 2 * 4 * 3 * 32 * 48
    attention = 2 * (2 * 32 * 32 + 2 * 16 * 32)
    assert shape.num_multiplied == attention + experts // 2


def test_the_plan_says_what_is_left_out(mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, STUDY.replace("FOLDER", str(mixtral)))
    assert main(["plan", str(path)]) == DONE
    text = capsys.readouterr().out
    held = "(experts.gate_up_proj, experts.down_proj: 53% of its parameters) are no linear layers and stay as they are"
    assert text.count(held) == 2
    assert text.count("`target_parameters: [experts.gate_up_proj, experts.down_proj]` adapts them") == 1
    assert main(["plan", str(path), "--set", "arms.0.target_parameters=[experts.down_proj]"]) == DONE
    assert capsys.readouterr().out.count("are no linear layers") == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("target_modules=[w1]", ["'w1' is in experts", "target_parameters: [experts.gate_up_proj"]),
        ("target_modules=[gate]", ["'gate' is in experts, or chooses between them"]),
        ("target_modules=mlp", ["has no mlp matrices", "target_parameters"]),
        ("target_parameters=[experts.gate_proj]", ["no parameter of base", "did you mean 'experts.gate_up_proj'?"]),
        ("target_parameters=[experts.w1]", ["target_parameters: no parameter of base"]),
    ],
)
def test_what_names_no_module_or_parameter(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: list[str]
) -> None:
    path = write_study(tmp_path, STUDY.replace("FOLDER", str(mixtral)))
    assert main(["plan", str(path), "--set", f"arms.0.{setting}"]) == USER_ERROR
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_what_does_not_go_with_parameters(mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, STUDY.replace("FOLDER", str(mixtral)))
    for option in ("lora_dropout=0.1", "use_dora=true", "init_lora_weights=olora"):
        settings = ["--set", "arms.0.target_parameters=[experts.down_proj]", "--set", f"arms.0.{option}"]
        assert main(["plan", str(path), *settings]) == USER_ERROR
        assert "target_parameters" in capsys.readouterr().err
