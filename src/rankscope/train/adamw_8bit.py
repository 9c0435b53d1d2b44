"""AdamW whose two moments are kept in 8 bits, block by block (Dettmers et al. 2022, arXiv 2110.02861)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.distributed.tensor import DTensor

from rankscope.models.sharded import part_of

_BLOCK = 256
# As bitsandbytes has it: tensors that are smaller (norms, biases) keep their moments whole.
_SMALLEST = 4096
# Values of a tensor that are updated at once: more would need more memory beside it.
_AT_ONCE = 2**22
_MOMENTS = ("exp_avg", "exp_avg_sq")


@functools.cache
def code_values(*, signed: bool) -> Float[Tensor, 256]:
    """The numbers in -1 to 1 (or 0 to 1) that 8 bits stand for: dense near 0, by seven powers of ten.

    They are bitsandbytes' dynamic map, but for -1 in the place of its smallest negative number: since every block has
    its largest number at -1 or 1, what was rounded once is not rounded again, and a checkpoint in float32 gives the
    codes back.
    """
    values = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (power if signed else power + 1) + 1, dtype=torch.float64)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - 6)
        values += means.tolist()
        values += (-means).tolist() if signed else []
    if signed:
        values.remove(max(value for value in values if value < 0))
        values.append(-1.0)
    return torch.tensor(sorted(values), dtype=torch.float32)


class Blocks:
    """A tensor in 8 bits: a code for each number, and for each block of them the largest.

    Args:
        number: Of values; they begin as 0.
        signed: They may be negative.
        device: Where they lie.
    """

    def __init__(self, number: int, *, signed: bool, device: torch.device) -> None:
        padded = -(-number // _BLOCK) * _BLOCK
        self.codes: UInt8[Tensor, " padded"] = torch.zeros(padded, dtype=torch.uint8, device=device)
        self.largest: Float[Tensor, " blocks"] = torch.zeros(len(self.codes) // _BLOCK, device=device)
        self._number = number
        self._values = code_values(signed=signed).to(device)
        self._edges = (self._values[1:] + self._values[:-1]) / 2
        self._zero = int((self._values == 0).nonzero())

    def read(self, start: int = 0, stop: int | None = None) -> Float[Tensor, " values"]:
        """The values from `start`, which begins a block, to `stop`."""
        stop = self._number if stop is None else stop
        last = -(-stop // _BLOCK)
        codes = self.codes[start : last * _BLOCK].view(-1, _BLOCK)
        return (self._values[codes.int()] * self.largest[start // _BLOCK : last, None]).view(-1)[: stop - start]

    def write(self, values: Float[Tensor, " values"], start: int = 0) -> None:
        """Keep values from `start` on, which begins a block, rounded to the nearest; to 0 only what is 0."""
        padded = torch.nn.functional.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK)
        largest = padded.abs().amax(dim=1)
        scaled = padded / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        codes = torch.bucketize(scaled, self._edges, out_int32=True)
        # A second moment of 0 under a first one that is none would be a step without bounds.
        codes += (codes == self._zero) * scaled.sign().int()
        self.codes[start : start + padded.numel()] = codes.view(-1).to(torch.uint8)
        self.largest[start // _BLOCK : start // _BLOCK + len(largest)] = largest


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in 8 bits; the update itself is made in float32, before they are rounded.

    Args:
        groups: Parameter groups with `weight_decay`; parameters may be in parts.
        lr: The learning rate.
        betas: The decays of the two moments.
        eps: Added to the root of the second.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._begin(parameter)
        state["step"] += 1
        weights, gradient = _local(parameter).view(-1), _local(parameter.grad).reshape(-1)
        beta1, beta2 = group["betas"]
        step = int(state["step"])
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        for start, stop in _stretches(len(weights)):
            part = gradient[start:stop]
            first, second = (_read(state[name], start, stop) for name in _MOMENTS)
            first.lerp_(part, 1 - beta1)
            second.mul_(beta2).addcmul_(part, part, value=1 - beta2)
            scale = second.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
            weights[start:stop].addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**step))
            for name, moment in zip(_MOMENTS, (first, second), strict=True):
                if isinstance(state[name], Blocks):
                    state[name].write(moment, start)

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        local = _local(parameter)
        state["step"] = torch.zeros(())
        for name in _MOMENTS:
            is_small = parameter.numel() < _SMALLEST
            blocks = None if is_small else Blocks(local.numel(), signed=name == "exp_avg", device=local.device)
            state[name] = torch.zeros_like(parameter, requires_grad=False) if blocks is None else blocks
        return state

    def whole_state(self) -> Iterator[tuple[int, str, Tensor]]:
        """The state as plain AdamW's, number for number: the parameter's place, the state's name, and its tensor."""
        for index, parameter in enumerate(self._parameters()):
            for name, value in self.state.get(parameter, {}).items():
                yield index, name, _like(parameter, value.read()) if isinstance(value, Blocks) else value

    def load_whole_state(self, entries: dict[int, dict[str, Tensor]]) -> None:
        """Put back what `whole_state` gave, gathered from all parts."""
        for index, parameter in enumerate(self._parameters()):
            if index not in entries:
                continue
            state = self._begin(parameter)
            state["step"].copy_(entries[index]["step"])
            for name in _MOMENTS:
                value = part_of(entries[index][name], parameter)
                if isinstance(state[name], Blocks):
                    state[name].write(_local(value).reshape(-1).to(_local(parameter).device))
                else:
                    state[name].copy_(value)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, values: Float[Tensor, " values"]) -> Tensor:
    """Values in the shape of a parameter, in parts where it is."""
    local = values.view(_local(parameter).shape)
    if not isinstance(parameter, DTensor):
        return local
    form = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(local, parameter.device_mesh, parameter.placements, run_check=False, **form)


def _read(moment: Tensor | Blocks, start: int, stop: int) -> Float[Tensor, " values"]:
    """Some values of a moment: of one that is whole, where they lie, so that they change there."""
    return moment.read(start, stop) if isinstance(moment, Blocks) else _local(moment).view(-1)[start:stop]


def _stretches(number: int) -> Iterator[tuple[int, int]]:
    for start in range(0, number, _AT_ONCE):
        yield start, min(start + _AT_ONCE, number)
