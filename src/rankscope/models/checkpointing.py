"""Gradient checkpointing: a layer keeps its input alone, and its inside is computed again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.errors import UserError


@contextlib.contextmanager
def recomputed_layers(model: PreTrainedModel, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Inside, a forward pass keeps one tensor a layer, for a second forward pass in the backward pass.

    transformers' own switch works in training mode only, in which some architectures drop out; here models are never in
    it. What a layer draws and how it attends are the same the second time.

    Args:
        model: A causal model; adapters may be inside its layers.
        generators: What runs draw from by themselves (PEFT's own modules), beside torch's own generator. Packed LoRA
            layers seed what they draw for each text, and need nothing here.

    Raises:
        UserError: The architecture does not say what its layers are.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        what = f"the layers of {type(model).__name__} cannot be computed twice"
        raise UserError(what, where="execute.gradient_checkpointing", mend="set it to false for this model")
    config = model.config.get_text_config()

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        drawn = [generator.get_state() for generator in generators]
        return contextlib.nullcontext(), _as_before(config, config._attn_implementation, generators, drawn)

    for layer in layers:
        layer.forward = _computed_twice(layer.forward, contexts)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again


def _computed_twice(forward: Any, contexts: Any) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    return run


@contextlib.contextmanager
def _as_before(
    config: Any, implementation: str, generators: Sequence[torch.Generator], drawn: Sequence[torch.Tensor]
) -> Iterator[None]:
    """The attention and the generators' states of a layer's first pass; afterwards they are as they were."""
    now = [generator.get_state() for generator in generators], config._attn_implementation
    config._attn_implementation = implementation
    _set_states(generators, drawn)
    try:
        yield
    finally:
        config._attn_implementation = now[1]
        _set_states(generators, now[0])


def _set_states(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
