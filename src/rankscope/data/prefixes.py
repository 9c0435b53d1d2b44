"""What texts begin with together, as those behind the same worked examples do, and when that is worth sharing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Fewer positions are not worth a row that branches once more.
LEAST_SAVED = 32
# Of a row: its mask has the square of so many, and where memory runs out rows are divided, not what is in them.
MOST_TOKENS = 1024


def common_length(texts: Sequence[Sequence[Any]]) -> int:
    """How many characters or tokens texts begin with together, by halving: they are long, and there are thousands.

    Examples:
        >>> common_length(["abcd", "abd"]), common_length([(1, 2), (3,)])
        (2, 0)
    """
    first, *others = texts
    low, high = 0, min(map(len, texts))
    while low < high:
        middle = (low + high + 1) // 2
        beginning = first[:middle]
        low, high = (middle, high) if all(text[:middle] == beginning for text in others) else (low, middle - 1)
    return low
