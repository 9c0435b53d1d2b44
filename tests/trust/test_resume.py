"""A training run that was killed goes on from its checkpoint as if nothing had happened, and memory stays flat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankscope.data.order import batches
from rankscope.models.methods.making import make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.runs import RunSettings
from rankscope.train.checkpoint import read_checkpoint, write_checkpoint
from rankscope.train.loop import RunState, start_run, train
from tiny import examples, full_run, lora_run, method_run, tiny_llama

EXAMPLES = examples(24)
STEPS, STOP = 20, 7
RUNS = {
    "full": full_run(1e-2, 0, STEPS),
    "lora": lora_run(4, 1e-2, 0, STEPS),
    "lora with dropout": lora_run(4, 1e-2, 3, STEPS, lora_dropout=0.3),
    "dropout before the head": lora_run(4, 1e-1, 3, STEPS, lora_dropout=0.3, target_modules=["q_proj", "lm_head"]),
    "PEFT's dropout": method_run("vera", 1e-1, 3, STEPS, rank=4, vera_dropout=0.3),
}


pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")  # of an adapter on the head


class Until:
    """Stops the loop before the step after the given one."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._done = 0

    def after_step(self, state: RunState) -> None:
        self._done = state.step

    def wants_stop(self) -> bool:
        return self._done >= self._step


def started(run: RunSettings) -> tuple[TrainablePack, RunState]:
    pack = make_trainable(tiny_llama(torch.float32), [run])
    order = batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed)
    return pack, start_run(pack, 0, EXAMPLES, EXAMPLES[:4], order)


def stopped(run: RunSettings, folder: Path, step: int = STOP) -> None:
    """Train some steps in a model of its own, leave a checkpoint, and forget everything else."""
    pack, state = started(run)
    train(pack, [state], 10_000, Until(step))
    assert state.step == step
    write_checkpoint(folder, pack, state, seconds=1.5)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(run: RunSettings, tmp_path: Path) -> None:
    whole_pack, whole = started(run)
    train(whole_pack, [whole], 10_000, Until(STEPS))
    stopped(run, tmp_path)
    pack, state = started(run)
    assert read_checkpoint(tmp_path, pack, state)
    assert (state.step, state.earlier_seconds) == (STOP, 1.5)
    train(pack, [state], 10_000, Until(STEPS))
    assert [log.loss_nats_per_token for log in state.logs] == [log.loss_nats_per_token for log in whole.logs]
    assert [log.learning_rate for log in state.logs] == [log.learning_rate for log in whole.logs]
    assert [log.grad_norm for log in state.logs] == [log.grad_norm for log in whole.logs]
    assert state.validations == whole.validations
    expected = whole_pack.state(0)
    assert expected
    for name, tensor in pack.state(0).items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(pack.generator(0).get_state(), whole_pack.generator(0).get_state())


@pytest.mark.parametrize("name", ["dropout before the head", "PEFT's dropout"])
def test_the_generator_matters(name: str) -> None:
    """A run that drew other numbers would end elsewhere: the test above compares something."""
    losses = []
    for offset in (0, 1):
        pack, state = started(RUNS[name])
        pack.generator(0).manual_seed(3 + offset)
        train(pack, [state], 10_000, Until(3))
        losses.append([log.loss_nats_per_token for log in state.logs])
    assert losses[0][-1] != losses[1][-1]


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_half, damage_byte])
@pytest.mark.parametrize("name", ["weights", "optimizer", "generator", "state"])
def test_a_damaged_checkpoint_is_not_read(tmp_path: Path, name: str, damage) -> None:
    run = RUNS["lora with dropout"]
    stopped(run, tmp_path)
    path = next(path for path in tmp_path.rglob("*.*") if path.stem == name)
    damage(path)
    pack, state = started(run)
    before = {key: value.clone() for key, value in pack.state(0).items()}
    assert not read_checkpoint(tmp_path, pack, state)
    assert state.step == 0 and state.logs == []
    assert all(torch.equal(value, before[key]) for key, value in pack.state(0).items())


def test_the_checkpoint_before_serves_where_the_last_is_damaged(tmp_path: Path) -> None:
    run = RUNS["lora"]
    stopped(run, tmp_path / "early", 5)
    stopped(run, tmp_path / "late", 7)
    (tmp_path / "late" / "00000007").rename(tmp_path / "early" / "00000007")
    pack, state = started(run)
    assert read_checkpoint(tmp_path / "early", pack, state)
    assert state.step == 7, "the last where both are whole, as after a kill before the older one went"
    damage_byte(tmp_path / "early" / "00000007" / "weights.safetensors")
    pack, state = started(run)
    assert read_checkpoint(tmp_path / "early", pack, state)
    assert state.step == 5


def test_a_checkpoint_of_other_settings_is_not_read(tmp_path: Path) -> None:
    stopped(RUNS["lora"], tmp_path)
    pack, state = started(RUNS["lora"].model_copy(update={"learning_rate": 2e-2}))
    assert not read_checkpoint(tmp_path, pack, state)
