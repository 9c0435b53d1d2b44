"""Where the names of points go, so that they neither cover each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "right", "center"]
# Offsets of a name from its point in pixels, best first, with the side of the text that they are measured from.
_PLACES: tuple[tuple[int, int, Align], ...] = (
    (10, -10, "left"), (-10, -10, "right"), (10, 14, "left"), (-10, 14, "right"), (0, -16, "center"),
    (0, 20, "center"), (10, -24, "left"), (-10, -24, "right"), (10, 28, "left"), (-10, 28, "right"),
)  # fmt: skip
_CHARACTER, _LINE = 6.6, 13.0  # of the plots' type, in pixels
_REACH = 6.0  # half the size of a point
_MARGIN = (-1e3, -1e3, 0.0, 1e4)  # left of the plot, where the axis has its numbers
_STRANGER = 60.0  # as bad as covering so much (in square pixels): a name that stands nearer to another's point


@dataclass(frozen=True)
class Place:
    """A name's offset from its point, and from where in the name it is measured."""

    dx: int
    dy: int
    align: Align


def places(points: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]] = ()) -> list[Place]:
    """A place for each name, the best one that is still free.

    Args:
        points: Across and down in pixels, and the name, in the order of importance.
        others: Points without a name that should not be covered either.
    """
    taken = [_MARGIN, *((x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y, *_ in (*points, *others))]
    found = []
    for x, y, name in points:
        boxes = [_box(x, y, name, place) for place in _PLACES]
        strangers = [point for point in points if point[:2] != (x, y)]
        costs = [
            sum(_shared(box, other) for other in taken)
            + _STRANGER * any(_distance(box, other) <= _distance(box, (x, y)) for other in strangers)
            for box in boxes
        ]
        best = costs.index(min(costs))
        found.append(Place(*_PLACES[best]))
        taken.append(boxes[best])
    return found


def _box(x: float, y: float, name: str, place: tuple[int, int, Align]) -> tuple[float, float, float, float]:
    dx, dy, align = place
    width = _CHARACTER * len(name)
    left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
    return left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2


def _distance(box: tuple[float, float, float, float], point: Sequence[float | str]) -> float:
    """How far a point lies from a box."""
    x, y = float(point[0]), float(point[1])
    left, top, right, bottom = box
    return math.hypot(max(left - x, 0.0, x - right), max(top - y, 0.0, y - bottom))


def _shared(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """The area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
