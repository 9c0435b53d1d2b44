"""On every architecture a run in a pack is PEFT's run alone, and its own library reads back what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from architectures import CONFIGS, tiny_model
from rankscope.data.order import batches
from rankscope.models.fused import iter_parts
from rankscope.models.methods.making import load_tuned, make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.models.weights import iter_updates
from rankscope.runs import RunSettings
from rankscope.train.loop import start_run, train
from solo import Silent
from tiny import examples, full_run, lora_run

EXAMPLES = examples(8)
IDS = torch.arange(3, 20)[None]
STEPS = 4
# Gemma's many normalisations are made in float32, whatever the model's dtype: where two orders of a sum differ in the
# last digit, a value may be rounded the other way there (6e-8), more often on some processors than on others.
TOLERANCE = {"gemma2": 2e-7, "gemma3": 2e-7}
TARGETS = {"mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # its experts and their router are no linear layers
# Both parameters of the experts, and the router; beside them a linear layer.
EXPERTS = {
    "target_modules": ["q_proj"],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"],
}

pytestmark = [
    # PEFT 0.21 asks transformers 5.23 for a property that is about to go, and says so of Conv1D by itself.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*:UserWarning"),
    # PEFT gives Mixtral's fused experts a rank of their own, and then says that `all-linear` does not reach them.
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match.*:RuntimeWarning"),
]


def trained(model: PreTrainedModel, runs: list[RunSettings]) -> tuple[TrainablePack, list[list[float]]]:
    pack = make_trainable(model, runs)
    states = [
        start_run(pack, index, EXAMPLES, EXAMPLES[:2], batches(len(EXAMPLES), 4, run.num_steps, run.seed))
        for index, run in enumerate(runs)
    ]
    train(pack, states, 10_000, Silent())
    return pack, [[log.loss_nats_per_token for log in state.logs] for state in states]


def reference(name: str, run: RunSettings) -> list[float]:
    """Plain PEFT: one row at a time, so that no padding, mask or packing is part of it."""
    model = tiny_model(name, torch.float64)
    if run.arm.method == "full":
        model.requires_grad_(True)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2", **run.arm.options)
            model = get_peft_model(model, config).eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 or run.arm.method != "full"]
    others = [p for p in parameters if p.ndim <= 1 and run.arm.method == "full"]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=run.learning_rate)
    losses = []
    for batch in batches(len(EXAMPLES), 4, run.num_steps, run.seed):
        chosen = [EXAMPLES[index] for index in batch]
        scored = sum(len(example.input_ids) - example.num_prompt_tokens for example in chosen)
        total = 0.0
        for example in chosen:
            ids = torch.tensor(example.input_ids)[None]
            log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            picked = log_p.gather(1, ids[0, 1:, None])[example.num_prompt_tokens - 1 :]
            loss = -picked.sum() / scored
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, run.optimization.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def steady(run: RunSettings) -> RunSettings:
    options = {"batch_size": 4, "lr_scheduler": "constant", "warmup_ratio": 0.0, "num_validations": 1}
    return run.model_copy(update={"optimization": run.optimization.model_copy(update=options)})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pack_is_peft_alone(name: str) -> None:
    targets = TARGETS.get(name, "all-linear")
    runs = [steady(lora_run(rank, 3e-3, rank, STEPS, target_modules=targets)) for rank in (2, 5)]
    _, losses = trained(tiny_model(name, torch.float64), runs)
    for run, mine in zip(runs, losses, strict=True):
        assert mine == pytest.approx(reference(name, run), rel=TOLERANCE.get(name, 1e-8))
        assert mine[-1] != pytest.approx(mine[0], rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_full_fine_tuning_is_plain_torch(name: str) -> None:
    run = steady(full_run(1e-3, seed=0, num_steps=STEPS))
    _, (losses,) = trained(tiny_model(name, torch.float64), [run])
    assert losses == pytest.approx(reference(name, run), rel=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_read_back_by_peft_and_its_updates_are_what_it_merges(name: str, tmp_path: Path) -> None:
    base = tiny_model(name)
    base.save_pretrained(tmp_path / "base")
    run = steady(lora_run(3, 1e-2, 0, STEPS, target_modules=TARGETS.get(name, "all-linear")))
    pack, _ = trained(base, [run])
    pack.route((0,), (1,), is_training=False)
    with torch.no_grad():
        mine = base(IDS).logits
        pack.save(0, tmp_path)
        pack.close()
        again = load_tuned(base, [run], [tmp_path])
        again.route((0,), (1,), is_training=False)
        torch.testing.assert_close(base(IDS).logits, mine, rtol=0, atol=1e-5)  # folded into the base
        again.close()
        assert (base(IDS).logits - mine).abs().max() > 1e-3
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter")
        torch.testing.assert_close(theirs(IDS).logits, mine, rtol=0, atol=1e-5)
        before = {key: parameter.clone() for key, parameter in base.named_parameters()}
        merged = dict(theirs.merge_and_unload().named_parameters())
    for update in iter_updates(tmp_path / "base", tmp_path / "adapter"):
        key = f"{update.name}.weight"
        moved = merged.pop(key) - before[key]
        delta = update.factors.delta_W().float()
        torch.testing.assert_close(delta.T if name == "gpt2" else delta, moved, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(rest, before[key]) for key, rest in merged.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_model_is_read_back_by_transformers(name: str, tmp_path: Path) -> None:
    base = tiny_model(name)
    base.save_pretrained(tmp_path / "base")
    run = steady(full_run(1e-3, seed=0, num_steps=STEPS))
    pack, _ = trained(base, [run])
    with torch.no_grad():
        mine = base(IDS).logits
        pack.save(0, tmp_path)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        torch.testing.assert_close(theirs(IDS).logits, mine, rtol=0, atol=1e-6)
        again = load_tuned(tiny_model(name), [run], [tmp_path])
        assert torch.equal(again.model(IDS).logits, mine)
    updates = list(iter_updates(tmp_path / "base", tmp_path / "model"))
    after, before = (
        {key: parameter.detach() for key, parameter in model.named_parameters()} for model in (theirs, tiny_model(name))
    )
    assert sum(update.delta_W.numel() for update in updates) == sum(parameter.numel() for parameter in before.values())
    total = sum(float(update.delta_W.square().sum()) for update in updates)
    expected = sum(float((after[key] - before[key]).double().square().sum()) for key in before)
    assert total == pytest.approx(expected, rel=1e-6)


def test_experts_and_their_router_are_trained_as_peft_trains_them() -> None:
    run = steady(lora_run(2, 3e-3, 1, STEPS, **EXPERTS))
    assert not run.packs  # they are in PEFT's own model, and the plan knows it
    _, (losses,) = trained(tiny_model("mixtral", torch.float64), [run])
    assert losses == pytest.approx(reference("mixtral", run), rel=1e-8)
    others = steady(lora_run(2, 3e-3, 1, STEPS, target_modules=["q_proj"]))
    assert losses[-1] != pytest.approx(reference("mixtral", others)[-1], rel=1e-4)  # the experts matter


def test_experts_are_read_back_by_peft_and_their_parts_are_what_it_merges(tmp_path: Path) -> None:
    base = tiny_model("mixtral")
    base.save_pretrained(tmp_path / "base")
    before = {key: parameter.clone() for key, parameter in base.named_parameters()}
    run = steady(lora_run(2, 1e-2, 0, STEPS, **EXPERTS))
    pack, _ = trained(base, [run])
    pack.route((0,), (1,), is_training=False)
    with torch.no_grad():
        mine = pack.model(IDS).logits
        pack.save(0, tmp_path)
        theirs = PeftModel.from_pretrained(tiny_model("mixtral"), tmp_path / "adapter")
        torch.testing.assert_close(theirs(IDS).logits, mine, rtol=0, atol=1e-5)
        again = load_tuned(tiny_model("mixtral"), [run], [tmp_path])
        again.route((0,), (1,), is_training=False)
        torch.testing.assert_close(again.model(IDS).logits, mine, rtol=0, atol=1e-5)
        merged = dict(theirs.merge_and_unload().named_parameters())
    moved = {key: merged[key] - before[key] for key in merged}
    parts = list(iter_parts(iter_updates(tmp_path / "base", tmp_path / "adapter"), base.config))
    assert len(parts) == 2 * (1 + 1 + 4 * 3)  # in each layer the query, the router, and of each expert gate, up, down
    total = 0.0
    for part in parts:
        delta = part.delta_W if part.factors is None else part.factors.delta_W()
        if part.module == "q_proj" or part.module == "gate":
            expected = moved[f"{part.name}.weight"]
        else:
            layer = f"model.layers.{part.layer}.mlp.experts"
            fused = moved[f"{layer}.{'down_proj' if part.module == 'down_proj' else 'gate_up_proj'}"]
            expert = fused[int(part.name.split(".experts.")[1].split(".")[0])]
            expected = {"down_proj": expert, "gate_up_proj.gate": expert[:48], "gate_up_proj.up": expert[48:]}[
                part.module
            ]
        torch.testing.assert_close(delta.float(), expected, rtol=1e-3, atol=1e-6)
        total += float(delta.square().sum())
    assert total == pytest.approx(float(sum(delta.double().square().sum() for delta in moved.values())), rel=1e-3)
