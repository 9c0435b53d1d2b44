"""One fixed look for every arm: a colour that colour-blind readers can tell apart, and a shape for its method."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.plan import Plan

# Ranks are ordered, so their colours are too: from teal over blue to magenta, falling in lightness, which survives any
# kind of colour-blindness; each has a contrast of 3 or more against the white and the near-black page.
_RANK_STOPS = ("#2a9d8f", "#3a8fc9", "#6a74d8", "#9a5cc6", "#b0469c")
# Methods without a rank: vermilion first (the Okabe-Ito colour farthest from the ramp), then its neighbours.
_OTHER = ("#d55e00", "#a87f00", "#b8527f", "#8a7550")
BASE_COLOUR = "#808080"
GAIN_COLOUR, LOSS_COLOUR = "#2f7fc1", "#d55e00"


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, everywhere."""

    colour: str
    shape: str


def looks(plan: Plan) -> dict[str, Look]:
    """The look of every arm by label, in the study's order, and of the base under `base`."""
    arms = {run.arm.label: run.arm for run in plan.runs}
    ranked = sorted((arm for arm in arms.values() if arm.rank is not None), key=lambda arm: arm.rank or 0)
    colours = {arm.label: _ramp(index, len(ranked)) for index, arm in enumerate(ranked)}
    unranked = [label for label, arm in arms.items() if arm.rank is None]
    colours |= {label: _OTHER[index % len(_OTHER)] for index, label in enumerate(unranked)}
    found = {
        label: Look(colours[label], "diamond" if arm.capabilities.saves == "model" else "circle")
        for label, arm in arms.items()
    }
    return {**found, "base": Look(BASE_COLOUR, "cross")}


def _ramp(index: int, count: int) -> str:
    """The index-th of `count` colours evenly spaced along the ramp."""
    position = (index / (count - 1) if count > 1 else 0.4) * (len(_RANK_STOPS) - 1)
    left = min(int(position), len(_RANK_STOPS) - 2)
    share = position - left
    pairs = zip(_channels(_RANK_STOPS[left]), _channels(_RANK_STOPS[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
