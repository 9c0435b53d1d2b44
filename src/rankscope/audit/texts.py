"""What the change does on texts: the loss of base and tuned model, and where their heads look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.analyse.heads import HeadTable, head_means
from rankscope.audit.result import OnTexts
from rankscope.data.readers import Row
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.internals.attention import attention_divergence, pattern_measures
from rankscope.internals.patterns import (
    Batch,
    LayerPattern,
    batches,
    packed_pattern,
    show_patterns,
    unpacked_pattern,
)
from rankscope.scoring.losses import TokenLoss, completion_losses

# Patterns grow with the square of the length and are kept on disk for the comparison.
MOST_TEXTS, MOST_TOKENS = 32, 512
_TOKENS_PER_BATCH = 2048
# Where nothing says how many positions a model has.
_CONTEXT = 2048

Pair = tuple[list[int], list[int]]
Keep = Callable[[int, int, Tensor], None]
Kept = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Texts:
    """Texts as a model reads them.

    Attributes:
        pairs: What goes before, and what is scored.
        context: How many positions the model has.
    """

    pairs: list[Pair]
    context: int

    def probes(self) -> list[Batch]:
        """The first texts, cut, in batches that are the same for both models."""
        cut = [[*prompt, *completion][:MOST_TOKENS] for prompt, completion in self.pairs[:MOST_TEXTS]]
        return batches(cut, _TOKENS_PER_BATCH)

    def notes(self) -> tuple[str, ...]:
        """What was left out."""
        parts = self.pairs[:MOST_TEXTS]
        is_cut = any(len(prompt) + len(completion) > MOST_TOKENS for prompt, completion in parts)
        if len(parts) == len(self.pairs) and not is_cut:
            return ()
        return (f"attention was looked at on the first {len(parts)} texts, up to {MOST_TOKENS} tokens of each",)


def as_texts(rows: Sequence[Row], tokenizer: Tokenizer) -> Texts:
    """Rows with a `text`, or with a `prompt` and the `completion` that is scored.

    Raises:
        UserError: A row has neither, or none of them has a token to score.
    """
    pairs = tokenizer.encode_pairs([_pair(row) for row in rows])
    kept = [(prompt, completion) for prompt, completion in pairs if completion]
    if not kept:
        raise UserError("there is no text in it", where="--texts", mend="one text a paragraph, or a `text` a row")
    return Texts(kept, tokenizer.context_length or _CONTEXT)


def look_at_base(model: PreTrainedModel, texts: Texts, keep: Keep) -> tuple[list[TokenLoss], pl.DataFrame]:
    """The base's losses and heads; its patterns are handed to `keep` with the number of the batch and the layer."""
    table = HeadTable()
    for index, batch in enumerate(texts.probes()):

        def take(layer: LayerPattern, index: int = index) -> None:
            table.add(layer.layer, pattern_measures(layer.pattern, layer.visible))
            keep(index, layer.layer, packed_pattern(layer))

        show_patterns(model, batch, take)
    return _losses(model, texts), table.frame()


def look_at_tuned(
    model: PreTrainedModel, texts: Texts, base: tuple[list[TokenLoss], pl.DataFrame], kept: Kept
) -> OnTexts:
    """The tuned model's losses and heads beside the base's."""
    table = HeadTable()
    for index, batch in enumerate(texts.probes()):

        def compare(layer: LayerPattern, index: int = index) -> None:
            before = unpacked_pattern(kept(index, layer.layer), layer.visible)
            divergence = attention_divergence(before, layer.pattern, layer.visible)
            measures = pattern_measures(layer.pattern, layer.visible)
            table.add(layer.layer, {**measures, "attention_divergence": divergence})

        show_patterns(model, batch, compare)
    losses, heads = base
    found = table.frame().join(heads, on=["layer", "head"], how="left", suffix="_base", maintain_order="left")
    scored = pl.DataFrame(list(_rows(losses, _losses(model, texts))))
    return OnTexts(scored, found, _summary(scored, found), texts.notes())


def _pair(row: Row) -> tuple[str, str]:
    values = row.values
    if isinstance(values.get("text"), str):
        return "", values["text"]
    if isinstance(values.get("prompt"), str) and isinstance(values.get("completion"), str):
        return values["prompt"], values["completion"]
    mend = "give rows with `text`, or with `prompt` and `completion`, or a .txt file with a text a paragraph"
    raise UserError("the row is no text", where=row.where, mend=mend)


def _losses(model: PreTrainedModel, texts: Texts) -> list[TokenLoss]:
    return completion_losses(model, texts.pairs, texts.context, max(_TOKENS_PER_BATCH, texts.context))


def _rows(base: list[TokenLoss], tuned: list[TokenLoss]) -> Iterator[dict[str, Any]]:
    for index, (before, after) in enumerate(zip(base, tuned, strict=True)):
        number = before.num_scored_tokens
        yield {
            "text": index,
            "num_scored_tokens": number,
            "loss_nats_per_token": after.nll_nats / number,
            "loss_nats_per_token_base": before.nll_nats / number,
        }


def _summary(losses: pl.DataFrame, heads: pl.DataFrame) -> dict[str, float]:
    """Means over all tokens for losses, over layers and heads for attention; `_base` marks the base's own."""
    tokens = pl.col("num_scored_tokens")
    keys = ("loss_nats_per_token", "loss_nats_per_token_base")
    means = losses.select(((pl.col(key) * tokens).sum() / tokens.sum()).alias(key) for key in keys).row(0, named=True)
    change = means["loss_nats_per_token"] - means["loss_nats_per_token_base"]
    return {**means, "loss_change_nats": change, **head_means(heads)}
