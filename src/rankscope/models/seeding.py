"""The one place that seeds torch's global generator: PEFT's initialisation draws from it and takes no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; afterwards they are as before."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class OwnRandomness:
    """A model that draws from a generator of its own while it trains: PEFT's dropouts take no generator.

    Args:
        model: Its forward passes are what draws.
        generator: On the model's device.
    """

    def __init__(self, model: nn.Module, generator: torch.Generator) -> None:
        self.is_on = False
        self._generator = generator
        self._outside: torch.Tensor | None = None
        self._hooks = (
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        )

    def remove(self) -> None:
        """Let the model draw from torch's generator again."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, _model: nn.Module, _arguments: Any) -> None:
        if self.is_on:
            self._outside = self._state()
            self._set_state(self._generator.get_state())

    def _leave(self, _model: nn.Module, _arguments: Any, _output: Any) -> None:
        if self._outside is not None:
            self._generator.set_state(self._state())
            self._set_state(self._outside)
            self._outside = None

    def _state(self) -> torch.Tensor:
        device = self._generator.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _set_state(self, state: torch.Tensor) -> None:
        device = self._generator.device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
