"""Figures of what changed inside the models: where the update lies, how it is spread, what attention did."""

from __future__ import annotations

import altair as alt
import polars as pl

from rankscope.measures import MEASURES
from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import (
    GROUP_FILTER,
    INK,
    WIDTH,
    Style,
    colour,
    data,
    log_axis,
    picked,
    shape,
    specification,
    tooltips,
)
from rankscope.report.palette import GAIN_COLOUR

_SPECTRA = {
    "update_norm_relative": "Size of the update",
    "stable_rank": "Stable rank",
    "effective_rank": "Effective rank",
    "energy_rank_90": "Directions with 90% of the energy",
}
_ATTENTION = {"attention_divergence": "How far attention moved", "attention_entropy": "How widely heads look"}


def module_figure(modules: pl.DataFrame, style: Style) -> Figure | None:
    """Where in the network each arm's update lies: layers across, modules down, one scale for all arms."""
    measure = next((key for key in ("update_norm_relative", "update_norm") if key in set(modules["measure"])), None)
    if measure is None:
        return None
    frame = modules.filter(pl.col("measure") == measure)
    highest = float(frame["value"].max() or 1.0)
    panels = []
    for arm in (name for name in style.looks if name in set(frame["arm"])):
        chart = _module_map(frame.filter(pl.col("arm") == arm), measure, highest)
        label = f"Heat map: {MEASURES[measure].meaning} for {arm}, by layer and module."
        panels.append(Panel(arm, label, specification(chart)))
    return Figure(
        key="module_map",
        title="Where the update lies",
        shows=f"How far each weight matrix moved ({MEASURES[measure].formula}), by layer and module, mean over seeds. "
        f"All arms share one colour scale, from nothing at 0 to full colour at {highest:.3g}.",
        reading="The stronger the colour, the farther from the base. Maps can be compared with one another.",
        caution="A large update is not by itself a harmful one, nor the reason for a gain.",
        panels=panels,
        measures=(measure,),
        sources=("runs/*/analyse/spectra/matrices.parquet",),
        columns=3,
    )


def spectra_figure(spectra: pl.DataFrame, style: Style) -> Figure | None:
    """How large the update of each rank is, and over how many directions it spreads."""
    ranked = spectra.filter(pl.col("rank").is_not_null())
    measures = [key for key in _SPECTRA if key in set(ranked["measure"])]
    if not measures:
        return None
    panels = []
    for measure in measures:
        chart = _spectra_curve(spectra.filter(pl.col("measure") == measure), measure, style)
        label = f"Line plot: {MEASURES[measure].meaning}, mean over matrices, against LoRA rank."
        panels.append(Panel(_SPECTRA[measure], label, specification(chart)))
    return Figure(
        key="spectra",
        title="What the update is made of",
        shows="The size of the update and the number of directions that carry it, mean over the adapted matrices; the "
        "bar is the range over seeds, the horizontal line full fine-tuning.",
        reading="A stable or effective rank that stops growing while the granted rank goes on says that the rest of "
        "the rank is not used.",
        caution="These are means over matrices and describe, they do not explain: whether the size of an update or "
        "its rank goes with forgetting is to be judged over many runs.",
        panels=panels,
        measures=measures,
        sources=("runs/*/analyse/spectra/matrices.parquet",),
    )


def attention_figure(layers: pl.DataFrame, style: Style) -> Figure | None:
    """What fine-tuning did to attention, layer by layer."""
    tuned = layers.filter(pl.col("arm").is_not_null())
    measures = [key for key in _ATTENTION if key in set(tuned["measure"])]
    if not measures:
        return None
    frame = layers.with_columns(pl.col("arm").fill_null("base"))
    panels = []
    for measure in measures:
        chart = _layer_curve(frame.filter(pl.col("measure") == measure), measure, style)
        label = f"Line plot: {MEASURES[measure].meaning}, by layer, one line an arm."
        panels.append(Panel(_ATTENTION[measure], label, specification(chart)))
    return Figure(
        key="attention",
        title="What happened to attention",
        shows="Attention on the same probe texts before and after, mean over heads and seeds, by layer. The grey line "
        "is the base.",
        reading="High divergence: the heads of that layer look elsewhere than the base's. High entropy: they look at "
        "many tokens at once; low: at few.",
        caution="Heads may move and cancel out in the mean; the table of all heads lies in the study directory.",
        panels=panels,
        measures=measures,
        sources=("runs/*/analyse/attention/heads.parquet", "base/*/analyse/attention/heads.parquet"),
    )


