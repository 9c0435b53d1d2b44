"""Figures by layer: what fine-tuning did to attention, to the residual stream, and to the neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import altair as alt
import polars as pl

from rankscope.measures import MEASURES
from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import GROUP_FILTER, WIDTH, Style, colour, data, picked, shape, specification
from rankscope.report.wording import is_fraction


@dataclass(frozen=True)
class Curve:
    """A panel's title, what its upright axis says, and whether that starts at zero."""

    title: str
    unit: str
    has_zero: bool = True


_ATTENTION = {
    "attention_divergence": Curve("How far attention moved", "Jensen-Shannon divergence from the base, nats"),
    "attention_entropy": Curve("How widely heads look", "entropy, 0 one token to 1 all tokens alike", False),
}
REPRESENTATIONS = {
    "procrustes_residual": Curve("How far the stream moved", "share that no turn, shift or scale explains, 0 to 1"),
    "residual_cosine": Curve("How like the base's direction", "cosine with the base, 1 is the same", False),
    "cka": Curve("How alike the geometry stayed", "CKA with the base, 1 is the same", False),
}
NEURONS = {
    "neuron_shift": Curve("How far neurons moved", "mean size of the shift, the base's standard deviations"),
    "neurons_newly_dead": Curve("Neurons that fell silent", "number in the layer"),
    "neurons_newly_active": Curve("Neurons that woke", "number in the layer"),
}
_COUNTS = {"num_heads": "Heads", "num_tasks": "Tasks", "num_positions": "Positions", "num_neurons": "Neurons"}


def attention_figure(layers: pl.DataFrame, style: Style) -> Figure | None:
    """What fine-tuning did to attention, layer by layer."""
    panels = _panels(layers, _ATTENTION, style)
    if not panels:
        return None
    return Figure(
        key="attention",
        title="What happened to attention",
        shows="Attention on the same probe texts before and after, mean over heads and seeds, by layer. The grey line "
        "is the base.",
        reading="High divergence: the heads of that layer look elsewhere than the base's. High entropy: they look at "
        "many tokens at once; low: at few.",
        caution="Heads may move and cancel out in the mean; the table of all heads lies in the study directory.",
        panels=list(panels.values()),
        measures=list(panels),
        sources=("runs/*/analyse/attention/heads.parquet", "base/*/analyse/attention/heads.parquet"),
    )


def representation_figure(layers: pl.DataFrame, style: Style) -> Figure | None:
    """How far the residual stream drifted from the base's, layer by layer."""
    panels = _panels(layers, REPRESENTATIONS, style)
    if not panels:
        return None
    return Figure(
        key="representations",
        title="How far the representations drifted",
        shows="The residual stream after each layer on the same tokens before and after, mean over tasks, then over "
        "seeds; the bars are the range over seeds. The last layer is what the output is made of.",
        reading="First plot: 0 is the base turned, shifted or scaled, which the next layer can undo; higher is a "
        "change in what lies near what. In the other two 1 is the same as the base, for CKA also the base turned or "
        "scaled. A curve that bends at one layer says where the change begins.",
        caution="What fine-tuning taught moves the stream as well as what it harmed; drift alone is no loss. Whether "
        "it goes with forgetting takes several runs to ask.",
        panels=list(panels.values()),
        measures=list(panels),
        sources=("runs/*/analyse/representations/representations.parquet",),
        columns=3,
    )


def neuron_figure(layers: pl.DataFrame, style: Style) -> Figure | None:
    """What became of the neurons of each layer."""
    panels = _panels(layers, NEURONS, style)
    if not panels:
        return None
    return Figure(
        key="neurons",
        title="What became of the neurons",
        shows="The neurons of each MLP on the probe texts before and after, mean over seeds; the bars are the range "
        "over seeds. A neuron fell silent if it spoke at one position in a hundred or more before and at none after; "
        "it woke if the reverse.",
        reading="A high shift: on average the neurons of that layer say more or less than before, in units of how "
        "much they vary anyway. Many silent neurons: what they stood for is not said on these texts any more.",
        caution="The probe texts are few, so a silent neuron may speak on others; and a layer can change its work "
        "without moving the means of its neurons.",
        panels=list(panels.values()),
        measures=list(panels),
        sources=("runs/*/analyse/neurons/changes.parquet",),
        columns=3,
    )


def _panels(layers: pl.DataFrame, curves: Mapping[str, Curve], style: Style) -> dict[str, Panel]:
    """By measure, its panel; a count that is 0 everywhere says nothing and is left out."""
    frame = layers.with_columns(pl.col("arm").fill_null("base"))
    panels = {}
    for measure, curve in curves.items():
        part = frame.filter(pl.col("measure") == measure)
        tuned = part.filter(pl.col("arm") != "base")
        is_idle = MEASURES[measure].unit == "count" and not (tuned["value"] > 0).any()
        if tuned.is_empty() or (is_idle and len(panels) > 0):
            continue
        label = f"Line plot: {MEASURES[measure].meaning}, by layer, one line an arm."
        panels[measure] = Panel(curve.title, label, specification(_chart(part, measure, curve, style)), unit=curve.unit)
    return panels


def _chart(frame: pl.DataFrame, measure: str, curve: Curve, style: Style) -> alt.LayerChart:
    counts = [name for name in _COUNTS if name in frame.columns]
    ends = [name for name in ("lowest", "highest") if name in frame.columns]
    shown = frame.select("group", "arm", "layer", "value", *ends, "num_seeds", *counts, "source")
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    x = alt.X("layer:O", title="Layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=curve.has_zero))
    tint = colour(style, with_base=True)
    hints = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("layer:O", title="Layer"),
        alt.Tooltip("value:Q", title=measure, format=".1%" if is_fraction(measure) else ".3g"),
        *(alt.Tooltip(f"{name}:Q", title=_COUNTS[name], format=",") for name in counts),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
        alt.Tooltip("source:N", title="From"),
    ]
    layers = [
        plot.mark_line(strokeWidth=2, aria=False).encode(x=x, y=y, color=tint, opacity=picked(0.08, 0.9)),
        plot.mark_point(filled=True, size=40).encode(
            x=x, y=y, color=tint, shape=shape(style, with_base=True), opacity=picked(), tooltip=hints
        ),
    ]
    if ends:
        bars = plot.mark_rule(strokeWidth=1.5, aria=False)
        layers.insert(1, bars.encode(x=x, y=alt.Y("lowest:Q", title=None), y2="highest:Q", color=tint,
                                     opacity=picked(0.05, 0.5)))  # fmt: skip
    return alt.layer(*layers).properties(width=WIDTH, height=220)
