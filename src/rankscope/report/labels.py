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
_BAR = 1.5  # half of a line, and some air
_STRANGER = 60.0  # as bad as covering so much (in square pixels): a name that stands nearer to another's point
_OUTSIDE = 100.0  # as bad as covering so many: a pixel of a name where the axis has its numbers, or cut off

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Place:
    """A name's offset from its point, and from where in the name it is measured."""

    dx: int
    dy: int
    align: Align


def places(
    points: Sequence[tuple[float, float, str]],
    others: Sequence[tuple[float, float]] = (),
    bars: Sequence[Box] = (),
    widths: Sequence[float] = (1e4,),
) -> list[Place]:
    """A place for each name, the best one that is still free.

    Args:
        points: Across and down in pixels, and the name, in the order of importance.
        others: Points without a name that should not be covered either.
        bars: Lines that should not go through a name.
        widths: Of the plot, first the one that all of these are in; a place has to do in the others too.
    """
    views = [_View(points, others, bars, widths[0], width / widths[0]) for width in widths]
    found = []
    for index in range(len(points)):
        costs = [sum(view.cost(index, place) for view in views) for place in _PLACES]
        best = _PLACES[costs.index(min(costs))]
        for view in views:
            view.taken.append(view.box(index, best))
        found.append(Place(*best))
    return found


class _View:
    """The plot in one of its widths: what is where, names that have their place among it."""

    def __init__(
        self,
        points: Sequence[tuple[float, float, str]],
        others: Sequence[tuple[float, float]],
        bars: Sequence[Box],
        width: float,
        squeeze: float,
    ) -> None:
        self.width = width * squeeze
        self.points = [(x * squeeze, y, name) for x, y, name in points]
        spots = [(x * squeeze, y) for x, y, *_ in (*points, *others)]
        self.taken = [(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in spots]
        self.taken += [(left * squeeze - _BAR, top - _BAR, right * squeeze + _BAR, bottom + _BAR)
                       for left, top, right, bottom in bars]  # fmt: skip

    def box(self, index: int, place: tuple[int, int, Align]) -> Box:
        return _box(*self.points[index], place)

    def cost(self, index: int, place: tuple[int, int, Align]) -> float:
        """What a name covers there, and how far it is from being read as its own point's and as a whole."""
        box, own = self.box(index, place), self.points[index][:2]
        covered = sum(_shared(box, other) for other in self.taken)
        is_astray = any(_distance(box, point) <= _distance(box, own) for point in self.points if point[:2] != own)
        outside = max(0.0, -box[0], box[2] - self.width)
        return covered + _STRANGER * is_astray + _OUTSIDE * outside


def _box(x: float, y: float, name: str, place: tuple[int, int, Align]) -> Box:
    dx, dy, align = place
    width = _CHARACTER * len(name)
    left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
    return left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2


def _distance(box: Box, point: Sequence[float | str]) -> float:
    """How far a point lies from a box."""
    x, y = float(point[0]), float(point[1])
    left, top, right, bottom = box
    return math.hypot(max(left - x, 0.0, x - right), max(top - y, 0.0, y - bottom))


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
