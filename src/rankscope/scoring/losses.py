"""Losses of texts and completions: how surprised a model is by each token, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from rankscope.scoring.rows import completion_rows, slot_log_likelihoods

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class TokenLoss:
    """The negative log-likelihood of some tokens, and how many they are."""

    nll_nats: float
    num_scored_tokens: int


def completion_losses(model: PreTrainedModel, pairs: Sequence[Pair], context: int, max_tokens: int) -> list[TokenLoss]:
    """The loss of each completion given its prompt.

    A text is a completion behind the beginning token, as in lm-eval's rolling likelihood: windows of at most the
    model's context, each token scored once.

    Args:
        model: A causal model in evaluation mode.
        pairs: Prompt (at least one token) and completion (may be empty), as token ids.
        context: Positions that the model has; prompts are cut from the left where they do not fit.
        max_tokens: Padded positions in one forward pass.
    """
    rows = []
    for slot, (prompt, completion) in enumerate(pairs):
        rows += completion_rows(prompt, completion, slot, context)
    sums = slot_log_likelihoods(model, rows, len(pairs), max_tokens).tolist()
    return [TokenLoss(-value, len(completion)) for value, (_, completion) in zip(sums, pairs, strict=True)]
