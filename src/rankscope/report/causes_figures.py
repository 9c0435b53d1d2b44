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
    either,
    horizontal_rule,
    log_axis,
    picked,
    shape,
    specification,
    tooltips,
)
from rankscope.report.standings import TITLES, worded

# By kind: what was done, what its axis says, and whether that is logarithmic.
_KINDS = {
    "rewind": ("Rewound towards the base", "Share of the update", False),
    "truncate": ("Cut to a lower rank", "Rank that is left", True),
    "intruders": ("Intruders scaled", "Share of them that is left", False),
}
_TARGETS = {"forgetting": "Forgetting, accuracy", "forgetting_nats": "Forgetting, nats per token"}
# What might explain, in words that fit beside a plot; the rest of them is in the definitions.
_PREDICTORS = {
    "rank": "rank", "learning_rate": "learning rate", "update_norm": "size of the update",
    "intruder_dimensions": "intruder dimensions", "rho_16": "in the base's top 16",
    "rho_128": "in the base's top 128", "cka": "geometry kept (CKA)",
    "attention_divergence": "attention moved",
}  # fmt: skip
_FUSED = (
    " A stored matrix that holds several (queries, keys and values in one) is cut as one in an adapter, part by part "
    "in a whole model."
)
_HOWS = ("plain", "at equal size of the update")
_FEW = 10


def derived_figure(derived: pl.DataFrame, style: Style, notes: Mapping[str, Sequence[str]]) -> Figure | None:
    """What gain and forgetting become when a trained update is shrunk, cut or mended, without training again."""
    drawn = _drawn(derived)
    panels = []
    for kind, (title, axis, _) in _KINDS.items():
        for measure, groups in drawn.items():
            mine = (pl.col("kind") == kind) & (pl.col("measure") == measure) & pl.col("group").is_in(groups)
            part = derived.filter(mine)
            if not part.is_empty():
                what, unit = TITLES[measure].split(": ")
                label = f"Line plot: {unit} against {axis.lower()}, one line an arm."
                chart = specification(_curve(part, kind, measure, style))
                better = "higher is better" if what == "Learned" else "lower is better"
                panels.append(Panel(f"{title}: {what.lower()}", label, chart, unit=f"{unit}; {better}"))
    if not panels:
        return None
    return Figure(
        key="derived",
        title="Undoing parts of the update",
        shows="Models made of the trained ones without training: the update shrunk, cut to its first directions, or "
        "its intruder dimensions scaled; each on the same items as the run itself, which stands at 1 or at its own "
        "rank. Bars are intervals over items and each arm's own seeds, so they differ from those of the plots above, "
        "whose seeds are pooled over arms; those that reach beyond the plot are cut off at its edge."
        + (_FUSED if "truncate" in derived["kind"].to_list() else ""),
        reading="Where the plot of what was forgotten falls faster than that of what was learned, it can be had back "
        "for little. If cutting ranks leaves both as they were, the rank was not used.",
        caution="A point that looks better than the run was found on test items. To claim it, score it on others.",
        panels=panels,
        measures=tuple(drawn),
        sources=("runs/*/derive/*/*/record.json", "report/tables/derived.csv"),
        sentences=notes,
    )


def _drawn(derived: pl.DataFrame) -> dict[str, list[str]]:
    """What is drawn of learning and of forgetting, with the groups it is drawn of: accuracy where a group has it."""
    present = {group: set(part["measure"]) for (group,), part in derived.group_by(["group"], maintain_order=True)}
    found: dict[str, list[str]] = {}
    for accuracy, loss in (("gain", "gain_nats"), ("forgetting", "forgetting_nats")):
        for measure in (accuracy, loss):
            groups = [
                group
                for group, measures in present.items()
                if measure in measures and (measure == accuracy or accuracy not in measures)
            ]
            if groups:
                found[measure] = groups
    return found


def explanation_figure(explanations: pl.DataFrame, *, leaves_candidates: bool) -> Figure | None:
    """What goes with forgetting over all runs of a training set, plain and at equal size of the update.

    Args:
        explanations: The correlations.
        leaves_candidates: The study trained arms at rates that it did not score.
    """
    panels, notes = [], _warnings(explanations, leaves_candidates=leaves_candidates)
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
        caution="Arms and rates were chosen, not drawn, and a correlation is no cause: undoing parts of the update "
        "(`derive:`) is nearer to one. With eight measures one of twenty intervals misses by chance.",
        panels=panels,
        measures=tuple(key for key in dict.fromkeys(explanations["predictor"]) if key in MEASURES),
        sources=("runs/*/analyse/*/record.json", "runs/*/evaluate/*/record.json"),
        notes=notes,
    )


def _warnings(explanations: pl.DataFrame, *, leaves_candidates: bool) -> dict[str, list[str]]:
    """By group, that its runs are few, and what would add to them."""
    found: dict[str, list[str]] = {}
    more = "More arms or rates would narrow them."
    if leaves_candidates:
        more = "`search: {evaluate: all}` adds the candidates that were not chosen."
    for (group,), part in explanations.group_by(["group"], maintain_order=True):
        most = int(part["num_candidates"].max())
        if most < _FEW:
            text = f"Only {most} arms at a rate were scored: the intervals are wide, and most hold 0."
            found[str(group)] = [f"{text} {more}"]
    return found


def _curve(part: pl.DataFrame, kind: str, measure: str, style: Style) -> alt.LayerChart:
    drawn = worded(part, measure).with_columns(pl.col("amount").alias("x"))
    rows_shown = drawn.select("group", "arm", "x", "value", "low", "high", "shown", "evidence")
    plot = alt.Chart(data(rows_shown)).transform_filter(GROUP_FILTER)
    _, title, is_log = _KINDS[kind]
    x = log_axis(rows_shown["x"].to_list(), title, base=2) if is_log else alt.X("x:Q", title=title)
    # One wide interval must not flatten all curves.
    low, high = (float(end or 0.0) for end in (rows_shown["value"].min(), rows_shown["value"].max()))
    air = 0.2 * (high - low) or 1.0
    y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=[min(0.0, low) - air, high + air]))
    tint = colour(style)
    return alt.layer(
        horizontal_rule(0, "the base"),
        plot.mark_line(strokeWidth=1.5, aria=False).encode(x=x, y=y, color=tint, opacity=picked(0.06, 0.9)),
        plot.mark_rule(strokeWidth=1, aria=False, clip=True).encode(
            x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked(0.05, 0.5)
        ),
        plot.mark_point(filled=True, size=50).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(),
            tooltip=tooltips(arm="Arm", x=title, shown="Value", evidence="Rests on"),
        ),
    ).properties(width=WIDTH, height=220)  # fmt: skip


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
    fill = either(alt.FillValue, f"datum.how === '{plain}'", INK, PAPER)
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
