"""A model in parts, in processes of this machine, is trained as it is whole in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from in_parts import Desk, carry_out_together
from tiny import full_run

pytestmark = pytest.mark.slow
NUM_STEPS = 10
# Five rows a step: one process has more of them than the other. Few positions at a time: some passes hold one row, and
# one of the processes none of its own.
FEW = {"max_tokens_per_batch": 16, "gradient_checkpointing": True}


class Pair:
    """A run in one process, and the same in two."""

    def __init__(self, root: Path, name: str, options: dict, *, offload: bool = False, **optimization: object) -> None:
        run = full_run(1e-3, 0, NUM_STEPS, batch_size=5, **optimization)
        self.one = Desk(root / f"{name}-one", run, options=options, smallest=64)
        self.two = Desk(root / f"{name}-two", run, options=options, offload=offload, smallest=64)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Everything that is compared, trained by one pair of processes, since starting one takes most of the time."""
    root = tmp_path_factory.mktemp("parts")
    pairs = {
        "plain": Pair(root, "plain", {}),
        "few positions": Pair(root, "few", FEW),
        "offloaded": Pair(root, "offloaded", {}, offload=True),
        "resumed": Pair(root, "resumed", {"checkpoint_seconds": 0.0}),
        "moved": Pair(root, "moved", {}),
        "in half": Pair(root, "half", {}, bf16=True),
        "in 8 bits": Pair(root, "eight", {}, optim="adamw_8bit"),
        "in 8 bits, resumed": Pair(root, "again", {}, optim="adamw_8bit"),
    }
    pairs["moved"].two.train(until=3)  # in one process, whole
    calls = [(pair.two, None, 1000) for name, pair in pairs.items() if "resumed" not in name]
    # As far as a round of a search asks, then stopped by a person, then to the end.
    calls += [(pairs["resumed"].two, 3, 1000), (pairs["resumed"].two, None, 4), (pairs["resumed"].two, None, 1000)]
    calls += [(pairs["in 8 bits, resumed"].two, 3, 1000), (pairs["in 8 bits, resumed"].two, None, 1000)]
    carry_out_together(calls, size=2)
    for pair in pairs.values():
        pair.one.train()
    return pairs


@pytest.mark.parametrize("name", ["plain", "few positions", "offloaded", "resumed", "moved"])
def test_two_processes_train_what_one_does(pairs: dict[str, Pair], name: str) -> None:
    one, two = pairs[name].one, pairs[name].two
    assert len(one.losses()) == NUM_STEPS
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    expected, found = one.record(), two.record()
    last = [point.loss_nats_per_token for point in expected.validations]
    steps = {point.step for point in expected.validations}
    assert [p.loss_nats_per_token for p in found.validations if p.step in steps] == pytest.approx(last, abs=1e-5)
    weights = two.weights()
    assert set(weights) == set(one.weights())
    for key, tensor in one.weights().items():
        torch.testing.assert_close(weights[key], tensor, atol=1e-5, rtol=0.0)
    same = ("status", "num_trainable", "num_parameters", "num_steps", "num_tokens", "num_scored_tokens")
    assert all(getattr(found, key) == getattr(expected, key) for key in same)
    assert sorted(found.files) == sorted(expected.files), "saved in the same form"
    assert found.provenance["shard"] == 2 and "shard" not in expected.provenance


@pytest.mark.parametrize("name", ["in half", "in 8 bits"])
def test_what_rounds_by_process_differs_by_that_rounding(pairs: dict[str, Pair], name: str) -> None:
    """Products in bfloat16 are rounded in each process, and blocks of 8 bits end where a part does."""
    one, two = pairs[name].one, pairs[name].two
    assert two.losses() == pytest.approx(one.losses(), abs=0.01)
    assert two.losses() != pytest.approx(pairs["plain"].two.losses(), abs=1e-6), "it did something"


@pytest.mark.parametrize(("uninterrupted", "stopped"), [("plain", "resumed"), ("in 8 bits", "in 8 bits, resumed")])
def test_a_run_in_parts_that_is_stopped_and_goes_on_is_the_one_that_was_not(
    pairs: dict[str, Pair], uninterrupted: str, stopped: str
) -> None:
    whole, resumed = pairs[uninterrupted].two, pairs[stopped].two
    assert resumed.losses() == whole.losses(), "bit for bit"
    assert all(tensor.equal(resumed.weights()[name]) for name, tensor in whole.weights().items())
    assert resumed.record().status == "complete"


def test_processes_on_a_machine_with_a_gpu_that_is_not_used_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """torch makes one more group there, which all have to make at the same time."""
    desks = [Desk(tmp_path / str(number), full_run(1e-3, 0, 2, batch_size=5)) for number in range(2)]
    carry_out_together([(desk, None, 1000) for desk in desks], size=2, beside_gpu=True)
    assert [len(desk.losses()) for desk in desks] == [2, 2]
