"""What all plots share: the arms' look, highlighting, filtering, tooltips, and data without non-finite numbers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from rankscope.report.palette import Look

# The page's script sets these three; see page.js. With no arm picked, all are shown in full.
GROUP_FILTER = "datum.group === group"
TASK_FILTER = "datum.task === task"
PICKED = "length(arms) === 0 || indexof(arms, datum.arm) >= 0"
INK = "currentColor"
PAPER = "var(--paper)"
# A plot is as wide as its place in the page.
WIDTH: Any = "container"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Style:
    """The looks of the arms by label, in the study's order, the base last."""

    looks: Mapping[str, Look]


def colour(style: Style, *, with_base: bool = False) -> alt.Color:
    """Arms by colour, the same in every plot; the legend is the page's row of arms."""
    names = [name for name in style.looks if with_base or name != "base"]
    scale = alt.Scale(domain=names, range=[style.looks[name].colour for name in names])
    return alt.Color("arm:N", scale=scale, legend=None)


def shape(style: Style, *, with_base: bool = False) -> alt.Shape:
    """Methods by shape, so that colour is never the only difference; of the same arms as the colour, or two legends."""
    names = [name for name in style.looks if with_base or name != "base"]
    scale = alt.Scale(domain=names, range=[style.looks[name].shape for name in names])
    return alt.Shape("arm:N", scale=scale, legend=None)


def picked(faded: float = 0.12, full: float = 1.0) -> Any:
    """Opacity that fades the arms which the reader did not pick."""
    return either(alt.OpacityValue, PICKED, full, faded)


def either(channel: Any, test: str, yes: Any, no: Any) -> Any:
    """One of two values of a channel, by a test of the row.

    `alt.condition` says the same, but leaves open what it is of, and Altair finds that out by validating it against
    every schema that it knows: half of the time in which the page's plots are made.
    """
    return channel(no, condition={"test": test, "value": yes})


def tooltips(**titles: str) -> list[alt.Tooltip]:
    """Tooltip lines: field=title; fields hold text that is ready to read."""
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]


def log_axis(values: Sequence[float], title: str, base: float) -> alt.X:
    """A logarithmic axis with a tick at each value that occurs and some air at both ends."""
    ordered = sorted(set(values))
    air = 1.35
    scale = alt.Scale(type="log", base=base, domain=[ordered[0] / air, ordered[-1] * air], nice=False)
    text = "datum.value < 1e-4 ? format(datum.value, '~e') : format(datum.value, '~g')"
    axis = alt.Axis(values=ordered, labelExpr=text, labelOverlap="greedy", grid=False)
    return alt.X("x:Q", scale=scale, axis=axis, title=title)


def data(frame: pl.DataFrame) -> alt.Data:
    """A frame as inline data: numbers to six figures, what is not finite as null, for JSON knows neither."""
    return alt.Data(values=[{key: _cell(value) for key, value in row.items()} for row in frame.iter_rows(named=True)])


def specification(chart: alt.Chart | alt.LayerChart) -> dict[str, Any]:
    """A chart's Vega-Lite specification with each table in it once, under `datasets`, by a name made of its content.

    It is not validated here, for that takes longer than all else; a test validates every figure.
    """
    datasets: dict[str, list[dict[str, Any]]] = {}

    def kept(rows: list[dict[str, Any]]) -> dict[str, str]:
        name = f"table-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]}"
        datasets[name] = rows
        return {"name": name}

    def named(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: kept(value["values"]) if key == "data" else named(value) for key, value in node.items()}
        return [named(value) for value in node] if isinstance(node, list) else node

    return {**named(chart.to_dict(validate=False)), "datasets": datasets}


def horizontal_rule(value: float, title: str) -> alt.Chart:
    """A dashed line at one value of y, which says what it is when pointed at."""
    rows = alt.Data(values=[{"y": value, "title": title}])
    mark = alt.Chart(rows).mark_rule(strokeDash=[4, 4], color=INK, opacity=0.6)
    return mark.encode(y="y:Q", tooltip=alt.Tooltip("title:N", title="Line"))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