def _module_map(frame: pl.DataFrame, measure: str, highest: float) -> alt.Chart:
    order = list(dict.fromkeys(frame["module"]))
    opacity = alt.FillOpacity("value:Q", scale=alt.Scale(domain=[0, highest], range=[0.02, 1]), legend=None)
    hints = [
        *tooltips(arm="Arm", module="Module"),
        alt.Tooltip("layer:O", title="Layer"),
        alt.Tooltip("value:Q", title=measure, format=".3g"),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
    ]
    kept = frame.select("group", "arm", "layer", "module", "value", "num_seeds")
    return (
        alt.Chart(data(kept))
        .transform_filter(GROUP_FILTER)
        .mark_rect(cornerRadius=2, fill=GAIN_COLOUR)
        .encode(
            x=alt.X("layer:O", title="Layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy")),
            y=alt.Y("module:N", sort=order, title=None, axis=alt.Axis(labelLimit=110)),
            fillOpacity=opacity,
            opacity=picked(0.15),
            tooltip=hints,
        )
        .properties(width=WIDTH, height=20 * len(order))
    )


def _spectra_curve(frame: pl.DataFrame, measure: str, style: Style) -> alt.LayerChart:
    shown = frame.with_columns(
        pl.col("rank").alias("x"), pl.col("arm").str.replace(r"-r\d+", "").alias("family")
    ).select("group", "arm", "x", "family", "value", "lowest", "highest", "num_seeds", "num_matrices")
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    ranked, unranked = plot.transform_filter("datum.x !== null"), plot.transform_filter("datum.x === null")
    x = log_axis([rank for rank in shown["x"] if rank is not None], "LoRA rank", base=2)
    y = alt.Y("value:Q", title=MEASURES[measure].formula if measure.startswith("update") else measure.replace("_", " "))
    tint = colour(style)
    hints = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("value:Q", title=measure, format=".3g"),
        alt.Tooltip("num_matrices:Q", title="Matrices"),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
    ]
    return alt.layer(
        unranked.mark_rule(strokeWidth=2).encode(y=y, color=tint, opacity=picked(), tooltip=hints),
        ranked.mark_line(color=INK, strokeWidth=1.5, opacity=0.4).encode(x=x, y=y, detail="family:N"),
        ranked.mark_rule(strokeWidth=2).encode(
            x=x, y=alt.Y("lowest:Q"), y2="highest:Q", color=tint, opacity=picked()
        ),
        ranked.mark_point(filled=True, size=70).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ).properties(width=WIDTH, height=220)


def _layer_curve(frame: pl.DataFrame, measure: str, style: Style) -> alt.LayerChart:
    shown = frame.select("group", "arm", "layer", "value", "num_seeds", "num_heads")
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    x = alt.X("layer:O", title="Layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
    unit = MEASURES[measure].unit
    title = measure.replace("_", " ").capitalize() + (f", {unit}" if unit == "nats" else " (0 to 1)")
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=measure == "attention_divergence"))
    tint = colour(style, with_base=True)
    hints = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("layer:O", title="Layer"),
        alt.Tooltip("value:Q", title=measure, format=".3g"),
        alt.Tooltip("num_heads:Q", title="Heads"),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
    ]
    return alt.layer(
        plot.mark_line(strokeWidth=2).encode(x=x, y=y, color=tint, opacity=picked(0.08, 0.9)),
        plot.mark_point(filled=True, size=40).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ).properties(width=WIDTH, height=240)
