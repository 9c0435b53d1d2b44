"""Which prompts begin alike, as those behind the same worked examples do: what they share is then read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.data.prefixes import LEAST_SAVED, MOST_TOKENS, common_length


@dataclass(frozen=True)
class Beginning:
    """Prompts that stand in one row behind what they share.

    Attributes:
        members: Indices of the prompts.
        total: Positions of the row.
        length: Tokens that all of them begin with; 0 of one that stands alone.
    """

    members: tuple[int, ...]
    total: int
    length: int = 0


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens prompts begin with together, so that each still has one of its own.

    Examples:
        >>> shared_length([(1, 2, 3, 4), (1, 2, 5)]), shared_length([(1, 2), (1, 2, 3)])
        (2, 1)
    """
    return min(common_length(prompts), min(map(len, prompts)) - 1)


def shared_beginnings(prompts: Sequence[Sequence[int]], totals: Sequence[int], most_tokens: int) -> list[Beginning]:
    """Every prompt in one group, with those that begin like it where that saves something.

    Args:
        prompts: The prompts' tokens, at least one each.
        totals: By prompt, its positions with what follows it.
        most_tokens: Positions of a row at most; a single longer prompt is a group of its own.
    """
    groups: list[Beginning] = []
    # In the order of their tokens, prompts that begin alike are neighbours.
    for index in sorted(range(len(prompts)), key=lambda index: tuple(prompts[index])):
        larger = _with(groups[-1], index, prompts, totals) if groups else None
        if larger is not None and larger.total <= min(most_tokens, MOST_TOKENS):
            groups[-1] = larger
        else:
            groups.append(Beginning((index,), totals[index]))
    return groups


def _with(group: Beginning, index: int, prompts: Sequence[Sequence[int]], totals: Sequence[int]) -> Beginning | None:
    """A group with one prompt more; None where the row would hold hardly fewer positions than both apart."""
    number, first = len(group.members), prompts[group.members[0]]
    length = shared_length([first if number == 1 else first[: group.length + 1], prompts[index]])
    saved = length * number - group.length * (number - 1)
    if saved < LEAST_SAVED:
        return None
    return Beginning((*group.members, index), group.total + totals[index] - saved, length)
