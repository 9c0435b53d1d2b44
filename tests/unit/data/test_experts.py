"""What of a mixture of experts is no linear layer, told from its files, is what is none in the model."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from architectures import CONFIGS, SHARED, tiny_model
from model_folders import write_tokenizer
from rankscope.cli import DONE, USER_ERROR, main
from rankscope.cost.model_shapes import shape_of_folder
from rankscope.data.architectures import taken_for_experts
from rankscope.data.experts import expert_parameters, named_parameters
from rankscope.data.shapes import layer_matrices, model_type, num_parameters, tensor_shapes
from rankscope.data.targets import check_targets, left_out, resolve_targets, target_modules
from rankscope.errors import UserError
from rankscope.methods.resolve import resolved_options
from rankscope.models.methods.initial import initial_adapter
from rankscope.runs import ArmSettings
from studies import write_study
from tiny import lora_run, tiny_llama

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
# The oldest transformers converts Qwen2-MoE by the list from which PEFT knows what to take for experts.
NEEDS_MODULES = pytest.mark.skipif(bool(taken_for_experts("qwen2_moe")), reason="PEFT takes its names for experts")


def mixtral_model(name: str = "mixtral") -> PreTrainedModel:
    """With embeddings of every token of the tests' tokenizer."""
    architecture, options = (CONFIGS | SHARED)[name]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**options, "vocab_size": 400}))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("mixtral"))
    mixtral_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mixtures with linear layers beside their experts, by architecture."""
    folders = {}
    for name in SHARED:
        folders[name] = write_tokenizer(tmp_path_factory.mktemp(name))
        mixtral_model(name).save_pretrained(folders[name])
    return folders


def linear_layers(model: PreTrainedModel) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not model.lm_head}


def adapted_by_peft(model: PreTrainedModel, targets: list[str]) -> tuple[set[str], bool]:
    """The modules that LoRA is put on, and whether it is put on parameters too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    names = {name.removeprefix("base_model.model.") for name, m in found.named_modules() if hasattr(m, "lora_A")}
    return names, bool(found.peft_config["default"].target_parameters)


def lora(**options: object) -> ArmSettings:
    return ArmSettings(label="lora", method="lora", options=resolved_options("lora", 2, options))


def resolved(folder: Path, **options: object) -> list[str]:
    return resolve_targets(lora(**options), "b", tensor_shapes(folder), model_type(folder)).options["target_modules"]


@pytest.mark.parametrize("name", SHARED)
def test_all_linear_leaves_out_only_what_peft_takes_for_experts(shared: dict[str, Path], name: str) -> None:
    shapes, model = tensor_shapes(shared[name]), mixtral_model(name)
    linear = linear_layers(model)
    assert {matrix.removesuffix(".weight") for matrix in layer_matrices(shapes)} == linear
    targets = resolved(shared[name])
    taken = set(left_out("lora", shapes, name))
    assert adapted_by_peft(model, targets) == (linear - taken, False)
    assert set(target_modules(targets, shapes)) == linear - taken
    assert left_out("vera", shapes, name) == []
    if name == "qwen2_moe" and not taken_for_experts(name):
        assert not taken and "shared_expert.gate_proj" in targets and "gate_proj" not in targets
    if name == "deepseek_v3":
        mlp = [f"{way}_proj" for way in ("down", "gate", "up")]
        assert taken == {
            f"model.layers.{block}.{matrix}" for matrix in mlp for block in ("0.mlp", "1.mlp.shared_experts")
        }
        # What is left out is what PEFT would put experts in the place of.
        adapted, has_parameters = adapted_by_peft(mixtral_model(name), mlp)
        assert has_parameters and not adapted & taken


@NEEDS_MODULES
@pytest.mark.parametrize("targets", [["shared_expert.gate_proj"], ["gate_proj"], r".*shared_expert\.gate_proj"])
def test_a_shared_expert_can_be_named(shared: dict[str, Path], targets: list[str] | str) -> None:
    shapes = tensor_shapes(shared["qwen2_moe"])
    check_targets({"lora": targets}, {"b": shapes})
    assert resolved(shared["qwen2_moe"], target_modules=targets) == targets
    adapted, has_parameters = adapted_by_peft(mixtral_model("qwen2_moe"), targets)
    assert set(target_modules(targets, shapes)) == adapted and len(adapted) == 2 and not has_parameters


@pytest.mark.parametrize("targets", [["shared_experts.gate_proj"], ["q_proj", "gate_proj"], r".*\.up_proj", "mlp"])
def test_a_layer_that_peft_takes_for_experts_is_refused_with_the_reason(
    shared: dict[str, Path], targets: list[str] | str
) -> None:
    with pytest.raises(UserError, match=r"PEFT's LoRA takes names that end in \w+_proj on deepseek_v3 for its experts"):
        resolved(shared["deepseek_v3"], target_modules=targets)


