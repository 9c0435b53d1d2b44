"""AdamW and the learning rate at each step, for every method alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from rankscope.models.group import ALONE, Group
from rankscope.models.sharded import gathered, part_of
from rankscope.spec import Optimization
from rankscope.train.adamw_8bit import AdamW8bit


def make_optimizer(
    groups: list[dict[str, Any]], optimization: Optimization, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW over parameter groups, fused where torch has it for their device and type, or with states in 8 bits."""
    device = groups[0]["params"][0].device.type
    betas, eps = (optimization.adam_beta1, optimization.adam_beta2), optimization.adam_epsilon
    if optimization.optim == "adamw_8bit":
        return AdamW8bit(groups, learning_rate, betas, eps)
    is_fused = device in {"cpu", "cuda", "mps"}
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=is_fused)


def rate_factors(optimization: Optimization, num_steps: int, learning_rate: float) -> Callable[[int], float]:
    """The factor on the learning rate before each step (counted from 0), as transformers' schedules give it.

    A function of the step alone, so that a resumed run needs no scheduler's state.
    """
    # The polynomial schedule ends at a rate of its own, so its factors depend on the rate that they start from.
    carrier = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    num_warmup_steps = math.ceil(num_steps * optimization.warmup_ratio)
    schedule = get_scheduler(optimization.lr_scheduler, carrier, num_warmup_steps, num_steps)
    return schedule.lr_lambdas[0]


def optimizer_tensors(optimizer: torch.optim.Optimizer, group: Group = ALONE) -> dict[str, Tensor]:
    """AdamW's state as named tensors, so that it can be kept without a pickle; whole ones in the first process."""
    if isinstance(optimizer, AdamW8bit):  # one after the other: all at once in float32 is what there is no room for
        found: dict[str, Tensor] = {}
        for index, name, tensor in optimizer.whole_state():
            found |= gathered({f"{index}.{name}": tensor}, group)
        return found
    state = optimizer.state_dict()["state"]
    tensors = {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}
    return gathered(tensors, group)


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = tensor
    if isinstance(optimizer, AdamW8bit):
        optimizer.load_whole_state(entries)
        return
    for index, entry in entries.items():
        entries[index] = {name: part_of(tensor, parameters[index]) for name, tensor in entry.items()}
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
