"""Attention measures of every head, summed up batch by batch into one table."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from rankscope.internals.attention import RowSums


class HeadTable:
    """Sums of each measure by layer, which batches add to; at the end one row a head."""

    def __init__(self) -> None:
        self._sums: dict[int, dict[str, RowSums]] = {}

    def add(self, layer: int, measures: Mapping[str, RowSums]) -> None:
        """Add one batch's measures of one layer."""
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
