"""Attention measures of every head, of a base and of a tuned model beside it, summed up batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import polars as pl
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.analyse.streams import Keep, Kept
from rankscope.internals.attention import RowSums, attention_divergence, pattern_measures
from rankscope.internals.patterns import Batch, LayerPattern, packed_pattern, show_patterns, unpacked_pattern


def base_heads(model: PreTrainedModel, batches: Iterable[Batch], keep: Keep) -> pl.DataFrame:
    """One row a head of the base; its patterns, packed, are handed to `keep`.

    Raises:
        NotAvailable: The architecture's modules do not show their pattern.
    """
    table = _HeadTable()
    for index, batch in enumerate(batches):
        show_patterns(model, batch, partial(table.add_base, partial(keep, index)))
    return table.frame()


def tuned_heads(model: PreTrainedModel, batches: Iterable[Batch], kept: Kept) -> pl.DataFrame:
    """One row a head of the tuned model, with how far it has moved from the base's pattern of the same batch.

    Raises:
        NotAvailable: The architecture's modules do not show their pattern.
    """
    table = _HeadTable()
    for index, batch in enumerate(batches):
        show_patterns(model, batch, partial(table.add_tuned, partial(kept, index)))
    return table.frame()


def beside_base(tuned: pl.DataFrame, base: pl.DataFrame) -> pl.DataFrame:
    """The heads of a tuned model with the base's measures in columns that end in `_base`."""
    return tuned.join(base, on=["layer", "head"], how="left", suffix="_base", maintain_order="left")


class _HeadTable:
    """Sums of each measure by layer, which batches add to; at the end one row a head."""

    def __init__(self) -> None:
        self._sums: dict[int, dict[str, RowSums]] = {}

    def add_base(self, keep: Callable[[int, Tensor], None], layer: LayerPattern) -> None:
        """Add one batch's measures of one layer of the base, and have its pattern kept."""
        self._add(layer.layer, pattern_measures(layer.pattern, layer.visible))
        keep(layer.layer, packed_pattern(layer))

    def add_tuned(self, kept: Callable[[int], Tensor], layer: LayerPattern) -> None:
        """Add those of a tuned model's, with how far it is from the base's pattern of the same batch."""
        before = unpacked_pattern(kept(layer.layer).to(layer.pattern.device), layer.visible)
        divergence = attention_divergence(before, layer.pattern, layer.visible)
        measures = pattern_measures(layer.pattern, layer.visible)
        self._add(layer.layer, {**measures, "attention_divergence": divergence})

    def _add(self, layer: int, measures: Mapping[str, RowSums]) -> None:
        known = self._sums.setdefault(layer, {})
        for key, sums in measures.items():
            known[key] = known[key] + sums if key in known else sums

    def frame(self) -> pl.DataFrame:
        """`layer`, `head` and a column for each measure: its mean over all rows, null where it does not exist."""
        rows: list[dict[str, float | int | None]] = []
        for layer, measures in sorted(self._sums.items()):
            means = {key: sums.mean() for key, sums in measures.items()}
            for head in range(max(len(sums.total) for sums in measures.values())):
                values = {key: None if mean is None else float(mean[head]) for key, mean in means.items()}
                rows.append({"layer": layer, "head": head, **values})
        keys = dict.fromkeys(key for row in rows for key in row if key not in ("layer", "head"))
        schema = {"layer": pl.Int32, "head": pl.Int32, **dict.fromkeys(keys, pl.Float64)}
        return pl.DataFrame(rows, schema=schema)


def head_means(heads: pl.DataFrame) -> dict[str, float]:
    """The mean over layers and heads of each measure; one that exists nowhere is absent."""
    means = heads.drop("layer", "head").mean().row(0, named=True) if heads.height else {}
    return {key: float(value) for key, value in means.items() if value is not None}
