"""Texts that stand one behind another in a single row, none of which sees another: no position is padding.

Everything in a transformer but attention looks at one position at a time, so a row may hold many texts if positions
restart and attention keeps them apart. Here attention goes text by text, which costs what the texts cost and no more; a
text may end in branches (the items behind worked examples, the options of an item), which see it and not each other.

On a GPU every text would be a launch of its own, so rows are joined on a processor only; elsewhere they are padded.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from rankscope.models.heads import is_plain, scored_logits
from rankscope.models.text_trees import TextTree

# Tried with tests/unit/models/test_joined.py; a model that is not here, or fails the check, gets padded rows.
# Not here: Falcon and BLOOM, whose attention cannot be exchanged, and all that mix positions elsewhere (convolutions,
# linear attention).
_KNOWN = frozenset({"llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox", "opt", "mixtral"})
_IMPLEMENTATION = "rankscope_joined"
# Up to this length a text and its branches go together under one mask: calls of their own cost more.
_ONE_CALL = 192
# A text of such a length goes so many queries at a time, with the keys up to their last: torch's kernel leaves out only
# whole blocks of 512 keys, so that up to here one call computes much of what causality masks away.
_STRETCH, _IN_STRETCHES = 64, range(129, 1025)
_CHECKED_LENGTHS = (7, 1, _IN_STRETCHES.start, 4)
# A mask that does not hold changes logits by their own size. Some architectures route or normalise in float32 always.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
_TOLERANCE_HALF = 0.1


@dataclass(frozen=True)
class _Part:
    """Positions of a text whose attention is one call: which keys they see, and what of those they must not.

    Attributes:
        queries: Positions, from the text's beginning.
        keys: The stretches of positions that are looked at, together in this order.
        mask: Added to the scores; its rows stand there once for each of the heads that share keys. None where plain
            causality says it all.
    """

    queries: slice
    keys: tuple[slice, ...]
    mask: Float[Tensor, "query key_pos"] | None


class JoinedRow:
    """The texts of a row, and how their attention is divided into calls, found once for all layers."""

    def __init__(self, texts: Sequence[TextTree]) -> None:
        self.texts = tuple(texts)
        self._parts: dict[tuple[int | None, int], list[list[_Part]]] = {}

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of each text, branches included."""
        return [text.total for text in self.texts]

    def position_ids(self, device: torch.device) -> Int[Tensor, "1 pos"]:
        """Positions that restart with every text."""
        return torch.tensor([[position for text in self.texts for position in text.positions()]], device=device)

    def parts(self, window: int | None, num_sharing: int, like: Tensor) -> list[list[_Part]]:
        """Each text's calls, for layers that see so many positions back (None: all), where so many heads share keys."""
        if (window, num_sharing) not in self._parts:
            found = [_parts(text, window, like) for text in self.texts]
            self._parts[window, num_sharing] = [[_for_heads(part, num_sharing) for part in parts] for parts in found]
        return self._parts[window, num_sharing]


