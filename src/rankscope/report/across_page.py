"""The page over several studies: a table of counts for all of them, and one for each model, domain and kind of task."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from markupsafe import Markup

from rankscope.report.across import GROUPS, OUTCOMES, Study
from rankscope.report.page import content_security_policy, environment
from rankscope.report.palette import looks

_TITLES = {"all": "All studies", "model": "By model", "domain": "By training set", "kind": "By kind of task in domain"}


def render_across(studies: Sequence[Study], found: pl.DataFrame, counted: pl.DataFrame) -> str:
    """The page as HTML; everything that came from data is escaped."""
    templates = environment("rankscope.report")
    arms = looks(studies[0].contents.plan)
    style = templates.get_template("style.css.j2").render(arms=arms, classes={name: name for name in arms})
    sections = []
    for group in GROUPS:
        rows = counted.filter(pl.col("by") == group)
        parts = [(value, _sorted(part).to_dicts()) for (value,), part in rows.group_by("value", maintain_order=True)]
        sections.append((_TITLES[group], parts))
    undecided = [
        f"{study.name}: {'no verdict yet' if study.contents.decision is None else 'undecided'}"
        for study in studies
        if study.contents.decision is None
        or any(verdict.decision == "undecided" for verdict in study.contents.decision.verdicts)
    ]
    number = len(studies)
    return templates.get_template("across.html.j2").render(
        how_many="1 study" if number == 1 else f"{number} studies",
        names=[study.name for study in studies],
        num_verdicts=found.select("study", "model", "domain").n_unique() if found.height else 0,
        undecided=undecided,
        sections=[section for section in sections if section[1]],
        outcomes=OUTCOMES,
        style=Markup(style),
        policy=content_security_policy(style, []),
    )


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    """What was most often good enough first, then the name."""
    share = pl.col(OUTCOMES[0]) / pl.col("verdicts")
    return rows.with_columns(share.alias("share")).sort("share", "setting", descending=[True, False])
