"""Log-likelihoods of tokens in rows: the one forward pass that options, texts and completions are scored with.

A row is a sequence of token ids in which some positions predict a token that counts. Every such prediction belongs to
a slot (an option, a text, a completion), and what comes back is one sum for each slot. Rows of similar length share a
batch; padding stands behind what is scored, where a causal model cannot see it, so no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.models.heads import scored_logits
from rankscope.models.masks import tree_mask

# Logits that are held at once: 256 MiB in float32. One row is never split, so a single longer one may need more.
_MAX_LOGITS = 2**26
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
        positions: The position of every token in its text, where it differs from the index (option trees).
        segments: 0 for the prompt, then 1, 2, ... for the branches behind it (option trees).
    """

    input_ids: Sequence[int]
    predict_at: Sequence[int]
    targets: Sequence[int]
    slots: Sequence[int]
    positions: Sequence[int] | None = None
    segments: Sequence[int] | None = None


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
        rows: All with positions and segments, or all without.
        num_slots: How many sums there are; a slot that no row names stays 0.
        max_tokens: Positions in one forward pass at most, padding included; a single longer row still goes through.
    """
    max_tokens = min(max_tokens, _MAX_TOKENS_CPU) if model.device.type == "cpu" else max_tokens
    sums = torch.zeros(num_slots, dtype=torch.float64)
    vocab = model.config.get_text_config().vocab_size
    lengths = [len(row.input_ids) for row in rows]
    logits = [len(set(row.predict_at)) * vocab for row in rows]
    with torch.no_grad():
        for indices in token_batches(lengths, max_tokens, logits):
            batch = [rows[index] for index in indices]
            values = _token_log_likelihoods(model, batch)
            slots = torch.tensor([slot for row in batch for slot in row.slots])
            sums.index_add_(0, slots, values.double().cpu())
    return sums


def token_batches(
    lengths: Sequence[int], max_tokens: int, logits: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Groups of indices whose padded rows fit a budget, longest first, so that memory runs out early or never.

    Args:
        lengths: The length of each row.
        max_tokens: Padded positions in a group: its number of rows times its longest.
        logits: How many logits each row needs, where they are many.
    """
    group: list[int] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        wanted = logits[index] if logits is not None else 0
        # The first of a group is its longest.
        too_long = group and (len(group) + 1) * lengths[group[0]] > max_tokens
        if too_long or (group and held + wanted > _MAX_LOGITS):
            yield group
            group, held = [], 0
        group.append(index)
        held += wanted
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]], value: int) -> Int[Tensor, "batch pos"]:
    """Rows as one tensor, filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *(value,) * (longest - len(row))] for row in rows])


def _token_log_likelihoods(model: PreTrainedModel, batch: Sequence[ScoredRow]) -> Float[Tensor, " scored"]:
    """Log-probability of every target of a batch, row by row."""
    device = model.device
    # What stands in the padding does not matter: nothing that is scored can see it.
    input_ids = padded([row.input_ids for row in batch], 0).to(device)
    length = input_ids.shape[1]
    inputs = {}
    if batch[0].segments is not None:
        positions = padded([row.positions for row in batch], 0)
        segments = padded([row.segments for row in batch], length)
        inputs["position_ids"] = positions.to(device)
        inputs["attention_mask"] = tree_mask(segments.to(device), model.dtype)
    flat = torch.tensor([number * length + index for number, row in enumerate(batch) for index in row.predict_at])
    # Options share the position before them: its logits are made once.
    positions, which = torch.unique(flat, return_inverse=True)
    targets = torch.tensor([target for row in batch for target in row.targets])
    logits = scored_logits(model, positions.to(device), input_ids=input_ids, **inputs)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    which, targets = which.to(device), targets.to(device)
    return wide[which, targets] - torch.logsumexp(wide, dim=-1)[which]
