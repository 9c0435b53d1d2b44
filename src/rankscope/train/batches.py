"""From examples to tensors: rows of several runs, sorted and split by a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rankscope.data.examples import TokenisedExample


@dataclass(frozen=True)
class MicroBatch:
    """Rows for one forward, sorted by run.

    Rows are padded on the right: under a causal mask no scored position can see the padding, so none is needed.

    Attributes:
        members: The runs whose rows these are; `num_rows` of each, in this order.
        positions: The scored positions, as indices into batch x length; their logits predict `targets`.
        members_of_positions: Each scored position's run, as an index into `members`.
    """

    members: tuple[int, ...]
    num_rows: tuple[int, ...]
    input_ids: Int[Tensor, "batch pos"]
    positions: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    members_of_positions: Int[Tensor, " scored"]


def num_scored(example: TokenisedExample) -> int:
    """Scored tokens of an example; without a prompt the first token has nothing that predicts it."""
    return len(example.input_ids) - max(1, example.num_prompt_tokens)


def iter_micro_batches(
    batches: Sequence[tuple[int, Sequence[TokenisedExample]]], max_tokens: int, device: str | torch.device
) -> Iterator[MicroBatch]:
    """Split the batches of one step into micro-batches.

    Args:
        batches: For each run its index and its examples of this step.
        max_tokens: The most positions (rows x longest row) in one; a single longer row makes one alone.
        device: Where the tensors go.
    """
    rows = [(member, example) for member, examples in batches for example in examples]
    # Rows of like length side by side waste the least padding; the sum over a step does not depend on the order.
    rows.sort(key=lambda row: len(row[1].input_ids))
    chosen: list[tuple[int, TokenisedExample]] = []
    for row in rows:
        if chosen and (len(chosen) + 1) * len(row[1].input_ids) > max_tokens:
            yield _micro_batch(chosen, device)
            chosen = []
        chosen.append(row)
    yield _micro_batch(chosen, device)


def _micro_batch(rows: list[tuple[int, TokenisedExample]], device: str | torch.device) -> MicroBatch:
    rows = sorted(rows, key=lambda row: row[0])
    members = sorted({member for member, _ in rows})
    length = max(len(example.input_ids) for _, example in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)  # the padding's value is never seen
    positions, targets, owners = [], [], []
    for row, (member, example) in enumerate(rows):
        ids = torch.tensor(example.input_ids)
        input_ids[row, : len(ids)] = ids
        start = max(1, example.num_prompt_tokens)
        positions.append(torch.arange(start - 1, len(ids) - 1) + row * length)
        targets.append(ids[start:])
        owners.append(torch.full((len(ids) - start,), members.index(member)))
    return MicroBatch(
        members=tuple(members),
        num_rows=tuple(sum(owner == member for owner, _ in rows) for member in members),
        input_ids=input_ids.to(device),
        positions=torch.cat(positions).to(device),
        targets=torch.cat(targets).to(device),
        members_of_positions=torch.cat(owners).to(device),
    )