def joined_inputs(row: JoinedRow, input_ids: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What a model's forward takes for a joined row, inside `joined_attention`."""
    return {
        "input_ids": torch.tensor([input_ids], device=device),
        "position_ids": row.position_ids(device),
        "joined": row,
    }


@contextlib.contextmanager
def joined_attention(model: PreTrainedModel, is_joined: bool = True) -> Iterator[None]:
    """Inside, the model's attention keeps the texts of a joined row apart; its forward must be given the row."""
    if not is_joined:
        yield
        return
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


_CHECKED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def can_join(model: PreTrainedModel) -> bool:
    """Whether a model gives joined texts the numbers that it gives each of them alone; found out once, by trying.

    Args:
        model: A causal model; adapters inside it do not matter, as long as they serve all rows alike.
    """
    if model not in _CHECKED:
        _CHECKED[model] = _is_candidate(model) and _joins_right(model)
    return _CHECKED[model]


def never_join(model: PreTrainedModel) -> None:
    """Pad a model's rows without trying: it is not yet where it will compute."""
    _CHECKED[model] = False


def _is_candidate(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    is_exchangeable = config.model_type in _KNOWN and config._attn_implementation == "sdpa"
    return is_plain(model) and is_exchangeable and model.device.type == "cpu"


@torch.no_grad()
def _joins_right(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    lengths = [min(length, getattr(config, "max_position_embeddings", length)) for length in _CHECKED_LENGTHS]
    # Any tokens do: a step that fits all of a small vocabulary's and most of a large one's.
    texts = [[(7 * number + 3 * index + 2) % config.vocab_size for index in range(length)] for number, length in
             enumerate(lengths)]  # fmt: skip
    # A mask that does not hold shows at most positions behind it: some of each text say it, and fewer logits are made.
    places = [torch.arange(0, length, max(1, length // 32)) for length in lengths]
    rows = [torch.tensor([text], device=model.device) for text in texts]
    apart = torch.cat([scored_logits(model, at, input_ids=ids) for at, ids in zip(places, rows, strict=True)])
    row = JoinedRow([TextTree(length) for length in lengths])
    starts = itertools.accumulate(lengths[:-1], initial=0)
    positions = torch.cat([start + at for start, at in zip(starts, places, strict=True)])
    with joined_attention(model):
        inputs = joined_inputs(row, [token for text in texts for token in text], model.device)
        together = scored_logits(model, positions, **inputs)
    scale = float(apart.abs().max().clamp(min=1.0))
    # A comparison with NaN is false, so what is not finite is refused too.
    return bool(((together - apart).abs() <= _TOLERANCE.get(model.dtype, _TOLERANCE_HALF) * scale).all())


def _attention(
    _module: nn.Module,
    query: Float[Tensor, "1 head pos d_head"],
    key: Float[Tensor, "1 kv_head pos d_head"],
    value: Float[Tensor, "1 kv_head pos d_head"],
    _attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "1 pos head d_head"], None]:
    """The attention of a joined row, as transformers calls it in every layer."""
    joined: JoinedRow = options["joined"]
    scaling, window = options.get("scaling"), options.get("sliding_window")  # not every architecture gives them
    num_sharing = query.shape[1] // key.shape[1]
    pieces = zip(*(tensor.split(joined.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        _attend(part, q, k, v, scaling)
        for parts, (q, k, v) in zip(joined.parts(window, num_sharing, query), pieces, strict=True)
        for part in parts
    ]
    return torch.cat(outputs, dim=1), None


def _attend(
    part: _Part, q: Tensor, k: Tensor, v: Tensor, scaling: float | None
) -> Float[Tensor, "1 query_pos head d_head"]:
    """One call of attention, over the positions of one text.

    Under a mask, heads that share their keys are one head with the queries of all: more rows at a time, no key copied.
    """
    q, (k, v) = q[:, :, part.queries], (_taken(tensor, part.keys) for tensor in (k, v))
    shape, is_shared = q.shape, q.shape[1] > k.shape[1]
    if part.mask is None:
        found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=is_shared)
    else:
        q = q.reshape(1, k.shape[1], -1, shape[3]) if is_shared else q
        found = scaled_dot_product_attention(q, k, v, attn_mask=part.mask, scale=scaling)
    return found.reshape(shape).transpose(1, 2)


def _taken(tensor: Tensor, stretches: tuple[slice, ...]) -> Tensor:
    taken = [tensor[:, :, stretch] for stretch in stretches]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


def _parts(text: TextTree, window: int | None, like: Tensor) -> list[_Part]:
    """The calls for a text: one where it is short, else those of its own positions and of each branch."""
    is_windowed = window is not None and text.deepest > window
    if not text.branches and not is_windowed and text.total not in _IN_STRETCHES:
        whole = slice(0, text.total)
        return [_Part(whole, (whole,), None)]
    positions, ends, index = torch.tensor(text.positions()), torch.tensor(text.ends()), torch.arange(text.total)
    seen = (index <= index[:, None]) & (index[:, None] < ends)
    if is_windowed:
        seen &= positions > positions[:, None] - window
    mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, float("-inf")).to(like.device)
    return list(_calls(text, 0, (), mask, is_windowed))


def _calls(text: TextTree, start: int, before: tuple[slice, ...], mask: Tensor, is_windowed: bool) -> Iterator[_Part]:
    """The calls of a tree's part that begins at `start` and sees the stretches `before` it."""
    is_one = bool(text.branches) and text.total <= _ONE_CALL
    own = slice(start, start + (text.total if is_one else text.length))
    is_causal = not (before or is_windowed or is_one)
    if own.stop > own.start:
        yield from _own_calls(own, before, mask, is_causal=is_causal)
    start = own.stop
    for branch in () if is_one else text.branches:
        yield from _calls(branch, start, (*before, own), mask, is_windowed)
        start += branch.total


def _own_calls(own: slice, before: tuple[slice, ...], mask: Tensor, *, is_causal: bool) -> Iterator[_Part]:
    """The calls of a text's positions, which see the stretches `before` them and what the mask leaves of their own."""
    if own.stop - own.start not in _IN_STRETCHES:
        yield _part(own, (*before, own), mask, is_causal=is_causal)
        return
    for start in range(own.start, own.stop, _STRETCH):
        queries = slice(start, min(start + _STRETCH, own.stop))
        yield _part(queries, (*before, slice(own.start, queries.stop)), mask, is_causal=False)


def _part(queries: slice, keys: tuple[slice, ...], mask: Tensor, *, is_causal: bool) -> _Part:
    # Contiguous in memory: a kernel reads a mask with strides several times slower.
    own = None if is_causal else torch.cat([mask[queries, stretch] for stretch in keys], dim=1)
    return _Part(queries, keys, own)


def _for_heads(part: _Part, number: int) -> _Part:
    return part if part.mask is None or number == 1 else replace(part, mask=part.mask.repeat(number, 1))


AttentionInterface.register(_IMPLEMENTATION, _attention)
