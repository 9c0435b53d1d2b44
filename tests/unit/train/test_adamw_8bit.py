"""AdamW with states in 8 bits: its numbers by hand, beside bitsandbytes' own, and what it keeps."""

from __future__ import annotations

import pytest
import torch

from rankscope.models.methods.making import make_trainable
from rankscope.spec import Optimization
from rankscope.train.adamw_8bit import AdamW8bit, Blocks, code_values
from rankscope.train.loop import accumulate_gradients
from rankscope.train.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from tiny import examples, full_run, tiny_llama

EIGHT = Optimization(optim="adamw_8bit", weight_decay=0.1)
SHAPES = [(128, 96), (100, 77), (3, 5)]  # whole blocks, a last block that is not full, and one that is kept whole


def parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def walk(optimizer: torch.optim.Optimizer, held: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in held:
            # Of very different sizes, as gradients are.
            scale = 10.0 ** (-4 * torch.rand(parameter.shape, generator=generator))
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("signed", [False, True])
def test_the_256_numbers_are_those_of_bitsandbytes_but_for_one(signed: bool) -> None:
    create = pytest.importorskip("bitsandbytes.functional").create_dynamic_map
    found, theirs = (sorted(values.tolist()) for values in (code_values(signed=signed), create(signed=signed)))
    if signed:
        theirs.remove(max(value for value in theirs if value < 0))
        theirs.insert(0, -1.0)
    assert len(set(found)) == 256 and found == pytest.approx(theirs, rel=1e-6)


def test_numbers_are_rounded_to_the_nearest_in_units_of_the_blocks_largest() -> None:
    blocks = Blocks(600, signed=True, device=torch.device("cpu"))
    values = torch.zeros(600)
    values[:3] = torch.tensor([-8.0, 4.0, 0.011])
    values[256:260] = torch.tensor([1e-3, 5e-4, 1e-20, -1e-20])
    blocks.write(values)
    assert blocks.largest.tolist() == pytest.approx([8.0, 1e-3, 0.0])
    found, table = blocks.read(), code_values(signed=True).double()
    for index, largest in ((0, 8.0), (1, 8.0), (2, 8.0), (256, 1e-3), (257, 1e-3)):
        wanted = float(values[index]) / largest
        nearest = float(table[(table - wanted).abs().argmin()]) * largest
        assert float(found[index]) == pytest.approx(nearest, rel=1e-6)
    assert found[0] == -8.0 and not found[300:].any()
    assert found[258] > 0 > found[259], "what is not 0 is not rounded to 0"


@pytest.mark.parametrize("signed", [False, True])
def test_what_was_rounded_once_is_not_rounded_again(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=generator) * 10.0 ** (-6 * torch.rand(10_000, generator=generator))
    first, second = (Blocks(10_000, signed=signed, device=torch.device("cpu")) for _ in range(2))
    first.write(values if signed else values.abs())
    second.write(first.read())
    assert second.codes.equal(first.codes) and second.largest.equal(first.largest)


def test_steps_are_those_of_bitsandbytes_and_near_those_in_float32() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    mine, theirs, exact = parameters(0), parameters(0), parameters(0)
    start = parameters(0)
    walk(make_optimizer([{"params": mine, "weight_decay": 0.1}], EIGHT, 1e-3), mine, range(10))
    walk(bitsandbytes.optim.AdamW8bit(theirs, lr=1e-3, weight_decay=0.1), theirs, range(10))
    walk(torch.optim.AdamW(exact, lr=1e-3, weight_decay=0.1), exact, range(10))
    for index, parameter in enumerate(exact):
        moved = (parameter - start[index]).norm()
        off, off_theirs = ((other[index] - parameter).norm() / moved for other in (mine, theirs))
        assert off_theirs > 0.0 or index == 2
        assert off <= 1.2 * off_theirs + 1e-6, "rounded no more than theirs"
    torch.testing.assert_close(mine[2], exact[2], atol=1e-6, rtol=0.0)  # small: kept whole


def test_a_checkpoint_gives_the_same_steps_bit_for_bit() -> None:
    whole, stopped = parameters(0), parameters(0)
    walk(make_optimizer([{"params": whole, "weight_decay": 0.1}], EIGHT, 1e-3), whole, range(6))
    first = make_optimizer([{"params": stopped, "weight_decay": 0.1}], EIGHT, 1e-3)
    walk(first, stopped, range(3))
    saved = optimizer_tensors(first)
    assert {"0.step", "0.exp_avg", "0.exp_avg_sq"} <= set(saved) and saved["1.exp_avg"].shape == SHAPES[1]
    second = make_optimizer([{"params": stopped, "weight_decay": 0.1}], EIGHT, 1e-3)
    load_optimizer_tensors(second, saved)
    walk(second, stopped, range(3, 6))
    assert all(one.equal(two) for one, two in zip(whole, stopped, strict=True))


def test_states_take_a_quarter_of_the_memory() -> None:
    held = parameters(0)
    optimizer = make_optimizer([{"params": held, "weight_decay": 0.1}], EIGHT, 1e-3)
    walk(optimizer, held, range(1))
    assert isinstance(optimizer, AdamW8bit)
    state = optimizer.state[held[0]]["exp_avg"]
    assert state.codes.nbytes + state.largest.nbytes == 128 * 96 + 4 * 128 * 96 // 256


def test_a_tiny_llama_learns_as_with_states_in_float32() -> None:
    losses = {}
    for optim in ("adamw_torch", "adamw_8bit"):
        run = full_run(3e-3, 0, 30, optim=optim)
        pack = make_trainable(tiny_llama(torch.float32), (run,))
        optimizer = make_optimizer(pack.parameter_groups(0), run.optimization, 3e-3)
        losses[optim] = []
        for _ in range(30):
            optimizer.zero_grad()
            losses[optim].append(accumulate_gradients(pack, {0: examples(8)}, 8192)[0])
            optimizer.step()
    whole, eight = losses.values()
    assert whole[0] == eight[0] and whole[-1] < 0.5 * whole[0]
    assert eight == pytest.approx(whole, abs=0.03)
