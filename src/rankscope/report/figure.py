"""What a figure is: panels of one idea, with the words that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: A few words above it.
        label: What it shows, in a sentence, for those who cannot see it.
        spec: Its Vega-Lite specification.
        group: The group it is about; None where it follows the reader's choice.
        unit: What its upright axis says, under the title, where it need not be read on its side.
        arm: The arm it is about, where it is about one alone.
        min_width: In pixels; a narrower place scrolls.
    """

    title: str
    label: str
    spec: Mapping[str, Any]
    group: str | None = None
    unit: str = ""
    arm: str | None = None
    min_width: int = 0

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of which its tables have rows; empty where rows belong to none."""
        rows = (row for table in self.spec["datasets"].values() for row in table)
        return tuple(dict.fromkeys(row["group"] for row in rows if "group" in row))

    def is_of(self, group: str) -> bool:
        """Whether it has something to show of a group."""
        return self.group in (None, group) and (not self.groups or group in self.groups)


@dataclass(frozen=True)
class Figure:
    """Panels side by side, and their words.

    Attributes:
        key: Its file name and anchor.
        title: The heading.
        shows: What it shows, in a sentence or two.
        reading: How to read high and low.
        caution: What not to conclude.
        measures: The measures drawn, whose definitions are put below it.
        sources: The files, relative to the study directory, that its numbers come from.
        tasks: The tasks that a reader can switch between; empty where the figure is not per task.
        notes: By group, what the reader should be warned of in these very numbers.
        sentences: By group, the plots in words, for those who want them.
        columns: How many panels stand side by side where there is room.
        ramp: The two ends of the colour scale that its panels share, in words; None where there is none.
    """

    key: str
    title: str
    shows: str
    reading: str
    caution: str
    panels: Sequence[Panel]
    measures: Sequence[str]
    sources: Sequence[str]
    tasks: Sequence[str] = ()
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sentences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: int = 2
    ramp: tuple[str, str] | None = None
