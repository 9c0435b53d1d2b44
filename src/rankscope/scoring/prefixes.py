"""Which prompts begin alike, as those behind the same worked examples do: what they share is then read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

# Fewer positions are not worth a row that branches once more.
LEAST_SAVED = 32
# Of a row: its mask has the square of so many, and where memory runs out rows are divided, not what is in them.
MOST_TOKENS = 1024


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


def common_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens prompts begin with together, so that each still has one of its own.

    Examples:
        >>> common_length([(1, 2, 3, 4), (1, 2, 5)]), common_length([(1, 2), (1, 2, 3)])
        (2, 1)
    """
    most = min(map(len, prompts)) - 1
    steps = zip(*(prompt[:most] for prompt in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, steps))


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
    length = common_length([first if number == 1 else first[: group.length + 1], prompts[index]])
    saved = length * number - group.length * (number - 1)
    if saved < LEAST_SAVED:
        return None
    return Beginning((*group.members, index), group.total + totals[index] - saved, length)
