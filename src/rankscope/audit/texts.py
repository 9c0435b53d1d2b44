"""What the change does on texts: the loss of base and tuned model, where their heads look, and what flows inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import polars as pl
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.analyse.heads import base_heads, beside_base, head_means, tuned_heads
from rankscope.analyse.neurons import Activity, activity_of, change_frame, most_changed, thresholds_of
from rankscope.analyse.probes import TaskBatch, task_batches
from rankscope.analyse.streams import keep_streams, stream_frame
from rankscope.audit.result import OnTexts
from rankscope.data.forms import FORMS, UnnamedColumns, understand
from rankscope.data.prompts import put
from rankscope.data.sources import Rows
from rankscope.data.tasks import prompt_style
from rankscope.data.tokens import Tokenizer
from rankscope.errors import NotAvailable, UserError
from rankscope.internals.neuron_means import neuron_means_by_layer
from rankscope.scoring.losses import TokenLoss, completion_losses

# Patterns grow with the square of the length; they and the residual streams are kept on disk for the comparison.
MOST_TEXTS, MOST_TOKENS = 32, 512
_TOKENS_PER_BATCH = 2048
# Where nothing says how many positions a model has.
_CONTEXT = 2048

# Scored between two reports of progress; enough to be sorted by length.
_TEXTS_AT_ONCE = 64

Pair = tuple[list[int], list[int]]
Watch = Callable[[int, int], None]  # how many texts of how many have been scored


class Scratch(Protocol):
    """Where tensors wait while one model makes room for the other."""

    def keep(self, kind: str, batch: int, layer: int, tensor: Tensor) -> None:
        """Put a tensor away."""

    def kept(self, kind: str, batch: int, layer: int) -> Tensor:
        """Take it out again."""


@dataclass(frozen=True)
class Texts:
    """Texts as a model reads them.

    Attributes:
        pairs: What goes before, and what is scored.
        context: How many positions the model has.
    """

    pairs: list[Pair]
    context: int

    def probes(self) -> list[TaskBatch]:
        """The first texts, cut, in batches that are the same for both models; a probe's id is its text's number."""
        most = self._most_tokens
        cut = [[*prompt, *completion][:most] for prompt, completion in self.pairs[:MOST_TEXTS]]
        rows = {"probe_id": [str(index) for index in range(len(cut))], "source": "texts", "input_ids": cut}
        return task_batches(pl.DataFrame(rows), _TOKENS_PER_BATCH)

    def notes(self) -> tuple[str, ...]:
        """What was left out."""
        parts = self.pairs[:MOST_TEXTS]
        is_cut = any(len(prompt) + len(completion) > self._most_tokens for prompt, completion in parts)
        if len(parts) == len(self.pairs) and not is_cut:
            return ()
        number = f"{len(parts)} text{'' if len(parts) == 1 else 's'}"
        return (f"heads, layers and neurons saw the first {number}, up to {self._most_tokens} tokens of each",)

    @property
    def _most_tokens(self) -> int:
        return min(MOST_TOKENS, self.context)


def as_texts(rows: Rows, tokenizer: Tokenizer) -> Texts:
    """Rows in any form that can be trained on, of which is scored what would be learned: texts whole, else answers.

    Turns are put through the model's chat template where it has one.

    Raises:
        UserError: The rows have no form that is known, or none of them has a token to score.
    """
    try:
        contents = understand(rows).contents
    except UnnamedColumns as error:
        raise UserError(error.what, where=error.where, mend=f"write them as {FORMS}") from None
    prompted = [put(content, prompt_style(rows), tokenizer) for content in contents]
    pairs = tokenizer.encode_pairs([(text.prompt, text.answer) for text in prompted])
    kept = [(prompt, completion) for prompt, completion in pairs if completion]
    if not kept:
        raise UserError("there is no text in it", where="--texts", mend="one text a paragraph, or a `text` a row")
    return Texts(kept, tokenizer.context_length or _CONTEXT)


@dataclass(frozen=True)
class BaseLook:
    """What the base showed; its patterns and streams wait in the scratch.

    Attributes:
        layers: Whose streams were kept.
        thresholds: By layer, from which activation on a neuron counts as active.
        activity: Of its neurons; None where an architecture's are not known.
        notes: What could not be looked at.
    """

    losses: list[TokenLoss]
    heads: pl.DataFrame
    layers: list[int]
    thresholds: dict[int, float]
    activity: Activity | None
    notes: tuple[str, ...]


def look_at_base(model: PreTrainedModel, texts: Texts, scratch: Scratch, watch: Watch) -> BaseLook:
    """The base's losses, heads and neurons; its patterns and residual streams go to the scratch.

    Raises:
        NotAvailable: The architecture's layers are not known, or do not show where their heads look.
    """
    probes = texts.probes()
    heads = base_heads(model, [probe.batch for probe in probes], partial(scratch.keep, "pattern"))
    layers = keep_streams(model, probes, partial(scratch.keep, "before"))
    thresholds, activity, notes = {}, None, ()
    try:
        thresholds = thresholds_of(model, probes)
        activity = activity_of(model, probes, thresholds)
    except NotAvailable as why:
        notes = (str(why),)
    return BaseLook(_losses(model, texts, watch), heads, layers, thresholds, activity, notes)


def look_at_tuned(model: PreTrainedModel, texts: Texts, base: BaseLook, scratch: Scratch, watch: Watch) -> OnTexts:
    """The tuned model beside the base: losses, heads, residual streams and neurons."""
    batches = [probe.batch for probe in texts.probes()]
    heads = beside_base(tuned_heads(model, batches, partial(scratch.kept, "pattern")), base.heads)
    layers, neurons = _inside(model, texts, base, scratch)
    scored = pl.DataFrame(list(_rows(base.losses, _losses(model, texts, watch))))
    notes = (*texts.notes(), *base.notes)
    return OnTexts(scored, heads, layers, neurons, {**_summary(scored, heads), **_layer_means(layers)}, notes)


def _inside(
    model: PreTrainedModel, texts: Texts, base: BaseLook, scratch: Scratch
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """One row a layer for streams and neurons, and the neurons that changed most with the texts that excite them."""
    probes = texts.probes()
    keep_streams(model, probes, partial(scratch.keep, "after"))
    before, now = (partial(scratch.kept, kind) for kind in ("before", "after"))
    streams = stream_frame(base.layers, probes, before, now).drop("task")
    if base.activity is None:
        return streams, None
    after = activity_of(model, probes, base.thresholds)
    changes = change_frame(base.activity, after)
    counted = neuron_means_by_layer(changes.lazy()).collect()
    most = most_changed(changes, base.activity, after).rename({"probe_id": "text"})
    return streams.join(counted, on="layer", how="left", maintain_order="left"), most.cast({"text": pl.Int64})


def _layer_means(layers: pl.DataFrame) -> dict[str, float]:
    """Over layers: counts are sums, the others means."""
    found = {}
    for key in layers.columns:
        if key in {"layer", "num_positions", "num_neurons"}:
            continue
        value = layers[key].sum() if key.startswith("neurons_") else layers[key].mean()
        if value is not None:
            found[key] = float(value)
    return found


def _losses(model: PreTrainedModel, texts: Texts, watch: Watch) -> list[TokenLoss]:
    losses: list[TokenLoss] = []
    for start in range(0, len(texts.pairs), _TEXTS_AT_ONCE):
        watch(start, len(texts.pairs))
        pairs = texts.pairs[start : start + _TEXTS_AT_ONCE]
        losses += completion_losses(model, pairs, texts.context, max(_TOKENS_PER_BATCH, texts.context))
    return losses


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
