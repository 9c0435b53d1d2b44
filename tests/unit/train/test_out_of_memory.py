"""Memory that runs out makes micro-batches smaller and changes nothing else; a CPU is made to say that it has."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from rankscope.data.order import batches
from rankscope.models.memory import is_out_of_memory
from rankscope.models.methods.making import make_trainable
from rankscope.runs import RunSettings
from rankscope.train import loop
from rankscope.train.loop import RunState, start_run, train
from solo import Silent, stopped_and_resumed
from tiny import examples, full_run, lora_run, tiny_llama

EXAMPLES = examples(24)


def trained(runs: list[RunSettings]) -> list[RunState]:
    pack = make_trainable(tiny_llama(torch.float64), runs)
    states = []
    for index, run in enumerate(runs):
        order = batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed)
        states.append(start_run(pack, index, EXAMPLES, EXAMPLES[:4], order))
    train(pack, states, 10_000, Silent())
    return states


def losses(state: RunState) -> list[float]:
    return [log.loss_nats_per_token for log in state.logs] + [point.loss_nats_per_token for point in state.validations]


def run_out(monkeypatch: pytest.MonkeyPatch, at_call: int, room: int, error: Exception) -> list[int]:
    """From a call on, every forward of more than so many positions fails, after its backward has begun to add up."""
    scored_losses, sizes = loop.scored_losses, []

    def limited(model: object, *arguments: object, **inputs: torch.Tensor) -> object:
        sizes.append(inputs["input_ids"].numel())
        if len(sizes) >= at_call and sizes[-1] > room:
            raise error
        return scored_losses(model, *arguments, **inputs)

    monkeypatch.setattr(loop, "scored_losses", limited)
    return sizes


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize(
    "runs",
    [
        [full_run(1e-3, seed=0, num_steps=6)],
        [lora_run(4, 1e-3, seed=0, num_steps=6), lora_run(16, 3e-3, seed=1, num_steps=6)],
        [lora_run(4, 1e-3, seed=0, num_steps=6, lora_dropout=0.5), lora_run(8, 1e-3, seed=1, num_steps=6)],
    ],
    ids=["full", "pack", "dropout"],
)
def test_losses_are_those_without_a_shortage(
    monkeypatch: pytest.MonkeyPatch, runs: list[RunSettings], is_joined: bool
) -> None:
    monkeypatch.setattr(loop, "can_join", lambda _: is_joined)
    expected = [losses(state) for state in trained(runs)]
    sizes = run_out(monkeypatch, at_call=2, room=60, error=torch.OutOfMemoryError("CUDA out of memory"))
    states = trained(runs)
    assert max(sizes[:2]) > 60 >= max(sizes[-8:])
    failed = [size for size in sizes[1:] if size > 60]
    assert all(after < before for before, after in itertools.pairwise(failed)), "what failed is not tried again"
    for state, wanted in zip(states, expected, strict=True):
        assert losses(state) == pytest.approx(wanted, rel=1e-12)
        assert state.shortages and all(shortage.step >= 2 for shortage in state.shortages)
        budgets = [shortage.max_tokens_per_batch for shortage in state.shortages]
        assert budgets == sorted(budgets, reverse=True) and budgets[-1] <= 60


def test_a_resumed_run_begins_with_what_sufficed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = run_out(monkeypatch, at_call=1, room=60, error=torch.OutOfMemoryError("CUDA out of memory"))
    resumed = stopped_and_resumed(lambda: tiny_llama(torch.float64), full_run(1e-3, 0, 6), tmp_path, after_steps=2)
    assert resumed.shortages and {shortage.step for shortage in resumed.shortages} == {1}
    assert sum(size > 60 for size in sizes) == len(resumed.shortages), "it tried in vain before the checkpoint only"


def test_what_one_example_does_not_fit_in_fails_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = run_out(monkeypatch, at_call=3, room=0, error=torch.OutOfMemoryError("CUDA out of memory: 80 GiB"))
    with pytest.raises(torch.OutOfMemoryError, match="80 GiB"):
        trained([full_run(1e-3, seed=0, num_steps=6)])
    assert sizes[-1] < 20  # one example was tried


def test_other_errors_are_not_taken_for_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = run_out(monkeypatch, at_call=3, room=0, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        trained([full_run(1e-3, seed=0, num_steps=6)])
    assert len(sizes) == 3


def test_a_shortage_takes_back_what_dropout_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward, one failure: the second try draws what the first would have, as far as the first batch goes."""
    run = lora_run(4, 1e-3, seed=0, num_steps=1, lora_dropout=0.5)
    pack = make_trainable(tiny_llama(torch.float64), [run])
    before = pack.generator(0).get_state()
    state = start_run(pack, 0, EXAMPLES, EXAMPLES[:4], [list(range(8))])
    seen = []

    def work(max_tokens: int) -> int:
        seen.append((max_tokens, torch.equal(pack.generator(0).get_state(), before)))
        torch.rand(3, generator=pack.generator(0))
        if len(seen) == 1:
            raise MemoryError
        return max_tokens

    found = loop.Budget(pack, 10_000).spend([state], {0: EXAMPLES[:8]}, work)
    assert seen == [(10_000, True), (found, True)]


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_devices_say(error: Exception, is_shortage: bool) -> None:
    assert is_out_of_memory(error) is is_shortage
