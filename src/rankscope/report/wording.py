"""Numbers and names as a reader sees them: points, nats, intervals, arms in words."""

from __future__ import annotations

import math
import re

from rankscope.measures import MEASURES
from rankscope.records import Interval

MINUS = "\N{MINUS SIGN}"
EMPTY = "\N{EN DASH}"
# From where an interval knows how much a number moves with the seed: one number may stand with either.
POOLED, OWN = "seeds pooled over arms", "own seeds"


def signed(value: float, digits: int) -> str:
    """A number with its sign and a true minus; zero has none."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+") + text


def plain(value: float, digits: int) -> str:
    """A number with a true minus and no plus."""
    return signed(value, digits).removeprefix("+")


def digits_of(measure: str) -> int:
    """How many decimals a measure is shown with: accuracies are shown in points, so with one."""
    return 1 if is_fraction(measure) else 3


def is_fraction(measure: str) -> bool:
    """Whether a measure is stored as a fraction and shown in points (hundredths)."""
    return MEASURES[measure].unit == "fraction"


def scaled(value: float, measure: str) -> float:
    """A stored value on the scale it is shown on."""
    return 100 * value if is_fraction(measure) else value


def unit_of(measure: str) -> str:
    """The unit in which a measure is shown."""
    return "points" if is_fraction(measure) else MEASURES[measure].unit


def amount(interval: Interval, measure: str) -> str:
    """`+35.0 points (31.0 to 39.0)`: a value with its unit and its interval."""
    return amount_of(interval.value, interval.low, interval.high, measure)


def amount_of(value: float, low: float | None, high: float | None, measure: str, *, signs: bool = True) -> str:
    """The same from single numbers; without signs a fraction is no difference but a percentage."""
    unit = unit_of(measure) if signs or not is_fraction(measure) else "%"
    text = (signed if signs else plain)(scaled(value, measure), digits_of(measure))
    limits = between(low, high, measure)
    return f"{text} {unit} ({limits})" if limits else f"{text} {unit}"


def between(low: float | None, high: float | None, measure: str) -> str:
    """`31.0 to 39.0`, or nothing where there is no interval."""
    if low is None or high is None:
        return ""
    digits = digits_of(measure)
    return f"{plain(scaled(low, measure), digits)} to {plain(scaled(high, measure), digits)}"


def beyond(base_value: float, low: float | None, high: float | None, measure: str) -> str:
    """What is said of an accuracy's difference from the base whose interval leaves 0 to 100% right, or nothing.

    It is not cut there: it is about other items of the kind, of which the base may get more or fewer right.
    """
    if not is_fraction(measure) or low is None or high is None or (base_value + low >= 0 and base_value + high <= 1):
        return ""
    return ", wider than is possible at the base's score: on that side these items set no limit"


def evidence(
    confidence: float | None, num_items: int | None, num_seeds: int | None, source: str, seeds_part: str | None = None
) -> str:
    """What a number rests on: its interval's confidence and whose seeds are in it, items, seeds and file."""
    seeds = f" ({seeds_part})" if seeds_part else ""
    parts = [] if confidence is None else [f"{100 * confidence:g}% interval{seeds}"]
    parts += [] if num_items is None else [counted(num_items, "item")]
    parts += [] if num_seeds is None else [counted(num_seeds, "seed")]
    return f"{', '.join(parts)}; {source}" if parts else source


def count(value: int | None) -> str:
    """A count with thousands separated, or a dash."""
    return EMPTY if value is None else f"{value:,}"


def counted(value: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def short_count(value: int | None) -> str:
    """A large count in thousands or millions, to three figures."""
    if value is None:
        return EMPTY
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return EMPTY
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def megabytes(size: float | None) -> str:
    """Bytes as megabytes."""
    return EMPTY if size is None else f"{size / 1e6:,.0f} MB"


def rate(value: float | None) -> str:
    """A learning rate: 0.001 or 1e-5."""
    return EMPTY if value is None else re.sub(r"e-0*", "e-", f"{value:g}")


def probability(value: float | None) -> str:
    """A p value to three decimals."""
    if value is None:
        return EMPTY
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def arm_in_words(label: str) -> str:
    """An arm's name in a sentence; a name of the user's own is kept."""
    if label == "full":
        return "full fine-tuning"
    if label == "base":
        return "the base as it is"
    match = re.fullmatch(r"lora-r(\d+)", label)
    return f"LoRA of rank {match[1]}" if match else label
