"""Figures of why a model forgot: what goes with it over all runs, and what undoing parts of an update gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from rankscope.measures import MEASURES
from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import (
    GROUP_FILTER,
    INK,
    PAPER,
    WIDTH,
    Style,
    colour,
    data,
    picked,
    shape,
    specification,
)

_KINDS = {
    "rewind": ("Rewound towards the base", "Share of the update"),
    "truncate": ("Cut to a lower rank", "Rank that is left"),
    "intruders": ("Intruder dimensions scaled", "Share of them that is left"),
}
_TARGETS = {"forgetting": "Forgetting, accuracy", "forgetting_nats": "Forgetting, nats per token"}
# What might explain, in words that fit beside a plot; the rest of them is in the definitions.
_PREDICTORS = {
    "rank": "rank", "learning_rate": "learning rate", "update_norm": "size of the update",
    "intruder_dimensions": "intruder dimensions", "rho_16": "in the base's top 16",
    "rho_128": "in the base's top 128", "cka": "geometry kept (CKA)",
    "attention_divergence": "attention moved",
}  # fmt: skip
_HOWS = ("plain", "at equal size of the update")
_FEW = 10


def derived_figure(
    derived: pl.DataFrame, style: Style, notes: Mapping[str, Sequence[str]]
) -> Figure | None:
    """What gain and forgetting become when a trained update is shrunk, cut or mended, without training again."""
    points = derived.filter(pl.col("measure").is_in(["gain", "forgetting"]))
    if points.is_empty():
        points = derived.filter(pl.col("measure").is_in(["gain_nats", "forgetting_nats"]))
    panels = []
    for kind, (title, axis) in _KINDS.items():
        part = points.filter(pl.col("kind") == kind)
        if not part.is_empty():
            label = f"Line plot: gain and forgetting against {axis.lower()}, one pair of lines an arm."
            nats = points["measure"].str.ends_with("_nats").any()
            unit = "against the base, nats per token" if nats else "against the base, points of accuracy"
            panels.append(Panel(title, label, specification(_curve(part, axis, style)), unit=unit))
    if not panels:
        return None
    return Figure(
        key="derived",
        title="Undoing parts of the update",
        shows="Models made of the trained ones without training: the update shrunk, cut to its first directions, or "
        "its intruder dimensions scaled. Solid: gain in domain; dashed: forgetting on retention; each on the same "
        "items as the run itself, which stands at 1 or at its own rank. Bars are intervals over items and seeds.",
        reading="Where the dashed line falls faster than the solid one, what was forgotten can be had back for little "
        "of what was learned. If cutting ranks leaves both as they were, the rank was not used.",
        caution="A point that looks better than the run was found on test items. To claim it, score it on others.",
        panels=panels,
        measures=tuple(dict.fromkeys(points["measure"])),
        sources=("runs/*/derive/*/*/record.json",),
        columns=3,
        notes=notes,
    )


def explanation_figure(explanations: pl.DataFrame) -> Figure | None:
    """What goes with forgetting over all runs of a training set, plain and at equal size of the update."""
    panels, notes = [], _warnings(explanations)
    for target, title in _TARGETS.items():
        part = explanations.filter(pl.col("target") == target)
        if not part.is_empty():
            label = f"Dot plot with intervals: rank correlation of each measure with {title.lower()}."
            panels.append(Panel(title, label, specification(_forest(part))))
    if not panels:
        return None
    return Figure(
        key="explanations",
        title="What explains forgetting",
        shows="The rank correlation over all scored runs of each measure with what was forgotten (filled), and what is "
        "left of it at equal size of the update (hollow). Runs of one arm at one rate count once, with the mean of "
        "their seeds; bars are intervals by Fisher's transformation. A mark without a bar has too few runs for one. A "
        "kept geometry (CKA) is high where little changed, so it lies left.",
        reading="Right of 0: runs with more of it forgot more. Where the filled mark is far from 0 and the hollow one "
        "is not, the measure goes with forgetting only because it goes with the size of the update. An interval that "
        "holds 0 decides nothing.",
        caution="Arms and rates were chosen, not drawn, and a correlation is no cause: undoing parts of the update, "
        "below, is nearer to one. With eight measures one of twenty intervals misses by chance.",
        panels=panels,
        measures=tuple(key for key in dict.fromkeys(explanations["predictor"]) if key in MEASURES),
        sources=("runs/*/analyse/*/record.json", "runs/*/evaluate/*/record.json"),
        notes=notes,
    )


def _warnings(explanations: pl.DataFrame) -> dict[str, list[str]]:
    """By group, that its runs are few."""
    found: dict[str, list[str]] = {}
    for (group,), part in explanations.group_by(["group"], maintain_order=True):
        most = int(part["num_candidates"].max())
        if most < _FEW:
            text = f"Only {most} arms at a rate were scored: the intervals are wide, and most hold 0."
            found[str(group)] = [f"{text} `search: {{evaluate: all}}` adds the candidates that were not chosen."]
    return found


def _curve(part: pl.DataFrame, axis: str, style: Style) -> alt.LayerChart:
    factor = pl.when(pl.col("measure").str.ends_with("_nats")).then(1.0).otherwise(100.0)
    shown = part.with_columns(
        pl.col("measure").str.replace("_nats", "").alias("what"),
        *((factor * pl.col(name)).alias(name) for name in ("value", "low", "high")),
    ).select("group", "arm", "amount", "what", "value", "low", "high", "num_items", "num_seeds", "source")
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    x, tint = alt.X("amount:Q", title=axis), colour(style)
    y = alt.Y("value:Q", title=None)
    scale = alt.Scale(domain=["gain", "forgetting"], range=[[1, 0], [5, 4]])
    legend = alt.Legend(orient="top", symbolType="stroke", symbolSize=500, symbolStrokeColor="#808080")
    dash = alt.StrokeDash("what:N", scale=scale, title=None, legend=legend)
    hints = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("what:N", title="Measure"),
        alt.Tooltip("amount:Q", title=axis),
        alt.Tooltip("value:Q", title="Value", format=".3~f"),
        alt.Tooltip("low:Q", title="From", format=".3~f"),
        alt.Tooltip("high:Q", title="To", format=".3~f"),
        alt.Tooltip("num_items:Q", title="Items"),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
        alt.Tooltip("source:N", title="File"),
    ]
    return alt.layer(
        plot.mark_line(strokeWidth=1.5, aria=False).encode(x=x, y=y, color=tint, strokeDash=dash, opacity=picked()),
        plot.mark_rule(strokeWidth=1, aria=False).encode(
            x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked(full=0.5)
        ),
        plot.mark_point(filled=True, size=50).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ).properties(width=WIDTH, height=240)


def _forest(part: pl.DataFrame) -> alt.LayerChart:
    plain, equal = _HOWS
    shown = part.with_columns(
        pl.when(pl.col("given").is_null()).then(pl.lit(plain)).otherwise(pl.lit(equal)).alias("how"),
        pl.col("predictor").replace(_PREDICTORS).alias("measure"),
    ).select("group", "measure", "how", "value", "low", "high", "num_candidates", "num_runs", "source")
    order = list(dict.fromkeys(shown["measure"]))
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    y = alt.Y("measure:N", sort=order, title=None, axis=alt.Axis(labelLimit=170, grid=True))
    offset = alt.YOffset("how:N", sort=list(_HOWS), scale=alt.Scale(paddingOuter=0.6))
    x = alt.X("value:Q", title="Rank correlation", scale=alt.Scale(domain=[-1, 1]))
    hints = [
        alt.Tooltip("measure:N", title="Measure"),
        alt.Tooltip("how:N", title="Taken"),
        alt.Tooltip("value:Q", title="Correlation", format=".2f"),
        alt.Tooltip("low:Q", title="From", format=".2f"),
        alt.Tooltip("high:Q", title="To", format=".2f"),
        alt.Tooltip("num_candidates:Q", title="Candidates"),
        alt.Tooltip("num_runs:Q", title="Runs"),
        alt.Tooltip("source:N", title="File"),
    ]
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=INK, opacity=0.5).encode(x="x:Q")
    fill = alt.condition(f"datum.how === '{plain}'", alt.value(INK), alt.value(PAPER))
    return alt.layer(
        zero,
        # Its numbers are said at the point; and where no interval can be given, an empty mark has nothing to say.
        plot.mark_rule(strokeWidth=1.5, aria=False, color=INK, opacity=0.7).encode(
            x=alt.X("low:Q"), x2="high:Q", y=y, yOffset=offset
        ),
        plot.mark_point(filled=True, size=70, stroke=INK, strokeWidth=1.5, opacity=1).encode(
            x=x, y=y, yOffset=offset, fill=fill, tooltip=hints
        ),
    ).properties(width=WIDTH, height=36 * len(order))
