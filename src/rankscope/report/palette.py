"""One fixed look for every arm: a colour in the order of ranks, and a shape: nothing is told by colour alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankscope.plan import Plan
from rankscope.runs import ArmSettings

# Ranks are ordered, so their colours are too: from green over blue to violet, falling in lightness, and from yellow to
# blue for a reader who does not see red and green apart. Each has a contrast of 3 or more against the white and the
# near-black page, which leaves too little room for more than five that anybody can tell apart; hence the shapes.
_RANK_STOPS = ("#61a03f", "#2a9d8f", "#3a8fc9", "#6a74d8", "#8050e0")
# Methods without a rank: vermilion first (the Okabe-Ito colour farthest from the ramp), then its neighbours.
_OTHER = ("#d55e00", "#a87f00", "#b8527f", "#8a7550", "#c0503c", "#7d8531")
BASE_COLOUR = "#808080"
GAIN_COLOUR, LOSS_COLOUR = "#2f7fc1", "#d55e00"
# Whole models are diamonds and the base is a cross; adapters take these in turn, in the order of their ranks.
SHAPES = ("circle", "square", "triangle-up", "triangle-down", "triangle-right", "triangle-left")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, everywhere."""

    colour: str
    shape: str


def looks(plan: Plan) -> dict[str, Look]:
    """The look of every arm by label, in the study's order, and of the base under `base`.

    Each arm has a colour of its own, and neighbours on the ramp differ in shape.
    """
    arms = {run.arm.label: run.arm for run in plan.runs}
    colours, shapes = _colours(arms), _shapes(arms)
    return {**{label: Look(colours[label], shapes[label]) for label in arms}, "base": Look(BASE_COLOUR, "cross")}


def several_looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each of several things that are no arms and have no order, such as studies."""
    colours = (GAIN_COLOUR, *_OTHER)
    return {name: Look(colours[index % len(colours)], SHAPES[index % len(SHAPES)]) for index, name in enumerate(names)}


def family(label: str) -> str:
    """An arm's name without its rank: what is compared along a curve over ranks."""
    return re.sub(r"-r\d+", "", label)


def _colours(arms: Mapping[str, ArmSettings]) -> dict[str, str]:
    ranked = sorted((arm for arm in arms.values() if arm.rank is not None), key=lambda arm: arm.rank or 0)
    colours = {arm.label: _ramp(index, len(ranked)) for index, arm in enumerate(ranked)}
    unranked = [label for label, arm in arms.items() if arm.rank is None]
    return {**colours, **{label: _OTHER[index % len(_OTHER)] for index, label in enumerate(unranked)}}


def _shapes(arms: Mapping[str, ArmSettings]) -> dict[str, str]:
    adapters = [arm for arm in arms.values() if arm.capabilities.saves != "model"]
    in_order = sorted(adapters, key=lambda arm: arm.rank or 0)
    found = {arm.label: SHAPES[index % len(SHAPES)] for index, arm in enumerate(in_order)}
    return {label: found.get(label, "diamond") for label in arms}


def _ramp(index: int, count: int) -> str:
    """The index-th of `count` colours evenly spaced along the ramp."""
    position = (index / (count - 1) if count > 1 else 0.4) * (len(_RANK_STOPS) - 1)
    left = min(int(position), len(_RANK_STOPS) - 2)
    share = position - left
    pairs = zip(_channels(_RANK_STOPS[left]), _channels(_RANK_STOPS[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
