"""Greedy generation in batches: cached, with positions that do not depend on padding, each item ending by itself."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.data.tokens import Tokenizer
from rankscope.scoring.rows import context_length, token_batches

# Texts are looked through for a stop text every so many steps: decoding at each step costs more than a few steps too
# many. What was generated behind the stop text is cut off, so results do not depend on it.
_STEPS_BETWEEN_STOPS = 8
# Ended rows leave the batch once they are so many: taking them out copies the cache.
_ENDED_FRACTION = 0.2


@dataclass(frozen=True)
class Generation:
    """What a model wrote behind one prompt.

    Attributes:
        ids: The tokens, with the end token or the one that completed a stop text as their last.
        text: Their text, without end token and cut before the stop text.
        is_truncated: The prompt was cut from the left to fit the model's context.
        is_unfinished: Neither an end token nor a stop text ended it: it ran to its limit or filled the context.
    """

    ids: tuple[int, ...]
    text: str
    is_truncated: bool
    is_unfinished: bool


@dataclass(frozen=True)
class _Ends:
    """What ends an item: a token, a stop text, or its number of tokens."""

    token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def is_stopped(self, ids: Sequence[int]) -> bool:
        text = self.decode(ids)
        return any(stop in text for stop in self.stop)

    def cut(self, ids: Sequence[int]) -> Sequence[int]:
        """The tokens up to the one that completes the first stop text."""
        if not self.stop or not self.is_stopped(ids):
            return ids
        lengths = range(1, len(ids) + 1)
        first = bisect.bisect_left(lengths, True, key=lambda length: self.is_stopped(ids[:length]))
        return ids[: lengths[first]]

    def are_missing(self, ids: Sequence[int]) -> bool:
        """Whether nothing but its limit ended an item."""
        return ids[-1] not in self.token_ids and not (self.stop and self.is_stopped(ids))

    def text(self, ids: Sequence[int]) -> str:
        """The text of cut tokens, without what ended it."""
        text = self.decode(ids[:-1] if ids and ids[-1] in self.token_ids else ids)
        return text[: min((found for stop in self.stop if (found := text.find(stop)) >= 0), default=len(text))]


# Says which rows of the next forward belong to which adapter: sorted by adapter, so many of each.
Route = Callable[[Sequence[int], Sequence[int]], None]


@dataclass(frozen=True)
class Limits:
    """Where a generation ends, and how much of it goes on at once.

    Attributes:
        max_new_tokens: At most so many tokens for each prompt.
        stop: Texts that end an item.
        max_tokens: Positions held at once, padding and generated tokens included.
    """

    max_new_tokens: int
    stop: Sequence[str]
    max_tokens: int


def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    stop: Sequence[str],
    max_tokens: int,
) -> list[Generation]:
    """Continue each prompt with the likeliest token, over and over.

    A prompt that leaves no room for `max_new_tokens` in the model's context is cut from the left, as lm-eval does it,
    but keeps at least half of the context; then fewer tokens are generated.

    Args:
        model: A causal model in evaluation mode.
        tokenizer: Its tokenizer; its end tokens end an item.
        prompts: As the model sees them.
        max_new_tokens: At most so many tokens for each.
        stop: Texts that end an item.
        max_tokens: Positions held at once, padding and generated tokens included.
    """
    limits = Limits(max_new_tokens, stop, max_tokens)
    return generate_together(model, tokenizer, prompts, limits, (0,), lambda members, num_rows: None)[0]


def generate_together(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    limits: Limits,
    members: Sequence[int],
    route: Route,
) -> list[list[Generation]]:
    """What several adapters over one base write behind the same prompts, decoded side by side.

    Args:
        model: The base with the adapters in it.
        tokenizer: The base's tokenizer.
        prompts: As the model sees them.
        limits: Where an item ends.
        members: The adapters that write, by their indices; ascending.
        route: Told before a forward which rows are whose.

    Returns:
        For each member the generations, in the prompts' order.
    """
    max_new_tokens = limits.max_new_tokens
    context = context_length(model, tokenizer.context_length or limits.max_tokens)
    room = max(context - max_new_tokens, context // 2, 1)
    # An empty completion: the prompt as it is scored elsewhere, opening token and all.
    whole = [[*ids, *rest] for ids, rest in tokenizer.encode_pairs([(prompt, "") for prompt in prompts])]
    kept = [ids[-room:] for ids in whole]
    ends = _Ends(tokenizer.eos_token_ids, tuple(limits.stop), tokenizer.decode)
    # One row for each member and prompt, those of like length side by side whoever's they are.
    rows = [(member, index) for index in range(len(prompts)) for member in members]
    results: dict[tuple[int, int], Generation] = {}
    with torch.no_grad(), _last_logits_only(model):
        for group in _groups(model, [len(kept[index]) for _, index in rows], limits):
            chosen = sorted((rows[place] for place in group), key=lambda row: row[0])
            batch = _Batch(model, [kept[index] for _, index in chosen], max_new_tokens, context)
            batch.share([member for member, _ in chosen], route)
            for (member, index), new in zip(chosen, _generate_batch(batch, ends), strict=True):
                ids = ends.cut(new)
                results[member, index] = Generation(
                    tuple(ids),
                    ends.text(ids),
                    is_truncated=len(whole[index]) > room,
                    is_unfinished=ends.are_missing(ids),
                )
    return [[results[member, index] for index in range(len(prompts))] for member in members]


def _groups(model: PreTrainedModel, lengths: Sequence[int], limits: Limits) -> Iterator[list[int]]:
    """Rows that are continued together: where layers keep a state, those of one length, so that no padding gets in."""
    for group in token_batches([length + limits.max_new_tokens for length in lengths], limits.max_tokens):
        if _may_pad(model):
            yield group
        else:
            yield from (list(alike) for _, alike in itertools.groupby(group, key=lambda index: lengths[index]))


def _takes(model: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _has_cache(model: PreTrainedModel) -> bool:
    """Whether the model gives out what it has read, and takes it back; RecurrentGemma takes a cache and gives none."""
    return _takes(model, "past_key_values") and model.config.model_type != "recurrent_gemma"


def _may_pad(model: PreTrainedModel) -> bool:
    """Whether all layers are attention, which padding can be hidden from; MiniMax's linear attention reads it."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    has_states = getattr(model, "_is_stateful", False) or any(
        kind == "linear_attention" or not kind.endswith("attention") for kind in layers
    )
    return _has_cache(model) and not has_states


