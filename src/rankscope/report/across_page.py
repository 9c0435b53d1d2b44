"""The page over several studies: their verdicts and settings side by side, and how often each setting was enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from rankscope.report.across import GROUPS, OUTCOMES, Study
from rankscope.report.across_figure import across_figure, across_looks
from rankscope.report.page import environment, fill, panel_specs, verdict_views
from rankscope.report.runs import run_states

_TITLES = {"all": "All studies", "model": "By model", "domain": "By training set", "kind": "By kind of task in domain"}


def render_across(studies: Sequence[Study], found: pl.DataFrame, counted: pl.DataFrame, standings: pl.DataFrame) -> str:
    """The page as HTML; everything that came from data is escaped."""
    sections = []
    for group in GROUPS:
        rows = counted.filter(pl.col("by") == group)
        parts = [(value, _sorted(part).to_dicts()) for (value,), part in rows.group_by("value", maintain_order=True)]
        # A table for each of one would only say again what the first says.
        if group == "all" or len(parts) > 1:
            sections.append((_TITLES[group], parts))
    figure = across_figure(standings)
    figures = {} if figure is None else {figure.key: figure}
    values = {
        "how_many": "1 study" if len(studies) == 1 else f"{len(studies)} studies",
        "names": [study.name for study in studies],
        "num_verdicts": found.select("study", "model", "domain").n_unique() if found.height else 0,
        "verdicts": [verdict for study in studies for verdict in _verdicts(study)],
        "waiting": [study.name for study in studies if study.contents.decision is None],
        "sections": [section for section in sections if section[1]],
        "outcomes": OUTCOMES,
        "glances": {},
        "against": {},  # each study's own page has them
        "figures": figures,
        "specs": panel_specs(figures, ["all"]),
    }
    state = {"group": "all", "task": None}
    return fill(environment("rankscope.report"), "across.html.j2", across_looks(standings), state, values)


def _verdicts(study: Study) -> list[dict[str, Any]]:
    """A study's verdicts in words, with what each was trained on."""
    views = verdict_views(study.contents, run_states(study.contents))
    # Files beside a study's own report are not beside this page.
    return [{"study": study.name, "view": replace(view, defaults=())} for view in views]


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    """What was most often good enough first, then the name."""
    share = pl.col(OUTCOMES[0]) / pl.col("verdicts")
    return rows.with_columns(share.alias("share")).sort("share", "setting", descending=[True, False])
