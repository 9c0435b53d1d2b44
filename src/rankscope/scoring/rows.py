"""Log-likelihoods of tokens in rows: the one forward pass that options, texts and completions are scored with.

A row is a sequence of token ids in which some positions predict a token that counts. Every such prediction belongs to
a slot (an option, a text, a completion), and what comes back is one sum for each slot. Where a model can (see
models/joined.py), rows stand one behind another without padding; else rows of similar length share a batch, and padding
stands behind what is scored, where a causal model cannot see it, so no attention mask is needed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.models.heads import scored_log_likelihoods
from rankscope.models.joined import JoinedRow, can_join, joined_attention, joined_inputs
from rankscope.models.masks import tree_mask
from rankscope.models.memory import free_memory, is_out_of_memory
from rankscope.models.text_trees import TextTree

# A processor is fastest while a layer's activations stay in its caches; above this, batches only cost time
# (3M parameters, one thread, 150 short items in trees: 0.79 s at 1,024 positions, 0.85 at 2,048, 1.13 at 8,192).
_MAX_TOKENS_CPU = 1024


@dataclass(frozen=True)
class ScoredRow:
    """Token ids, and which of their positions predict a token that counts.

    Attributes:
        input_ids: What the model reads.
        predict_at: Indices into `input_ids`; the logits there predict the target. One index may serve several targets.
        targets: The token predicted at each of them.
        slots: Where each prediction is added up.
        tree: How the row branches; None where it is one text.
    """

    input_ids: Sequence[int]
    predict_at: Sequence[int]
    targets: Sequence[int]
    slots: Sequence[int]
    tree: TextTree | None = None


def context_length(model: PreTrainedModel, tokenizer_limit: int) -> int:
    """Positions that a model has: its configuration's, or the tokenizer's limit where positions are unbounded.

    Args:
        model: A causal model.
        tokenizer_limit: The tokenizer's `model_max_length`.
    """
    config = model.config.get_text_config()
    # Architectures without learned or rotary positions (BLOOM) have no such key.
    return getattr(config, "max_position_embeddings", None) or tokenizer_limit


def completion_rows(prompt: Sequence[int], completion: Sequence[int], slot: int, context: int) -> list[ScoredRow]:
    """The rows that score every token of a completion once: one, cut from the left where the context is too short.

    The last token is predicted, never read, so `context + 1` tokens fit. A completion that alone is longer than the
    context is scored in windows that each predict up to `context` tokens, as lm-eval's rolling likelihood does.

    Args:
        prompt: At least one token.
        completion: What is scored.
        slot: Where the sum goes.
        context: Positions that the model has.
    """
    tokens = [*prompt, *completion]
    rows = []
    begin = len(prompt)
    while begin < len(tokens):
        end = min(begin + context, len(tokens))
        first = max(0, end - context - 1)
        # The first window of a long completion sees one token before it, as lm-eval's does.
        rows.append(
            ScoredRow(
                input_ids=tokens[first : end - 1],
                predict_at=range(begin - 1 - first, end - 1 - first),
                targets=tokens[begin:end],
                slots=[slot] * (end - begin),
            )
        )
        begin = end
    return rows


def slot_log_likelihoods(
    model: PreTrainedModel, rows: Sequence[ScoredRow], num_slots: int, max_tokens: int
) -> Float[Tensor, " slots"]:
    """The sum of the log-likelihoods of each slot's tokens, in nats, added up in float64.

    Args:
        model: A causal model in evaluation mode.
        rows: All with a tree, or all without.
        num_slots: How many sums there are; a slot that no row names stays 0.
        max_tokens: Positions in one forward pass at most, padding included; a single longer row still goes through.
    """
    max_tokens = min(max_tokens, _MAX_TOKENS_CPU) if model.device.type == "cpu" else max_tokens
    sums = torch.zeros(num_slots, dtype=torch.float64)
    is_joined = can_join(model)
    batches = joined_batches if is_joined else token_batches
    for indices in batches([len(row.input_ids) for row in rows], max_tokens):
        for values, slots in _within_memory(model, [rows[index] for index in indices], is_joined):
            sums.index_add_(0, slots, values.double().cpu())
    return sums


def _within_memory(
    model: PreTrainedModel, batch: Sequence[ScoredRow], is_joined: bool
) -> Iterator[tuple[Float[Tensor, " scored"], Int[Tensor, " scored"]]]:
    """What `_token_log_likelihoods` gives of a batch, in halves where memory does not suffice for all of it."""
    try:
        with joined_attention(model, is_joined):
            found = _token_log_likelihoods(model, batch, is_joined)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
        found = None
    if found is not None:
        yield found
        return
    # Outside of `except`, which holds on to the tensors of the failed forward.
    free_memory(model.device)
    logging.getLogger(__name__).warning("memory ran out with %d rows; they are scored in halves", len(batch))
    for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
        yield from _within_memory(model, half, is_joined)


def joined_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Groups of indices whose rows fit a budget when they stand one behind another, longest first."""
    group: list[int] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if group and held + lengths[index] > max_tokens:
            yield group
            group, held = [], 0
        group.append(index)
        held += lengths[index]
    if group:
        yield group


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Groups of indices whose padded rows fit a budget, longest first, so that memory runs out early or never.

    Args:
        lengths: The length of each row.
        max_tokens: Padded positions in a group: its number of rows times its longest.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # The first of a group is its longest.
        if group and (len(group) + 1) * lengths[group[0]] > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]], value: int) -> Int[Tensor, "batch pos"]:
    """Rows as one tensor, filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *(value,) * (longest - len(row))] for row in rows])


def _token_log_likelihoods(
    model: PreTrainedModel, batch: Sequence[ScoredRow], is_joined: bool
) -> tuple[Float[Tensor, " scored"], Int[Tensor, " scored"]]:
    """Log-probability of every target of a batch, and its slot, in the order of their positions."""
    device = model.device
    inputs = _joined(batch, device) if is_joined else _padded(batch, model)
    stride = max(len(row.input_ids) for row in batch)
    lengths = (len(row.input_ids) if is_joined else stride for row in batch)
    starts = itertools.accumulate(lengths, initial=0)
    predictions = sorted(
        (start + at, target, slot)
        for row, start in zip(batch, starts, strict=False)
        for at, target, slot in zip(row.predict_at, row.targets, row.slots, strict=True)
    )
    flat, targets, slots = torch.tensor(predictions).T
    # Options share the position before them: its logits are made once.
    positions, which = torch.unique_consecutive(flat, return_inverse=True)
    values = scored_log_likelihoods(model, positions.to(device), which.to(device), targets.to(device), **inputs)
    return values, slots


def _joined(batch: Sequence[ScoredRow], device: torch.device) -> dict[str, Any]:
    """Rows one behind another, without padding."""
    row = JoinedRow([row.tree or TextTree(len(row.input_ids)) for row in batch])
    return joined_inputs(row, [token for each in batch for token in each.input_ids], device)


def _padded(batch: Sequence[ScoredRow], model: PreTrainedModel) -> dict[str, Any]:
    """Rows one below another, filled up on the right, where nothing that is scored can see it."""
    input_ids = padded([row.input_ids for row in batch], 0).to(model.device)
    if all(row.tree is None for row in batch):
        return {"input_ids": input_ids}
    trees, longest = [row.tree or TextTree(len(row.input_ids)) for row in batch], input_ids.shape[1]
    ends = torch.tensor([[*tree.ends(), *range(tree.total + 1, longest + 1)] for tree in trees], device=model.device)
    positions = padded([tree.positions() for tree in trees], 0).to(model.device)
    return {"input_ids": input_ids, "position_ids": positions, "attention_mask": tree_mask(ends, model.dtype)}
