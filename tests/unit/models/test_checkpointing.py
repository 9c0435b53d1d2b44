"""A layer that is computed twice gives what it gives once, and keeps less in between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankscope.errors import UserError
from rankscope.models.checkpointing import recomputed_layers
from rankscope.models.methods.making import make_trainable
from rankscope.runs import RunSettings
from rankscope.train import loop
from rankscope.train.loop import accumulate_gradients
from solo import EXAMPLES, order_of, trained
from tiny import full_run, lora_run, method_run, tiny_llama

RUNS = {
    "full": [full_run(1e-3, seed=0, num_steps=4)],
    "pack with dropout": [
        lora_run(4, 1e-3, seed=0, num_steps=4, lora_dropout=0.3),
        lora_run(16, 3e-3, seed=1, num_steps=4, use_dora=True, lora_dropout=0.2),
    ],
    "PEFT's dropout": [method_run("vera", 1e-3, seed=0, num_steps=4, rank=4, vera_dropout=0.3)],
}


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_training_is_the_same(monkeypatch: pytest.MonkeyPatch, runs: list[RunSettings], is_joined: bool) -> None:
    monkeypatch.setattr(loop, "can_join", lambda _: is_joined)
    plain, expected = trained(tiny_llama(torch.float64), runs, max_tokens=60)
    pack, states = trained(tiny_llama(torch.float64), runs, max_tokens=60, gradient_checkpointing=True)
    for index, (state, wanted) in enumerate(zip(states, expected, strict=True)):
        assert [log.loss_nats_per_token for log in state.logs] == [log.loss_nats_per_token for log in wanted.logs]
        for name, tensor in pack.state(index).items():
            assert torch.equal(tensor, plain.state(index)[name])
        assert torch.equal(pack.generator(index).get_state(), plain.generator(index).get_state())


def kept_bytes(*, is_on: bool) -> int:
    """What autograd keeps between a forward pass and its backward pass, weights aside."""
    run = full_run(1e-3, seed=0, num_steps=1)
    model = tiny_llama(torch.float32)
    pack = make_trainable(model, [run])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    before_backward: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def look(tensor: torch.Tensor) -> torch.Tensor:
        before_backward.append(sum(kept.values()))  # the first one asked for: the forward pass is over
        return tensor

    batch = {0: [EXAMPLES[i] for i in order_of(run)[0]]}
    with torch.autograd.graph.saved_tensors_hooks(keep, look):
        if is_on:
            with recomputed_layers(model):
                accumulate_gradients(pack, batch, 10_000)
        else:
            accumulate_gradients(pack, batch, 10_000)
    return before_backward[0]


def test_less_is_kept() -> None:
    assert kept_bytes(is_on=True) < 0.35 * kept_bytes(is_on=False)


def test_layers_are_as_before_afterwards() -> None:
    model = tiny_llama(torch.float32)
    with recomputed_layers(model):
        assert all("forward" in vars(layer) for layer in model.model.layers)
    assert not any("forward" in vars(layer) for layer in model.model.layers)
    assert not model.training


def test_a_model_without_known_layers_is_refused() -> None:
    model = tiny_llama(torch.float32)
    model.model.layers = nn.ModuleList()
    with pytest.raises(UserError, match="cannot be computed twice"), recomputed_layers(model):
        pass
