"""What a derived point does to one tensor's update, and a tally of what was done to all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankscope.errors import NotAvailable
from rankscope.internals.derived import Product, full_mended, full_truncated, mended, rewound, truncated
from rankscope.models.decompositions import Decomposition
from rankscope.models.fused import Part, iter_parts
from rankscope.models.updates import Update
from rankscope.runs import DerivedPoint

DecompositionOf = Callable[[Tensor], Decomposition]


@dataclass
class Changed:
    """What was done to a run's updates, added up tensor by tensor.

    Attributes:
        norm: The derived update's Frobenius norm over all tensors so far.
        num_intruders: Intruder dimensions that were scaled; None where they were not looked for.
        rank: Of the derived adapter; `files` its files.
    """

    norm: float = 0.0
    num_intruders: int | None = None
    rank: int | None = None
    files: list[str] = field(default_factory=list)

    def add(self, norm: float, num_intruders: int | None = None) -> None:
        """Take in one tensor's derived update."""
        self.norm = math.hypot(self.norm, norm)
        if num_intruders is not None:
            self.num_intruders = (self.num_intruders or 0) + num_intruders


def changed_adapter(
    update: Update, point: DerivedPoint, config: Any, decomposition_of: DecompositionOf, changed: Changed
) -> tuple[Tensor, Tensor]:
    """One module's `A` and `B` of the derived adapter, whose product is the whole update.

    Raises:
        NotAvailable: The adapter does more to the module than to add a product.
    """
    factors = update.factors
    if factors is None:
        raise NotAvailable(f"the update of {update.name} is no product of factors")
    A, B, scaling = factors.A, factors.B, factors.scaling
    found = None
    if point.kind == "rewind":
        product = rewound(A, B, scaling, point.amount)
    elif point.kind == "truncate":
        product = truncated(A, B, scaling, int(point.amount))
    else:
        product = _mended(update, point.amount, config, decomposition_of)
        found = product.num_intruders
    gram = float(((product.B.T @ product.B) * (product.A @ product.A.T)).sum())
    changed.add(math.sqrt(max(0.0, gram)), found)
    return product.A, product.B


def _mended(update: Update, share: float, config: Any, decomposition_of: DecompositionOf) -> Product:
    """An adapter freed of intruders, those of each matrix that a fused tensor holds by themselves."""
    factors = update.factors
    columns, rows, count = [factors.scaling * factors.B.double()], [factors.A.double()], 0
    for part in iter_parts([update], config):
        base = decomposition_of(part.read_W0())
        one = mended(base, part.factors.A, part.factors.B, part.factors.scaling, share)
        count += one.num_intruders
        if one.num_intruders:
            added = torch.zeros(update.shape[0], one.num_intruders, dtype=torch.float64)
            added[slice(None) if part.rows is None else part.rows] = one.B[:, -one.num_intruders :]
            columns.append(added)
            rows.append(one.A[-one.num_intruders :])
    return Product(torch.cat(rows), torch.cat(columns, 1), count)


def changed_update(
    update: Update, point: DerivedPoint, config: Any, decomposition_of: DecompositionOf, changed: Changed
) -> Tensor | None:
    """The derived update of one tensor of a whole model; None where it stays as it was trained.

    Rewinding takes all tensors back. Ranks and intruders are of matrices of linear layers: embeddings, the output head,
    norms and biases stay.
    """
    delta = update.delta_W
    if point.kind == "rewind":
        changed.add(abs(point.amount) * float(torch.linalg.vector_norm(delta)))
        return point.amount * delta
    parts = [part for part in iter_parts([update], config) if isinstance(part, Part)]
    if not parts:
        changed.add(float(torch.linalg.vector_norm(delta)))
        return None
    if any(part.expert is not None for part in parts):
        raise NotAvailable(f"{update.name} holds experts in one tensor")
    new = torch.empty_like(delta)
    for part in parts:
        rows = slice(None) if part.rows is None else part.rows
        new[rows], found = _of_part(part, point, decomposition_of)
        changed.add(float(torch.linalg.vector_norm(new[rows])), found)
    return new


def _of_part(part: Part, point: DerivedPoint, decomposition_of: DecompositionOf) -> tuple[Tensor, int | None]:
    if point.kind == "truncate":
        return full_truncated(part.delta_W, int(point.amount)), None
    W0 = part.read_W0()
    return full_mended(decomposition_of(W0), W0, part.delta_W, point.amount)
