"""The one branch on the method: which pack makes a base trainable, and which reads a trained run back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from rankscope.models.group import Group
from rankscope.models.heads import find_head
from rankscope.models.joined import can_join, never_join
from rankscope.models.methods.bottleneck import BottleneckPack
from rankscope.models.methods.folders import read_lora
from rankscope.models.methods.full import FullPack
from rankscope.models.methods.initial import initial_adapter
from rankscope.models.methods.lora import LoraPack
from rankscope.models.methods.pack import Calibration, TrainablePack
from rankscope.models.methods.peft import PeftPack
from rankscope.models.sharded import ShardedPack
from rankscope.runs import RunSettings


def make_trainable(
    model: PreTrainedModel, runs: Sequence[RunSettings], calibration: Calibration | None = None
) -> TrainablePack:
    """Make a base trainable for runs of one method.

    Args:
        model: The base, frozen.
        runs: Several only where the method packs.
        calibration: The first batches of a run, for initialisations that look at examples.
    """
    can_join(model)  # tried on the base: adapters may draw random numbers
    first = runs[0]
    if first.arm.method == "full":
        return FullPack(model, tuple(runs))
    find_head(model)
    if first.arm.method == "bottleneck":
        return BottleneckPack.fresh(model, tuple(runs))
    if first.arm.capabilities.in_packed_layers:
        return LoraPack(model, tuple(runs), [initial_adapter(model, run, calibration) for run in runs])
    return PeftPack.fresh(model, tuple(runs), calibration)


def make_sharded(model: PreTrainedModel, runs: Sequence[RunSettings], group: Group, *, offload: bool) -> TrainablePack:
    """Make a base trainable of which every process of a group is to hold a part; methods that save whole models only.

    Args:
        model: The base, frozen, on the processor; it is taken apart.
        runs: The one run.
        group: The processes.
        offload: Keep the parts in the host's memory.
    """
    if group.device is not None and group.device.type != "cpu":
        never_join(model)
    pack = make_trainable(model, runs)
    if not isinstance(pack, FullPack):
        raise TypeError(f"{runs[0].arm.method} trains no whole model")
    return ShardedPack(pack, group, offload=offload)


def load_tuned(model: PreTrainedModel, runs: Sequence[RunSettings], folders: Sequence[Path]) -> TrainablePack:
    """A base with trained weights in it, to be used and not trained on; the update of a lone LoRA run is folded in.

    Args:
        model: The base, as it was pretrained.
        runs: As for `make_trainable`.
        folders: Each run's training folder, with what `save` wrote.
    """
    can_join(model)
    first = runs[0]
    if first.arm.method == "full":
        pack = FullPack(model, tuple(runs))
        pack.load_folder(folders[0])
        return pack
    if first.arm.method == "bottleneck":
        return BottleneckPack.saved(model, tuple(runs), folders[0])
    if first.arm.capabilities.in_packed_layers:
        pack = LoraPack(model, tuple(runs), [read_lora(folder) for folder in folders])
        if len(runs) == 1:
            pack.fold()
        return pack
    return PeftPack.saved(model, tuple(runs), folders[0])
