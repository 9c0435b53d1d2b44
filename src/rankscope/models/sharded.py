"""Full fine-tuning of a model of which every process holds a part (FSDP2): the same pack, in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.models.group import Group
from rankscope.models.methods.full import FullPack
from rankscope.models.methods.pack import MODEL, Texts


class ShardedPack:
    """A run of full fine-tuning whose weights, gradients and optimizer state are divided among processes.

    Every method that says so is to be called by all of them; what it returns or writes is whole, in the form that a run
    in one process has.

    Args:
        pack: The run with its whole model, on the processor; it is taken apart here.
        group: The processes.
        offload: Keep parts in the host's memory, and bring a layer to the device when its turn comes.
    """

    alters_base = True

    def __init__(self, pack: FullPack, group: Group, *, offload: bool) -> None:
        self.model = pack.model
        self.runs = pack.runs
        self.num_base_parameters = pack.num_base_parameters
        self.group = group
        self._pack = pack
        _shard(pack.model, group, offload=offload)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        """Nothing to do: all rows are the one run's."""

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """As for a whole model, this process's parts of it."""
        return self._pack.parameter_groups(index)

    def regularisation(self, index: int) -> Tensor | None:
        """None."""
        return None

    def after_step(self, index: int, step: int) -> None:
        """Nothing to do."""

    def state(self, index: int) -> dict[str, Tensor]:
        """Every trained parameter, whole; for all processes to call. Only the first keeps what it is given."""
        self._reshard()
        return gathered(self._pack.state(index), self.group)

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Take this process's parts of saved parameters."""
        self._reshard()
        with torch.no_grad():
            for name, parameter in self._pack.state(index).items():
                parameter.copy_(part_of(state[name], parameter))

    def generator(self, index: int) -> torch.Generator:
        """See `FullPack.generator`."""
        return self._pack.generator(index)

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `from_pretrained`, written by the first process; for all processes to call."""
        self._reshard()
        whole = gathered(self.model.state_dict(keep_vars=True), self.group)
        if not self.group.is_first:
            return []
        self.model.save_pretrained(folder / MODEL, state_dict=whole)
        return [f"{MODEL}/{path.name}" for path in (folder / MODEL).iterdir()]

    def close(self) -> None:
        """Nothing to take away: the model is in pieces."""

    def _reshard(self) -> None:
        """After a forward pass alone embeddings and head are still whole; what is asked for are the parts."""
        self.model.reshard()


def _shard(model: PreTrainedModel, group: Group, *, offload: bool) -> None:
    """Divide a model's parameters, layer by layer, so that one layer at a time is whole while it computes."""
    if group.mesh is None:
        raise ValueError("a model is divided among processes that have met")
    mesh = group.mesh
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in reversed(layers):  # what is inside another comes first
        fully_shard(module, mesh=mesh, offload_policy=policy)
    # The output head is used once more after the model's own forward: what lies outside layers stays whole till then.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are weighted by the whole batch's tokens, so gradients are summed and not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def gathered(tensors: dict[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Tensors whole and on the processor, one after the other; in all processes but the first, none.

    Tensors that are one (tied weights) stay one.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            value = whole(tensor.detach())  # all take part
            found[id(tensor)] = value.cpu() if group.is_first else torch.empty(0)
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if group.is_first else {}


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it would be in one process; for all processes to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where another of its shape is in parts."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    # Every process reads the whole from disk, so nothing is sent.
    parts = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return parts.to(like.device)