def _generate_batch(batch: _Batch, ends: _Ends) -> list[list[int]]:
    """The tokens behind each prompt up to its end token, stop text (or a few tokens more) or limit."""
    device, limits = batch.model.device, batch.limits
    max_new_tokens = batch.generated.shape[1]
    end_ids = torch.tensor(ends.token_ids, dtype=torch.long, device=device)
    num_new = limits.clone()
    is_ended = torch.zeros(len(limits), dtype=torch.bool, device=device)  # of all items
    for step in range(1, max_new_tokens + 1):
        tokens = batch.advance()
        ended = torch.isin(tokens, end_ids) | (limits[batch.items] <= step)
        if ends.stop and step % _STEPS_BETWEEN_STOPS == 0:
            ended |= _stopped(batch, is_ended, ends)
        ended &= ~is_ended[batch.items]
        if bool(ended.any()):
            num_new[batch.items[ended]] = step
            is_ended[batch.items[ended]] = True
            if bool(is_ended.all()):
                break
            batch.drop(is_ended)
    rows = batch.generated.tolist()
    return [row[:number] for row, number in zip(rows, num_new.tolist(), strict=True)]


def _stopped(batch: _Batch, is_ended: Tensor, ends: _Ends) -> Tensor:
    """Which rows of the batch hold a stop text by now."""
    rows = batch.generated[batch.items, : batch.num_generated].tolist()
    skipped = is_ended[batch.items].tolist()
    stopped = [not skip and ends.is_stopped(row) for row, skip in zip(rows, skipped, strict=True)]
    return torch.tensor(stopped, device=is_ended.device)


