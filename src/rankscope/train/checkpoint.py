"""A run in the middle of training, on disk: weights, optimizer, generator, place in the data; no pickle."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.models.methods.pack import TrainablePack
from rankscope.records import MemoryShortage, ValidationPoint
from rankscope.store import checksum, read_checked, write_checked
from rankscope.train.loop import RunState, StepLog
from rankscope.train.optimizer import load_optimizer_tensors, optimizer_tensors

_STATE = "state.json"
_FILES = ("weights.safetensors", "optimizer.safetensors", "generator.safetensors")


def write_checkpoint(folder: Path, pack: TrainablePack, state: RunState, seconds: float) -> None:
    """Write a run's state to `folder/<step>`; earlier checkpoints go only when this one is whole.

    Of a model in parts all processes have to call this; the first writes it, whole.

    Args:
        folder: The run's folder of checkpoints.
        pack: The model with the run's trainable part.
        state: The run.
        seconds: What the run has taken so far, in all calls.
    """
    generator = pack.generator(state.index).get_state()
    tensors = (pack.state(state.index), optimizer_tensors(state.optimizer, pack.group), {"state": generator})
    if not pack.group.is_first:
        return
    target = folder / f"{state.step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, values in zip(_FILES, tensors, strict=True):
        save_file({key: _own(value) for key, value in values.items()}, target / name)
    document = {
        "step": state.step,
        "seconds": seconds,
        "settings_hash": state.run.settings_hash,
        "logs": [asdict(log) for log in state.logs],
        "validations": [point.model_dump() for point in state.validations],
        "shortages": [shortage.model_dump() for shortage in state.shortages],
        "files": {name: checksum(target / name) for name in _FILES},
    }
    write_checked(target / _STATE, document)
    for older in folder.iterdir():
        if older != target:
            shutil.rmtree(older)


def read_checkpoint(folder: Path, pack: TrainablePack, state: RunState) -> bool:
    """Bring a run to its latest whole checkpoint; returns whether there was one."""
    for target in sorted(folder.glob("[0-9]*"), reverse=True):
        document = _whole(target, state.run.settings_hash)
        if document is None:
            continue
        weights, optimizer, generator = (load_file(target / name) for name in _FILES)
        pack.load_state(state.index, weights)
        load_optimizer_tensors(state.optimizer, optimizer)
        pack.generator(state.index).set_state(generator["state"])
        state.step = document["step"]
        state.earlier_seconds = document["seconds"]
        state.logs = [StepLog(**log) for log in document["logs"]]
        state.validations = [ValidationPoint(**point) for point in document["validations"]]
        state.shortages = [MemoryShortage(**shortage) for shortage in document["shortages"]]
        return True
    return False


def _whole(target: Path, settings_hash: str) -> dict | None:
    """The state of a checkpoint whose files are all as they were written, else None: an older one serves."""
    document = read_checked(target / _STATE)
    if document is None or document["settings_hash"] != settings_hash:
        return None
    is_whole = all((target / name).is_file() and checksum(target / name) == document["files"][name] for name in _FILES)
    return document if is_whole else None


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy on the processor, since safetensors refuses shared memory."""
    return tensor.detach().cpu().contiguous().clone()
