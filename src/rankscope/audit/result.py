"""What an audit found, as tables and words, and the JSON that other programs read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

_PLACE = ("name", "layer", "module", "shape", "rank")


# Folders that say what they hold, not whose it is.
_PLAIN = re.compile(r"adapter|model|train|final|merged|output|checkpoint-\d+")


def short_name(tuned: str) -> str:
    """What a reader calls a model: a hub id as it is, a folder by its last part that is a name of its own."""
    parts = [part for part in tuned.replace("\\", "/").split("/") if part]
    if len(parts) <= 2:
        return tuned
    first = len(parts) - 1
    while first > 0 and _PLAIN.fullmatch(parts[first]):
        first -= 1
    return "/".join(parts[first:])


@dataclass(frozen=True)
class Comparison:
    """Another tuned model of the same base, matrix by matrix.

    Attributes:
        tuned: The other one, as it was named.
        matrices: One row a matrix that both have: its place, and the measures of the pair.
        summary: Means over those matrices.
        notes: What only one of them has.
    """

    tuned: str
    matrices: pl.DataFrame
    summary: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truncation:
    """A copy of the adapter cut to fewer directions.

    Attributes:
        folder: Where it was written.
        asked: `0.95`, `0.99` or a rank.
        error: `||dW - dW_cut||_F / ||dW||_F` over all matrices together, rounding of the file included.
        ranks: By matrix, the rank that was kept.
        num_parameters: Of the copy's factors; `num_before` of the adapter's own.
        notes: What was copied as it is.
    """

    folder: str
    asked: str
    error: float
    ranks: Mapping[str, int]
    num_parameters: int
    num_before: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OnTexts:
    """What the change does on texts.

    Attributes:
        losses: One row a text: its scored tokens, and the loss of the tuned model and of the base.
        heads: One row a head: attention measures of the tuned model, the base's in columns that end in `_base`.
        layers: One row a layer: how the residual stream lies to the base's, and what became of the neurons.
        neurons: The neurons that changed most, each with the texts that excite it most in both models; None where the
            architecture's are not known.
        summary: Over all tokens, over all heads, and over all layers.
        notes: What was left out.
    """

    losses: pl.DataFrame
    heads: pl.DataFrame
    layers: pl.DataFrame
    neurons: pl.DataFrame | None
    summary: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """What one tuned model changed of its base.

    Attributes:
        base: The base, as it was named.
        tuned: The adapter or model, as it was named.
        method: `lora`, `dora` or `full`.
        settings: An adapter's own settings, by PEFT's names.
        matrices: One row a matrix of a linear layer: name, layer, module, d_out, d_in, rank, and the measures.
        others: Embeddings, output head, norms and biases, with the norm of their update only.
        singular_values: By matrix, largest first.
        summary: One number a measure, over all matrices.
        notes: What a reader of the numbers should know.
        exactness: How exact they are, where they come from an iteration.
        against: Another tuned model of this base.
        truncation: A copy that was cut.
        on_texts: What the change does on texts.
        provenance: Versions of what made it.
    """

    base: str
    tuned: str
    method: str
    settings: Mapping[str, Any]
    matrices: pl.DataFrame
    others: pl.DataFrame
    singular_values: Mapping[str, list[float]]
    summary: Mapping[str, float]
    notes: tuple[str, ...] = ()
    exactness: tuple[str, ...] = ()
    against: Comparison | None = None
    truncation: Truncation | None = None
    on_texts: OnTexts | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The tables of the page, by name."""
        rows = [
            {"name": name, "index": index, "singular_value": value}
            for name, values in self.singular_values.items()
            for index, value in enumerate(values, start=1)
        ]
        schema = {"name": pl.String, "index": pl.Int32, "singular_value": pl.Float64}
        found = {
            "matrices": self.matrices, "others": self.others, "singular_values": pl.DataFrame(rows, schema=schema),
        }  # fmt: skip
        if self.against is not None:
            found["against"] = self.against.matrices
        if self.on_texts is not None:
            found |= {"texts": self.on_texts.losses, "heads": self.on_texts.heads, "layers": self.on_texts.layers}
            found |= {} if self.on_texts.neurons is None else {"neurons": self.on_texts.neurons}
        return found

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know, of those on texts too."""
        return (*self.notes, *(self.on_texts.notes if self.on_texts else ()))

    def as_json(self, findings: list[str]) -> str:
        """The audit as a JSON document: a number that does not exist is absent, never a stand-in."""
        document: dict[str, Any] = {
            "base": self.base,
            "tuned": self.tuned,
            "method": self.method,
            "settings": dict(self.settings),
            "matrices": _rows(self.matrices),
            "others": _rows(self.others),
            "summary": dict(self.summary),
            "findings": findings,
            "notes": list(self.notes),
            "exactness": list(self.exactness),
            "provenance": dict(self.provenance),
        }
        if self.against is not None:
            document["against"] = {
                "tuned": self.against.tuned,
                "matrices": _rows(self.against.matrices),
                "summary": dict(self.against.summary),
                "notes": list(self.against.notes),
            }
        if self.truncation is not None:
            document["truncation"] = {**vars(self.truncation), "notes": list(self.truncation.notes)}
        if self.on_texts is not None:
            document["texts"] = {
                "losses": _rows(self.on_texts.losses),
                "heads": _rows(self.on_texts.heads),
                "layers": _rows(self.on_texts.layers),
                **({} if self.on_texts.neurons is None else {"neurons": _rows(self.on_texts.neurons)}),
                "summary": dict(self.on_texts.summary),
                "notes": list(self.on_texts.notes),
            }
        return json.dumps(_finite(document), indent=1, allow_nan=False)


def _rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, `d_out` and `d_in` as `shape`, without what does not exist."""
    rows = []
    for row in table.iter_rows(named=True):
        if "d_out" in row:
            row = {"shape": [row.pop("d_out"), row.pop("d_in")], **row}
        ordered = {key: row.pop(key) for key in _PLACE if key in row} | row
        rows.append({key: value for key, value in ordered.items() if value is not None or key == "layer"})
    return rows


def _finite(value: Any) -> Any:
    """The same without numbers that are not finite, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
