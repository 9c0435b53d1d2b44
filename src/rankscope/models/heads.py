"""Logits at chosen positions only, so that no tensor of batch x length x vocabulary is ever made."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


def scored_logits(
    model: PreTrainedModel, positions: Int[Tensor, " scored"], **inputs: Any
) -> Float[Tensor, "scored vocab"]:
    """Run a causal model and return its logits at the given positions.

    The hidden states are gathered just before the output head, inside the model's own forward: whatever an
    architecture does to its logits afterwards (capping, scaling) is still done.

    Args:
        model: Any causal model of transformers whose head is a module.
        positions: Indices into batch x length, row by row. The logits at a position predict the token after it.
        **inputs: `input_ids` of shape batch x length, and what else the model's forward takes.
    """

    def gather(_head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        hidden = arguments[0]  # batch pos d_model
        return (hidden.reshape(-1, hidden.shape[-1])[positions].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        logits = model(use_cache=False, **inputs).logits
    finally:
        handle.remove()
    return logits.squeeze(0)


def negative_log_likelihoods(
    logits: Float[Tensor, "scored vocab"], targets: Int[Tensor, " scored"]
) -> Float[Tensor, " scored"]:
    """-ln p of each target under its row of logits, in nats, computed in float32 or better."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, targets, reduction="none")
