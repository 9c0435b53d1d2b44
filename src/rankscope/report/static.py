"""Figures as SVG files for papers: the same specifications, drawn without a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import vl_convert

from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import FONT, INK, PAPER, TASK_FILTER, WIDTH

VEGALITE_VERSION = "6.4"
_WIDTH = 320
_LEGEND = {"title": None, "orient": "bottom", "columns": 6, "symbolOpacity": 1}


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
        "axisXQuantitative": {"tickCount": 6, "labelFlush": False},
        "axisYQuantitative": {"tickCount": 6},
        "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12,
                   "titleFontSize": 12, "titleFontWeight": "normal", "labelOpacity": 0.85},
        "title": {**ink, "fontSize": 14, "fontWeight": 600, "anchor": "start", "subtitleColor": "currentColor",
                  "subtitleFontSize": 12},
        "text": {"fontSize": 12},
    }  # fmt: skip


def parameters(group: str, task: str | None, arms: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The three values that the page's script sets in every plot."""
    return [{"name": "group", "value": group}, {"name": "task", "value": task}, {"name": "arms", "value": list(arms)}]


def render_svgs(figures: Mapping[str, Figure], groups: list[str]) -> Iterator[tuple[str, str]]:
    """Every figure of every group as (file name without ending, SVG); what is per task has a panel for each task.

    Args:
        figures: The page's figures, by key.
        groups: The names of the groups, each a base and training set.
    """
    for figure in figures.values():
        for group in groups:
            panels = [
                {**_for_paper(panel.spec, task), "title": _title(panel, task)}
                for panel in figure.panels
                for task in figure.tasks or (None,)
                if panel.is_of(group)
            ]
            if not panels:
                continue
            spec = {
                "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
                "concat": panels,
                "columns": min(figure.columns if not figure.tasks else 3, len(panels)),
                "resolve": {"scale": {"color": "shared", "shape": "shared"}},
                "params": parameters(group, None),
                "config": config(),
                "datasets": {name: rows for panel in figure.panels for name, rows in panel.spec["datasets"].items()},
            }
            # In a paper there is no page whose colours could be followed.
            text = json.dumps(spec).replace(json.dumps(INK), '"#1c1f24"').replace(json.dumps(PAPER), '"#ffffff"')
            name = f"{_file_name(figure.key)}--{_file_name(group)}"
            yield name, vl_convert.vegalite_to_svg(text, vl_version=VEGALITE_VERSION)


def _title(panel: Panel, task: str | None) -> dict[str, Any]:
    title = {"text": f"{panel.title}: {task}" if task else panel.title}
    return {**title, "subtitle": panel.unit} if panel.unit else title


def _for_paper(spec: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """A panel's specification as part of a larger one, with a width and a legend of its own."""
    inner = {key: value for key, value in spec.items() if key not in ("$schema", "config", "datasets", "padding")}
    alone = _standing_alone(inner)
    # A concatenation has one value of a parameter for all its panels, so the task is written into each.
    text = json.dumps(alone).replace(json.dumps(TASK_FILTER), json.dumps(f"datum.task === {json.dumps(task)}"))
    return json.loads(text)


def _standing_alone(node: Any) -> Any:
    if isinstance(node, dict):
        if node.get("field") == "arm" and "domain" in (node.get("scale") or {}) and "range" in node["scale"]:
            return {**node, "legend": _LEGEND}  # colour and shape of the same arms, so they are drawn as one
        inner = {key: _standing_alone(value) for key, value in node.items()}
        return {**inner, "width": _WIDTH} if inner.get("width") == WIDTH else inner
    return [_standing_alone(value) for value in node] if isinstance(node, list) else node


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)
