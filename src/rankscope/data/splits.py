"""How rows without splits are cut: by what is asked, so that nothing moves when rows are added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rankscope.spec import Part

# Part of every study's split. Another value would move rows between training and validation.
_SEED = "rankscope-validation-0"
_PARTS: dict[Part, tuple[float, float]] = {"validation": (0.0, 0.1), "test": (0.1, 0.2), "train": (0.2, 1.0)}


def normalised(text: str) -> str:
    """A text without what does not tell two questions apart: case, and the kind and number of blanks."""
    return " ".join(text.casefold().split())


def split_position(question: str) -> float:
    """Where a question falls between 0 and 1; the same question always in the same place."""
    digest = hashlib.sha256(f"{_SEED}\0{normalised(question)}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def held_out(questions: Sequence[str], fraction: float) -> list[bool]:
    """Which questions are held out: about `fraction` of them, twins together, whatever else the data holds.

    Where chance leaves nothing to hold out, the question with the lowest position is.
    """
    positions = [split_position(question) for question in questions]
    limit = max(fraction, min(positions, default=0.0) + 2**-52) if fraction > 0 else 0.0
    return [position < limit for position in positions]


def in_part(question: str, part: Part) -> bool:
    """Whether a question belongs to a part of data that has no splits: about 80% train, 10% validation, 10% test.

    Each question falls by itself, or adding rows would move others: of few rows the parts are not of these very sizes.
    """
    low, high = _PARTS[part]
    return low <= split_position(question) < high


def part_words(part: Part) -> str:
    """A part with the share that it has of many rows: `part train, about 80%, cut by what is asked`."""
    low, high = _PARTS[part]
    return f"part {part}, about {high - low:.0%}, cut by what is asked"


def num_duplicates(keys: Sequence[object]) -> int:
    """How many came before already."""
    return len(keys) - len(set(keys))
