"""Two tuned models of one base: how alike their updates are, matrix by matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from rankscope.audit.result import Comparison
from rankscope.internals.pairs import (
    inner_product,
    singular_triplets,
    update_cosine,
    update_norm_ratio,
    update_overlap,
)
from rankscope.models.fused import Part
from rankscope.models.updates import Factors, Update

_KEYS = ("update_cosine", "update_norm_ratio", "update_overlap_8", "update_overlap_8_right")
_DIRECTIONS = 8
_SCHEMA = {
    "name": pl.String, "layer": pl.Int32, "module": pl.String, "d_out": pl.Int32, "d_in": pl.Int32,
    **dict.fromkeys(_KEYS, pl.Float64),
}  # fmt: skip


def compare(
    name: str, ours: Iterable[Update], theirs: Sequence[Update], parts_of: Callable[[Update], Iterable[Part | Update]]
) -> Comparison:
    """Set the updates of two models against each other.

    Args:
        name: What the other one is called.
        ours: The updates of the model that is audited.
        theirs: Those of the other.
        parts_of: Takes a fused matrix apart.
    """
    others = {update.name: update for update in theirs if update.kind == "matrix"}
    rows, only_ours = [], []
    for update in ours:
        if update.kind != "matrix":
            continue
        other = others.pop(update.name, None)
        if other is None:
            only_ours.append(update.name)
            continue
        for one, two in zip(parts_of(update), parts_of(other), strict=True):
            place = {"name": one.name, "layer": one.layer, "module": one.module}
            d_out, d_in = one.shape
            rows.append({**place, "d_out": d_out, "d_in": d_in, **_pair(one, two)})
    matrices = pl.DataFrame(rows, schema=_SCHEMA)
    means = matrices.select(_KEYS).mean().row(0, named=True) if rows else {}
    notes = [f"{len(names)} matrices were changed by {who} only: {_some(names)}"
             for names, who in ((only_ours, "this one"), (list(others), name)) if names]  # fmt: skip
    return Comparison(name, matrices, {key: value for key, value in means.items() if value is not None}, tuple(notes))


def _pair(update: Part | Update, other: Part | Update) -> dict[str, Any]:
    one, two = _numbers(update), _numbers(other)
    norms = [inner_product(numbers, numbers) ** 0.5 for numbers in (one, two)]
    values = {
        "update_cosine": update_cosine(inner_product(one, two), *norms),
        "update_norm_ratio": update_norm_ratio(*norms),
    }
    if isinstance(one, Factors) and isinstance(two, Factors) and min(norms) > 0.0:
        (U_one, _, Vh_one), (U_two, _, Vh_two) = singular_triplets(one), singular_triplets(two)
        k = min(_DIRECTIONS, one.rank, two.rank)
        values["update_overlap_8"] = update_overlap(U_one[:, :k], U_two[:, :k])
        values["update_overlap_8_right"] = update_overlap(Vh_one[:k].T, Vh_two[:k].T)
    return values


def _numbers(update: Part | Update) -> Factors | Tensor:
    factors = update.factors
    return update.delta_W.to(torch.float64) if factors is None else factors


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
