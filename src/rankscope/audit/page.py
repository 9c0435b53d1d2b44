"""The page of an audit: one self-contained HTML file in the style of a study's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from rankscope.audit.findings import percent
from rankscope.audit.result import Audit, short_name
from rankscope.measures import MEASURES
from rankscope.report import wording
from rankscope.report.figure import Figure
from rankscope.report.page import environment, fill, panel_specs

# A page stays readable with so many rows; all of them are in tables/matrices.csv.
_MOST_ROWS = 500
_FIRST_ROWS = 12
_COLUMNS = {
    "update_norm_relative": "moved by", "rank": "rank", "stable_rank": "stable rank",
    "effective_rank": "effective rank", "energy_rank_90": "90%", "energy_rank_95": "95%", "energy_rank_99": "99%",
    "intruder_dimensions": "intruders",
}  # fmt: skip


def render_page(audit: Audit, findings: list[str], figures: Mapping[str, Figure]) -> str:
    """The whole page as HTML; everything that came from data is escaped."""
    columns, rows = _table(audit)
    values = {
        "audit": audit,
        "name": short_name(audit.tuned),
        "findings": findings,
        "figures": figures,
        "specs": panel_specs(figures, ["audit"]),
        "columns": columns,
        "first": rows[:_FIRST_ROWS],
        "rest": rows[_FIRST_ROWS:_MOST_ROWS],
        "num_left": max(0, len(rows) - _MOST_ROWS),
        "facts": _facts(audit),
    }
    templates = environment("rankscope.audit", "rankscope.report")
    return fill(templates, "audit.html.j2", {}, {"group": "audit", "task": None}, values)


def _table(audit: Audit) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """The columns (key and heading) and the rows of the table of matrices, those that moved most first."""
    keys = [key for key in _COLUMNS if key in audit.matrices.columns]
    keys = [key for key in keys if audit.matrices[key].null_count() < audit.matrices.height]
    ordered = audit.matrices.sort("update_norm_relative", descending=True, nulls_last=True)
    rows = [[row["name"], *(_cell(key, row[key]) for key in keys)] for row in ordered.iter_rows(named=True)]
    return [(key, _COLUMNS[key]) for key in keys], rows


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return wording.EMPTY
    if key in MEASURES and MEASURES[key].unit == "fraction":
        return percent(value)
    return f"{value:.0f}" if key == "rank" or MEASURES[key].unit == "count" else f"{value:.3g}"


def _facts(audit: Audit) -> list[tuple[str, str]]:
    """What was compared, as name and value."""
    facts = [
        ("Base", audit.base),
        ("Tuned", audit.tuned),
        ("Method", {"lora": "LoRA", "dora": "DoRA", "full": "a whole model"}[audit.method]),
        ("Matrices", f"{audit.matrices.height} of linear layers, {_others(audit.others)}"),
    ]
    facts += [(key, _setting(value)) for key, value in audit.settings.items() if value not in (None, False, {}, [])]
    packages = audit.provenance.get("packages") or {}
    made = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return [*facts, *(("Exactness", text) for text in audit.exactness), ("Made by", made)]


def _others(others: pl.DataFrame) -> str:
    return f"{others.height} other tensors" if others.height != 1 else "1 other tensor"


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, set)) else str(value)
