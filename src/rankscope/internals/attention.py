"""What attention patterns show: where heads look, how widely, how alike, how far from the base's.

A pattern is what attention gives after its softmax, one row for each query. `visible` says which keys a query may see
(causality, sliding windows, padding); a query that sees none is padding and counts nowhere. Each measure comes as
sums over rows, so that batches of any size add up to the mean over all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class RowSums:
    """A measure summed over rows, head by head.

    Attributes:
        total: The sum over rows of each head.
        num_rows: How many rows it is over.
    """

    total: Float[Tensor, " head"]
    num_rows: int

    def __add__(self, other: RowSums) -> RowSums:
        """The sums over the rows of both."""
        return RowSums(self.total + other.total, self.num_rows + other.num_rows)

    def mean(self) -> Float[Tensor, " head"] | None:
        """The mean over rows of each head; None where no row counts."""
        return self.total / self.num_rows if self.num_rows else None


def attention_entropy(
    pattern: Float[Tensor, "batch head query_pos key_pos"], visible: Bool[Tensor, "batch query_pos key_pos"]
) -> RowSums:
    """How widely each head looks: a row's entropy over the log of the number of keys it may see.

    0: all on one key; 1: all keys alike. A row with one key has no choice and is left out.
    """
    num_keys = visible.sum(-1)  # batch query_pos
    counts = num_keys > 1
    entropy = torch.special.entr(pattern.double()).sum(-1)  # batch head query_pos
    return _sums(entropy / num_keys.clamp_min(2).log().unsqueeze(1), counts)


def attention_divergence(
    base: Float[Tensor, "batch head query_pos key_pos"],
    tuned: Float[Tensor, "batch head query_pos key_pos"],
    visible: Bool[Tensor, "batch query_pos key_pos"],
) -> RowSums:
    """How far each head moved from the base's: the Jensen-Shannon divergence of their rows, in nats.

    0: the same; ln 2 = 0.693: they look at different keys. Exactly 0 for equal patterns. In float64, because terms of
    first order in the difference cancel and leave the second.
    """
    p, q = base.double(), tuned.double()
    terms = torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    # Where the two agree the term is 0; a logarithm's last digit can depend on how a tensor lies in memory.
    divergence = terms.masked_fill(p == q, 0.0).sum(-1)  # batch head query_pos
    return _sums(divergence.clamp_min(0.0), visible.any(-1))  # rounding alone could take it below 0


def attention_first_token(
    pattern: Float[Tensor, "batch head query_pos key_pos"], visible: Bool[Tensor, "batch query_pos key_pos"]
) -> RowSums:
    """The share of its attention that each head gives to the first position (an attention sink where it is high)."""
    return _sums(pattern[..., 0].double(), visible.any(-1))


def attention_distance(
    pattern: Float[Tensor, "batch head query_pos key_pos"], visible: Bool[Tensor, "batch query_pos key_pos"]
) -> RowSums:
    """How far back each head looks, in positions: `sum_k pattern_k (q - k)`. 0: at the query's own position."""
    query_pos, key_pos = pattern.shape[-2:]
    behind = torch.arange(query_pos, device=pattern.device).unsqueeze(1) - torch.arange(key_pos, device=pattern.device)
    return _sums((pattern.double() * behind).sum(-1), visible.any(-1))


def head_similarity(
    pattern: Float[Tensor, "batch head query_pos key_pos"], visible: Bool[Tensor, "batch query_pos key_pos"]
) -> RowSums | None:
    """How like the others of its layer each head is: the mean cosine of its rows with those of every other head.

    1: all heads look alike; 0: no two look at the same key. The mean over heads is the mean over pairs of heads. None
    for a layer with one head.
    """
    num_heads = pattern.shape[1]
    if num_heads < 2:
        return None
    rows = torch.nn.functional.normalize(pattern.double(), dim=-1)
    # The cosines with all heads, its own included, are the product with the sum of all rows.
    with_all = (rows * rows.sum(1, keepdim=True)).sum(-1)  # batch head query_pos
    with_itself = rows.square().sum(-1)
    return _sums((with_all - with_itself) / (num_heads - 1), visible.any(-1))


def pattern_measures(
    pattern: Float[Tensor, "batch head query_pos key_pos"], visible: Bool[Tensor, "batch query_pos key_pos"]
) -> dict[str, RowSums]:
    """Every measure of one model's pattern, by key; one that does not exist is absent."""
    values = {
        "attention_entropy": attention_entropy(pattern, visible),
        "attention_first_token": attention_first_token(pattern, visible),
        "attention_distance": attention_distance(pattern, visible),
        "head_similarity": head_similarity(pattern, visible),
    }
    return {key: value for key, value in values.items() if value is not None}


def _sums(values: Float[Tensor, "batch head query_pos"], counts: Bool[Tensor, "batch query_pos"]) -> RowSums:
    """Sums over the rows that count."""
    kept = values.masked_fill(~counts.unsqueeze(1), 0.0)
    return RowSums(kept.sum((0, 2)).cpu(), int(counts.sum()))
