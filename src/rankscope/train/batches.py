"""From examples to tensors: rows of several runs, sorted and split by a budget of tokens."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rankscope.data.examples import TokenisedExample
from rankscope.models.joined import JoinedRow, joined_inputs
from rankscope.models.packed import DrawnText
from rankscope.models.text_trees import TextTree


@dataclass(frozen=True)
class MicroBatch:
    """Examples for one forward, sorted by run.

    Where a model can (see models/joined.py) they stand one behind another in a single row without padding. Else each
    has a row, padded on the right: under a causal mask no scored position can see the padding, so none is needed.

    Attributes:
        members: The runs whose rows these are; `num_rows` of each, in this order.
        num_rows: Rows of each run; positions, where the examples are joined.
        inputs: What the model's forward takes.
        is_joined: The examples share a row: the forward needs `joined_attention`.
        positions: The scored positions, as indices into batch x length; their logits predict `targets`.
        members_of_positions: Each scored position's run, as an index into `members`.
        texts: Of each member, the examples in its rows; their seeds know the text, and not yet run and step.
        is_counted: False for rows that are another process's: this one has none, and passes through the model with it.
    """

    members: tuple[int, ...]
    num_rows: tuple[int, ...]
    inputs: dict[str, Any]
    is_joined: bool
    positions: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    members_of_positions: Int[Tensor, " scored"]
    texts: tuple[tuple[DrawnText, ...], ...]
    is_counted: bool = True


def num_scored(example: TokenisedExample) -> int:
    """Scored tokens of an example; without a prompt the first token has nothing that predicts it."""
    return len(example.input_ids) - max(1, example.num_prompt_tokens)


Rows = list[tuple[int, TokenisedExample]]  # a run's index, and one of its examples


@dataclass(frozen=True)
class Share:
    """Which rows of every group go through this process: all, or each `size`-th from the `rank`-th on.

    Rows are in the order of their lengths, so that shares are about as long as each other.
    """

    rank: int = 0
    size: int = 1

    def of(self, rows: Rows) -> Rows:
        """This process's rows; may be empty."""
        return rows[self.rank :: self.size]


ALL = Share()


def split_rows(
    batches: Sequence[tuple[int, Sequence[TokenisedExample]]], max_tokens: int, *, is_joined: bool, num_shares: int = 1
) -> list[Rows]:
    """Divide the batches of one step into groups that go through the model together.

    Args:
        batches: For each run its index and its examples of this step.
        max_tokens: The most positions in a group's largest share, padding included; a longer example makes one alone.
        is_joined: Examples share a row, so that there is no padding.
        num_shares: How many processes a group's rows are divided among.
    """
    rows = [(member, example) for member, examples in batches for example in examples]
    # Rows of like length side by side waste the least padding; the sum over a step does not depend on the order.
    rows.sort(key=lambda row: len(row[1].input_ids))
    groups: list[Rows] = [[]]
    for row in rows:
        more = [*groups[-1], row]
        shares = (Share(rank, num_shares).of(more) for rank in range(min(num_shares, len(more))))
        if groups[-1] and max(num_positions(rows, is_joined=is_joined) for rows in shares) > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def num_positions(rows: Rows, *, is_joined: bool) -> int:
    """Positions that a group takes up, padding included."""
    lengths = [len(example.input_ids) for _, example in rows]
    return sum(lengths) if is_joined else len(rows) * max(lengths)


def iter_micro_batches(
    batches: Sequence[tuple[int, Sequence[TokenisedExample]]],
    max_tokens: int,
    device: torch.device,
    *,
    is_joined: bool,
    share: Share = ALL,
) -> Iterator[MicroBatch]:
    """This process's share of the groups of `split_rows` as tensors on a device.

    All processes get equally many: each takes part in every pass through a model that is in parts.
    """
    for group in split_rows(batches, max_tokens, is_joined=is_joined, num_shares=share.size):
        rows = share.of(group)
        micro = _micro_batch(rows or group[:1], device, is_joined)
        yield micro if rows else replace(micro, is_counted=False)


def _micro_batch(rows: Rows, device: torch.device, is_joined: bool) -> MicroBatch:
    rows = sorted(rows, key=lambda row: row[0])
    members = sorted({member for member, _ in rows})
    lengths = [len(example.input_ids) for _, example in rows]
    longest = max(lengths)
    starts = list(itertools.accumulate(lengths, initial=0)) if is_joined else range(0, len(rows) * longest, longest)
    positions, targets, owners = [], [], []
    for (member, example), start in zip(rows, starts, strict=False):
        first = max(1, example.num_prompt_tokens)
        positions += range(start + first - 1, start + len(example.input_ids) - 1)
        targets += example.input_ids[first:]
        owners += [members.index(member)] * (len(example.input_ids) - first)
    if is_joined:
        row = JoinedRow([TextTree(length) for length in lengths])
        inputs = joined_inputs(row, [token for _, example in rows for token in example.input_ids], device)
    else:  # the padding's value is never seen
        padded = [[*example.input_ids, *[0] * (longest - len(example.input_ids))] for _, example in rows]
        inputs = {"input_ids": torch.tensor(padded, device=device)}
    sizes = lengths if is_joined else [1] * len(rows)
    texts = [
        DrawnText(zlib.crc32(example.example_id.encode()), length, length if is_joined else longest)
        for (_, example), length in zip(rows, lengths, strict=True)
    ]
    return MicroBatch(
        members=tuple(members),
        num_rows=tuple(
            sum(size for (owner, _), size in zip(rows, sizes, strict=True) if owner == member) for member in members
        ),
        inputs=inputs,
        is_joined=is_joined,
        positions=torch.tensor(positions, device=device),
        targets=torch.tensor(targets, device=device),
        members_of_positions=torch.tensor(owners, device=device),
        texts=tuple(
            tuple(text for (owner, _), text in zip(rows, texts, strict=True) if owner == member) for member in members
        ),
    )
