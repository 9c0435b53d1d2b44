"""Numbers as tables of the page show them: the value, its interval in small type, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.records import Interval
from rankscope.report.wording import EMPTY, between, digits_of, evidence, scaled, signed


@dataclass(frozen=True)
class Cell:
    """A number in a table: the value, its interval in small type, and what it rests on when pointed at."""

    value: str
    small: str = ""
    title: str = ""
    state: str = ""


def number_cell(interval: Interval | None, measure: str, source: str, seeds_part: str | None) -> Cell:
    """A number with its interval; `seeds_part` says whose seeds are in it."""
    if interval is None:
        return Cell(EMPTY, title="not measured")
    rests = evidence(interval.confidence, interval.num_items, interval.num_seeds, source, seeds_part)
    value = signed(scaled(interval.value, measure), digits_of(measure))
    return Cell(value, between(interval.low, interval.high, measure), f"{measure}: {rests}")
