"""Every named method trains as in PEFT alone, resumes bit for bit, and is read back by its own library."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from rankscope.methods.table import BY_NAME
from rankscope.models.methods.bottleneck import load_bottlenecks
from rankscope.models.methods.making import load_tuned
from rankscope.models.methods.peft import peft_config
from rankscope.runs import RunSettings
from solo import (
    IDS,
    logits,
    losses_of,
    reference,
    stopped_and_resumed,
    trained,
)
from tiny import method_run, tiny_llama


@dataclass(frozen=True)
class Case:
    method: str
    said: dict = field(default_factory=dict)
    rate: float = 3e-3

    def run(self, num_steps: int, seed: int = 0) -> RunSettings:
        return method_run(self.method, self.rate, seed, num_steps, **self.said)


CASES = {
    "full": Case("full"),
    "full-partial": Case("full", {"layers": [-1], "freeze_embeddings": True}),
    "lora": Case("lora", {"rank": 4}),
    **{
        f"lora-{name}": Case("lora", {"rank": 4, "init_lora_weights": name})
        for name in ("gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora_ga")
    },
    "lora-dora": Case("lora", {"rank": 4, "use_dora": True}),
    "lora-plus": Case("lora", {"rank": 4, "loraplus_lr_ratio": 16}),
    "lora-alone": Case("lora", {"rank": 4, "modules_to_save": ["norm"], "lora_dropout": 0.1}),
    "adalora": Case("adalora", {"rank": 2, "init_r": 4, "tinit": 1, "tfinal": 2, "lora_dropout": 0.1}, 3e-2),
    "ia3": Case("ia3", rate=3e-2),
    "vera": Case("vera", {"rank": 8, "vera_dropout": 0.1}),
    "oft": Case("oft", {"oft_block_size": 8}),
    "prompt_tuning": Case("prompt_tuning", {"num_virtual_tokens": 5}, 3e-2),
    "p_tuning": Case("p_tuning", {"num_virtual_tokens": 5}),
    "prefix_tuning": Case("prefix_tuning", {"num_virtual_tokens": 5}, 3e-2),
    "ln_tuning": Case("ln_tuning", rate=3e-2),
    "bottleneck": Case("bottleneck", {"reduction_factor": 8, "placement": "houlsby"}),
    "bottleneck-pfeiffer": Case("bottleneck", {"reduction_factor": 8, "placement": "pfeiffer"}),
    "loha": Case("loha", {"rank": 4}),  # one of the methods that only PEFT knows
}
IN_PEFT = [name for name in CASES if not name.startswith(("full", "lora", "bottleneck"))]
pytestmark = [
    # PEFT warns of its own tuner on the classes it is made for, and of the ranks that its own AdaLoRA has written.
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning"),
]
BY_ID = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


def test_every_named_method_has_a_case() -> None:
    assert {case.method for case in CASES.values()} >= set(BY_NAME)


@pytest.mark.parametrize("name", IN_PEFT)
def test_a_run_equals_peft_alone_in_float64(name: str) -> None:
    run = CASES[name].run(6)
    run = run.model_copy(update={"arm": run.arm.model_copy(update={"options": without_dropout(run.arm.options)})})
    _, (state,) = trained(tiny_llama(torch.float64), [run], max_tokens=60)
    model = tiny_llama(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        wrapped = get_peft_model(model, peft_config(model, run))
    after = wrapped.base_model.update_and_allocate if name == "adalora" else lambda step: None
    groups = None
    if name == "ln_tuning":  # normalisations do not decay
        groups = [{"params": [p for p in wrapped.parameters() if p.requires_grad], "weight_decay": 0.0}]
    data_losses: list[float] = []
    if name == "adalora":
        inner = wrapped.base_model.model.forward

        def recorded(**inputs: object) -> object:
            output = inner(**inputs)
            data_losses.append(output.loss.item())
            return output

        wrapped.base_model.model.forward = recorded
    expected = reference(wrapped, run, groups, after)
    if name == "adalora":
        # PEFT's losses hold the orthogonality loss, ours are of the data alone; later ones depend on it all the same.
        expected = data_losses
    # PEFT holds p-tuning's network in float32 whatever the base is.
    assert losses_of(state) == pytest.approx(expected, rel=1e-6 if name == "p_tuning" else 1e-8)


def without_dropout(options: dict) -> dict:
    return {name: 0.0 if "dropout" in name else value for name, value in options.items()}


@BY_ID
def test_a_saved_run_is_read_back_with_the_same_logits(case: Case, tmp_path: Path) -> None:
    run = case.run(4)
    pack, _ = trained(tiny_llama(torch.float32), [run])
    mine = logits(pack)
    files = pack.save(0, tmp_path)
    assert files and all((tmp_path / name).is_file() for name in files)
    assert (mine - tiny_llama(torch.float32)(IDS).logits).abs().max() > 1e-4
    again = load_tuned(tiny_llama(torch.float32), [run], [tmp_path])
    torch.testing.assert_close(logits(again), mine, rtol=0, atol=1e-6)
    if run.arm.capabilities.saves == "model":
        theirs = type(tiny_llama(torch.float32)).from_pretrained(tmp_path / "model")(IDS).logits
    elif case.method == "bottleneck":
        model = tiny_llama(torch.float32)
        load_bottlenecks(model, tmp_path / "adapter")
        theirs = model(IDS).logits
    else:
        peft = PeftModel.from_pretrained(tiny_llama(torch.float32), str(tmp_path / "adapter"))
        theirs = peft(input_ids=IDS).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-6)


@BY_ID
def test_a_stopped_run_ends_as_if_it_had_not_been(case: Case, tmp_path: Path) -> None:
    run = case.run(6)
    _, (whole,) = trained(tiny_llama(torch.float32), [run])

    resumed = stopped_and_resumed(lambda: tiny_llama(torch.float32), run, tmp_path, after_steps=4)
    assert losses_of(resumed) == losses_of(whole)
    assert resumed.validations == whole.validations


@BY_ID
def test_the_base_is_as_before_where_the_pack_says_so(case: Case) -> None:
    model = tiny_llama(torch.float32)
    names = {name for name, _ in model.named_parameters()}
    pack, _ = trained(model, [case.run(4)])
    pack.close()
    assert pack.num_base_parameters == sum(p.numel() for p in tiny_llama(torch.float32).parameters())
    if not pack.alters_base:
        assert torch.equal(model(IDS).logits, tiny_llama(torch.float32)(IDS).logits)
        assert {name for name, _ in model.named_parameters()} == names
        assert not any(p.requires_grad for p in model.parameters())


def test_partial_fine_tuning_moves_its_part_alone() -> None:
    run = CASES["full-partial"].run(3)
    assert run.arm.options["layers"] == [1]
    pack, _ = trained(tiny_llama(torch.float32), [run])
    start = dict(tiny_llama(torch.float32).named_parameters())
    moved = {name for name, tensor in pack.model.named_parameters() if not torch.equal(tensor, start[name])}
    assert moved == {name for name in start if ".layers.1." in name} | {"model.norm.weight"}


def test_dropout_of_peft_draws_from_the_runs_generator() -> None:
    run = CASES["vera"].run(3)
    outside = torch.get_rng_state()
    first = losses_of(trained(tiny_llama(torch.float32), [run])[1][0])
    assert torch.equal(torch.get_rng_state(), outside)
    torch.rand(7)
    assert losses_of(trained(tiny_llama(torch.float32), [run])[1][0]) == first
    other = run.model_copy(update={"arm": run.arm.model_copy(update={"options": without_dropout(run.arm.options)})})
    assert losses_of(trained(tiny_llama(torch.float32), [other])[1][0]) != first