@NEEDS_MODULES
def test_the_plan_says_which_linear_layers_are_left_out(
    shared: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in (("qwen2_moe", 0), ("deepseek_v3", 1)):
        assert main(["plan", str(write_study(tmp_path, STUDY.replace("FOLDER", str(shared[name]))))]) == DONE
        text = " ".join(capsys.readouterr().out.split())
        words = ["arm lora-r2: 6 linear layers of base ", "(mlp.down_proj, mlp.gate_proj, mlp.up_proj, shared_experts."]
        words.append("stay as they are, too: PEFT's LoRA takes their names on deepseek_v3 for experts")
        assert [text.count(part) for part in words] == [expected] * 3


def test_files_and_model_agree(mixtral: Path) -> None:
    model, shapes = mixtral_model(), tensor_shapes(mixtral)
    assert {name.removesuffix(".weight") for name in layer_matrices(shapes)} == linear_layers(model)
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:
            end = ".".join(name.split(".")[-2:])
            sizes[end] = sizes.get(end, 0) + parameter.numel()
    assert expert_parameters(shapes) == sizes and len(sizes) == 2
    assert {"experts.gate_up_proj", "experts.down_proj", "gate.weight"} <= named_parameters(shapes)
    assert num_parameters(shapes) == sum(parameter.numel() for parameter in model.parameters())


def test_experts_that_the_files_call_otherwise_than_the_model(tmp_path: Path) -> None:
    options = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("granitemoe", **options))
    model.save_pretrained(tmp_path)
    shapes = tensor_shapes(tmp_path)
    assert expert_parameters(shapes) == {"experts.gate_up_proj": 2 * 4 * 96 * 32, "experts.down_proj": 2 * 4 * 32 * 48}
    ends = {".".join(name.split(".")[-2:]) for name, _ in model.named_parameters()}
    if "experts.down_proj" not in ends:
        pytest.skip("the installed transformers calls them as the files do")
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(layer_matrices(shapes)) == linear - {"lm_head.weight"}
    assert {"router.weight", *expert_parameters(shapes)} <= named_parameters(shapes) & ends


def test_parameters_that_peft_does_not_find_are_not_passed_over() -> None:
    run = lora_run(2, 1e-3, seed=0, num_steps=2, target_parameters=["experts.nothing"])
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning, match="no parameter was matched"):
        warnings.simplefilter("ignore")  # as outside of tests, where nobody sees it
        initial_adapter(tiny_llama(torch.float32), run)


def test_a_model_without_experts_has_none() -> None:
    shapes = {name: tuple(p.shape) for name, p in tiny_model("llama").named_parameters()}
    assert expert_parameters(shapes) == {} and len(layer_matrices(shapes)) == 14


def test_all_linear_means_linear_layers(mixtral: Path) -> None:
    assert resolved(mixtral) == ["k_proj", "o_proj", "q_proj", "v_proj"]


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


@pytest.mark.parametrize(
    ("named", "left"),
    [
        ("experts.gate_up_proj, experts.down_proj", None),
        ("gate_up_proj, down_proj", None),
        ("gate_up_proj", "experts.down_proj: 18%"),
        ("experts.down_proj", "experts.gate_up_proj: 36%"),
        ("gate.weight", "experts.gate_up_proj, experts.down_proj: 53%"),
    ],
)
def test_the_plan_says_which_experts_are_not_named(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str, left: str | None
) -> None:
    path = write_study(tmp_path, STUDY.replace("FOLDER", str(mixtral)))
    assert main(["plan", str(path), "--set", f"arms.0.target_parameters=[{named}]"]) == DONE
    lines = [line for line in capsys.readouterr().out.splitlines() if "are no linear layers" in line]
    of_lora = [line for line in lines if "arm lora-r2" in line]
    assert len(lines) == 1 + len(of_lora) and len(of_lora) == (left is not None)
    assert left is None or f"({left} of its parameters) are no linear layers and stay as they are" in of_lora[0]


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


def test_bottlenecks_behind_attention_alone_are_said_and_behind_nothing_refused(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = "{method: lora, rank: 2, learning_rate: 1.0e-3}"
    text = STUDY.replace("FOLDER", str(mixtral)).replace(arm, "{method: bottleneck, learning_rate: 1.0e-3}")
    path = write_study(tmp_path, text)
    assert main(["plan", str(path)]) == USER_ERROR
    said = capsys.readouterr().err
    assert "has no MLP that a bottleneck is known to stand behind" in said
    assert "mend: say `placement: houlsby`" in said
    assert main(["plan", str(path), "--set", "arms.0.placement=houlsby"]) == DONE
    said = capsys.readouterr().out
    wanted = f"no MLP that a bottleneck is known to stand behind in 2 of the 2 layers of base {mixtral.name}"
    assert f"arm bottleneck-houlsby: {wanted}" in said
    assert "no attention" not in said


def test_the_plan_says_what_all_linear_leaves_out_of_a_state_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tokenizer(tmp_path / "mamba")
    config = AutoConfig.for_model("mamba", vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = write_study(tmp_path, STUDY.replace("FOLDER", str(folder)))
    assert main(["plan", str(path)]) == DONE
    wanted = (
        "base mamba stay as they are (6: dt_proj, out_proj, x_proj): the code of mamba reads their weights past them"
    )
    assert capsys.readouterr().out.count(wanted) == 2
    assert main(["plan", str(path), "--set", "arms.0.target_modules=mlp"]) == DONE
    assert capsys.readouterr().out.count(wanted) == 2
