"""Figures as SVG files for papers: the same specifications, drawn without a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import vl_convert

from rankscope.report.figure import Figure
from rankscope.report.marks import FONT

VEGALITE_VERSION = "6.4"


def config() -> dict[str, Any]:
    """How all plots look: ink that follows the page's, thin grid, no boxes, the page's own type."""
    ink = {"color": "currentColor"}
    return {
        "font": FONT,
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {
            "labelColor": "currentColor", "titleColor": "currentColor", "tickColor": "currentColor",
            "domainColor": "currentColor", "gridColor": "currentColor", "gridOpacity": 0.1, "domainOpacity": 0.35,
            "tickOpacity": 0.35, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
            "titlePadding": 10, "labelOpacity": 0.85, "titleOpacity": 0.85,
        },
        "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12,
                   "titleFontSize": 12, "titleFontWeight": "normal", "labelOpacity": 0.85},
        "title": {**ink, "fontSize": 14, "fontWeight": 600, "anchor": "start"},
        "text": {"fontSize": 12},
    }  # fmt: skip


def parameters(group: str, task: str | None, arms: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The three values that the page's script sets in every plot."""
    return [{"name": "group", "value": group}, {"name": "task", "value": task}, {"name": "arms", "value": list(arms)}]


def render_svgs(figures: Mapping[str, Figure], groups: list[str]) -> Iterator[tuple[str, str]]:
    """Every figure of every group as (file name without ending, SVG); a figure per task is drawn for each task.

    Args:
        figures: Made with `is_static`, so that each has a legend and a size.
        groups: The names of the groups, each a base and training set.
    """
    for figure in figures.values():
        for group in groups:
            for task in figure.tasks or (None,):
                panels = [
                    {**_without_frame(panel.spec), "title": panel.title}
                    for panel in figure.panels
                    if panel.group in (None, group)
                ]
                spec = {
                    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
                    "concat": panels,
                    "columns": figure.columns,
                    "resolve": {"scale": {"color": "shared"}},
                    "params": parameters(group, task),
                    "config": config(),
                }
                name = "--".join(_file_name(part) for part in (figure.key, group, task) if part)
                # In a paper there is no page whose ink could be followed.
                text = json.dumps(spec).replace('"currentColor"', '"#1c1f24"')
                yield name, vl_convert.vegalite_to_svg(text, vl_version=VEGALITE_VERSION)


def _without_frame(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A panel's specification with its data inside it, as part of a larger one."""
    inner = {key: value for key, value in spec.items() if key not in ("$schema", "config", "datasets")}
    return _with_values(inner, spec.get("datasets", {}))


def _with_values(node: Any, datasets: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        if set(node) == {"name"} and node["name"] in datasets:
            return {"values": datasets[node["name"]]}
        return {key: _with_values(value, datasets) for key, value in node.items()}
    return [_with_values(value, datasets) for value in node] if isinstance(node, list) else node


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)
