"""Mixed precision is PEFT's own under autocast: products in bfloat16, weights, gradients and losses in float32."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from rankscope.models.methods.making import make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.runs import RunSettings
from rankscope.train import loop
from rankscope.train.loop import accumulate_gradients
from solo import EXAMPLES, losses_of, order_of, trained
from tiny import full_run, lora_run, tiny_llama


def mixed(run: RunSettings, is_on: bool = True) -> RunSettings:
    return run.model_copy(update={"optimization": run.optimization.model_copy(update={"bf16": is_on})})


def gradients(pack: TrainablePack, run: RunSettings, index: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    batches = {i: [EXAMPLES[row] for row in order_of(run)[0]] for i in range(len(pack.runs))}
    losses = accumulate_gradients(pack, batches, 10_000)
    return losses[index], {name: tensor.grad for name, tensor in pack.state(index).items()}


def reference(run: RunSettings) -> tuple[float, dict[str, torch.Tensor]]:
    """PEFT and torch.autocast on padded rows, the loss in float32."""
    model = tiny_llama(torch.float32)
    if run.arm.method == "lora":
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **run.arm.options))
    else:
        model.requires_grad_(True)
    total, number = torch.zeros(()), 0
    for row in order_of(run)[0]:
        example = EXAMPLES[row]
        ids = torch.tensor(example.input_ids)[None]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids).logits[0]
        first = example.num_prompt_tokens
        total = total + functional.cross_entropy(logits[first - 1 : -1].float(), ids[0, first:], reduction="sum")
        number += len(example.input_ids) - first
    (total / number).backward()
    names = {k: k.replace(".default", "").replace("vector.weight", "vector") for k, _ in model.named_parameters()}
    found = {names[k]: v.grad for k, v in model.named_parameters() if v.requires_grad}
    return float(total.detach() / number), found


RUNS = {
    "full": full_run(1e-3, seed=0, num_steps=2),
    "lora": lora_run(4, 1e-3, seed=0, num_steps=2),
    "dora": lora_run(4, 1e-3, seed=0, num_steps=2, use_dora=True),
}


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_losses_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch, run: RunSettings, is_joined: bool) -> None:
    monkeypatch.setattr(loop, "can_join", lambda _: is_joined)
    loss, mine = gradients(make_trainable(tiny_llama(torch.float32), [mixed(run)]), run)
    exact, _ = gradients(make_trainable(tiny_llama(torch.float32), [run]), run)
    expected, theirs = reference(run)
    assert loss == pytest.approx(expected, abs=2e-3)  # a product in bfloat16 has three digits
    assert loss != exact
    assert mine.keys() == theirs.keys()
    for name, grad in mine.items():
        assert grad.dtype == torch.float32
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(grad, theirs[name], rtol=0, atol=0.05 * scale + 1e-6)


def test_a_pack_is_its_runs_alone() -> None:
    runs = [mixed(lora_run(2, 1e-3, seed=0, num_steps=1)), mixed(lora_run(16, 1e-3, seed=1, num_steps=1))]
    for index, run in enumerate(runs):
        together, packed = gradients(make_trainable(tiny_llama(torch.float32), runs), run, index)
        alone, single = gradients(make_trainable(tiny_llama(torch.float32), [run]), run)
        assert together == pytest.approx(alone, abs=2e-3)
        for name, grad in packed.items():
            torch.testing.assert_close(grad, single[name], rtol=0, atol=0.03 * float(single[name].abs().max()) + 1e-6)


def test_it_learns_as_float32_does_and_weights_stay_in_float32() -> None:
    run = lora_run(16, 1e-2, seed=0, num_steps=30)
    _, (plain,) = trained(tiny_llama(torch.float32), [run])
    pack, (state,) = trained(tiny_llama(torch.float32), [mixed(run)])
    assert {tensor.dtype for tensor in pack.state(0).values()} == {torch.float32}
    assert losses_of(state)[-1] < losses_of(state)[0] - 0.3
    assert losses_of(state)[-1] == pytest.approx(losses_of(plain)[-1], abs=0.1)


def test_without_it_a_run_is_what_it_was_before_there_was_a_choice() -> None:
    run = lora_run(4, 1e-3, seed=0, num_steps=2)
    assert run.settings_hash == mixed(run, is_on=False).settings_hash != mixed(run).settings_hash
