"""Texts that begin alike, written once: a text with branches behind it, which see it and what stands before it alone.

An item is a prompt with its options as branches; items that share worked examples are branches of these.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class TextTree:
    """A text and the branches that follow it, laid out in a row one behind another, each before its own branches.

    Attributes:
        length: Positions of the text that all its branches see.
        branches: What goes on where the text ends; no branch sees another.
    """

    length: int
    branches: tuple[TextTree, ...] = ()

    @property
    def total(self) -> int:
        """Positions in the row."""
        return self.length + sum(branch.total for branch in self.branches)

    @property
    def deepest(self) -> int:
        """Positions from the text's beginning to the end of its longest branch."""
        return self.length + max((branch.deepest for branch in self.branches), default=0)

    def positions(self, first: int = 0) -> list[int]:
        """The position of each token in its text; every branch goes on where the text ends."""
        end = first + self.length
        return [*range(first, end), *itertools.chain(*(branch.positions(end) for branch in self.branches))]

    def ends(self, first: int = 0) -> list[int]:
        """For each place in the row, up to where it may be seen: the end of its text's last branch."""
        found = [first + self.total] * self.length
        for branch in self.branches:
            found += branch.ends(first + len(found))
        return found