class _Batch:
    """Prompts that are continued together: padded on the left, so that their last tokens stand in one column."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int
    ) -> None:
        """Set out the prompts; nothing is computed yet."""
        device = model.device
        longest = max(len(ids) for ids in prompts)
        self.model = model
        self.last_position = context - 1
        self.items: Int[Tensor, " batch"] = torch.arange(len(prompts), device=device)  # the item of each row
        self.generated = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
        self.num_generated = 0
        # The last token generated is never read, so the context holds one more.
        self.limits = torch.tensor([min(max_new_tokens, context + 1 - len(ids)) for ids in prompts], device=device)
        self._input_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        lengths = torch.tensor([len(ids) for ids in prompts], device=device)
        columns = torch.arange(longest + max_new_tokens, device=device)
        self._seen = (columns >= longest - lengths[:, None]).long()  # batch pos
        self._positions = (columns[:longest] - (longest - lengths[:, None])).clamp_(min=0)
        # A model without settable positions (ALiBi) works them out from the mask.
        self._takes_positions = _takes(model, "position_ids")
        self._has_cache = _has_cache(model)
        self._can_drop = _may_pad(model) or not self._has_cache  # rows of a cache of states cannot be taken out
        self._cache = None
        self._num_read = longest

    def share(self, owners: Sequence[int], route: Route) -> None:
        """Say whose each item is, ascending, and who is to be told of it."""
        self._owners = owners
        self._route = route
        self._tell_owners()

    def _tell_owners(self) -> None:
        counts = Counter(self._owners[item] for item in self.items.tolist())
        self._route(tuple(counts), tuple(counts.values()))

    def advance(self) -> Int[Tensor, " batch"]:
        """Read the newest tokens and return the likeliest next one of each row."""
        output = self.model(input_ids=self._input_ids, **self._inputs())
        tokens = output.logits[:, -1].argmax(dim=-1)
        self.generated[self.items, self.num_generated] = tokens
        self.num_generated += 1
        self._num_read += 1
        if self._has_cache:
            self._cache = output.past_key_values
            self._input_ids = tokens[:, None]
        else:
            self._input_ids = torch.cat([self._input_ids, tokens[:, None]], dim=1)
        # Rows that have ended go on for a while and are not looked at; they must not run out of positions.
        self._positions = (self._positions[:, -1:] + 1).clamp_(max=self.last_position)
        return tokens

    def _inputs(self) -> dict[str, Any]:
        """What the model is told beside tokens; one that keeps a state of its own reads all of a text each time."""
        if not self._has_cache:
            return {"use_cache": False} if _takes(self.model, "use_cache") else {}
        positions = {"position_ids": self._positions} if self._takes_positions else {}
        seen = self._seen[:, : self._num_read]
        return {"attention_mask": seen, "past_key_values": self._cache, "use_cache": True, **positions}

    def drop(self, is_ended: Tensor) -> None:
        """Take ended rows out of the batch, once they are many."""
        alive = (~is_ended[self.items]).nonzero().squeeze(1)
        if len(alive) > (1 - _ENDED_FRACTION) * len(self.items) or not self._can_drop:
            return
        self.items = self.items[alive]
        self._input_ids, self._positions, self._seen = (
            part[alive] for part in (self._input_ids, self._positions, self._seen)
        )
        if self._has_cache:
            self._cache.batch_select_indices(alive)
        self._tell_owners()


@contextlib.contextmanager
def _last_logits_only(model: PreTrainedModel) -> Iterator[None]:
    """Only the last position reaches the output head."""

    def last(_head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (arguments[0][:, -1:],)  # batch 1 d_model

    handle = model.get_output_embeddings().register_forward_pre_hook(last)
    try:
        yield
    finally:
        handle.remove()
