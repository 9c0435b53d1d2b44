"""Figures of the weights: where in the network the update lies, and over how many directions it spreads."""

from __future__ import annotations

from collections.abc import Mapping

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
from rankscope.report.palette import GAIN_COLOUR, family

# By measure: the title, and what the upright axis says.
_SPECTRA = {
    "update_norm_relative": ("Size of the update", "norm of the update over the norm of the base's matrix"),
    "stable_rank": ("Stable rank", "energy over that of the strongest direction"),
    "effective_rank": ("Effective rank", "directions, as evenly used ones would count"),
    "energy_rank_90": ("Directions with 90% of the energy", "number of directions"),
}
_SUBSPACES = {
    "intruder_dimensions": ("Intruder dimensions", "of the ten largest of each matrix, summed over matrices"),
    "singular_vector_best_cosine": ("Likeness to the base's directions", "best cosine, 1 is the same"),
    "subspace_overlap_32": ("What is left of the base's top 32", "share of the subspace, 1 is all of it"),
    "rho_16": ("Update inside the base's top 16", "share of the update's energy"),
}


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
        panels.append(Panel(arm, label, specification(chart), arm=arm))
    return Figure(
        key="module_map",
        title="Where the update lies",
        shows="How far each weight matrix moved, as the size of its update over its own, by layer and module, mean "
        "over seeds. All arms share one colour scale.",
        reading="The stronger the colour, the farther from the base. Maps can be compared with one another.",
        caution="A large update is not by itself a harmful one, nor the reason for a gain.",
        panels=panels,
        measures=(measure,),
        sources=("runs/*/analyse/spectra/matrices.parquet",),
        columns=3,
        ramp=("0", f"{100 * highest:.3g}%" if measure.endswith("relative") else f"{highest:.3g}"),
    )


def spectra_figure(spectra: pl.DataFrame, style: Style) -> Figure | None:
    """How large the update of each rank is, and over how many directions it spreads."""
    panels, measures = _rank_panels(spectra, _SPECTRA, style)
    if not panels:
        return None
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


def subspace_figure(spectra: pl.DataFrame, style: Style) -> Figure | None:
    """What each rank left of the base's singular directions, and how many new ones stand among the largest."""
    panels, measures = _rank_panels(spectra, _SUBSPACES, style)
    if not panels:
        return None
    return Figure(
        key="subspaces",
        title="What is left of the base's directions",
        shows="The tuned matrices' largest singular directions (left vectors) against the base's. Intruders, large "
        "directions that are like none of the base's, are summed over the adapted matrices, all else is their mean; "
        "the bar is the range over seeds, the horizontal line full fine-tuning.",
        reading="Many intruders, or a low likeness or overlap, say that training put new directions among the largest "
        "instead of turning those that were there. A high share inside the base's top says that the update writes "
        "where the base does most.",
        caution="Intruders have been found to go with forgetting in some studies and not in others. Whether they do "
        "here takes several runs to ask, or derived models whose intruders were scaled (`derive: {intruders: ...}`).",
        panels=panels,
        measures=measures,
        sources=("runs/*/analyse/subspaces/subspaces.parquet",),
    )


def _rank_panels(
    spectra: pl.DataFrame, titles: Mapping[str, tuple[str, str]], style: Style
) -> tuple[list[Panel], list[str]]:
    """A plot against the rank of each measure that some rank has, and these measures."""
    present = set(spectra.filter(pl.col("rank").is_not_null())["measure"])
    measures = [key for key in titles if key in present]
    panels = []
    for measure in measures:
        chart = _spectra_curve(spectra.filter(pl.col("measure") == measure), measure, style)
        over = "sum" if measure.startswith("intruder") else "mean"
        label = f"Line plot: {MEASURES[measure].meaning}, {over} over matrices, against LoRA rank."
        title, unit = titles[measure]
        panels.append(Panel(title, label, specification(chart), unit=unit))
    return panels, measures


def _module_map(frame: pl.DataFrame, measure: str, highest: float) -> alt.Chart:
    order = list(dict.fromkeys(frame["module"]))
    bare = {"domain": False, "ticks": False}
    opacity = alt.FillOpacity("value:Q", scale=alt.Scale(domain=[0, highest], range=[0.02, 1]), legend=None)
    hints = [
        *tooltips(arm="Arm", module="Module"),
        alt.Tooltip("layer:O", title="Layer"),
        alt.Tooltip("value:Q", title=measure, format=".3g"),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
        alt.Tooltip("source:N", title="From"),
    ]
    kept = frame.select("group", "arm", "layer", "module", "value", "num_seeds", "source")
    return (
        alt.Chart(data(kept))
        .transform_filter(GROUP_FILTER)
        .mark_rect(cornerRadius=2, fill=GAIN_COLOUR)
        .encode(
            x=alt.X("layer:O", title="Layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy", **bare)),
            y=alt.Y("module:N", sort=order, title=None, axis=alt.Axis(labelLimit=110, **bare)),
            fillOpacity=opacity,
            opacity=picked(0.15),
            tooltip=hints,
        )
        .properties(width=WIDTH, height=20 * len(order))
    )


def _spectra_curve(frame: pl.DataFrame, measure: str, style: Style) -> alt.LayerChart:
    shown = frame.with_columns(
        pl.col("rank").alias("x"), pl.col("arm").map_elements(family, pl.String).alias("family")
    ).select("group", "arm", "x", "family", "value", "lowest", "highest", "num_seeds", "num_matrices", "source")
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    ranked, unranked = plot.transform_filter("datum.x !== null"), plot.transform_filter("datum.x === null")
    x = log_axis([rank for rank in shown["x"] if rank is not None], "Rank", base=2)
    # What is 1 for the base lies near 1, where the arms differ.
    near_one = measure.startswith(("singular_vector", "subspace_overlap"))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=not near_one))
    tint = colour(style)
    hints = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("value:Q", title=measure, format=".3g"),
        alt.Tooltip("num_matrices:Q", title="Matrices"),
        alt.Tooltip("num_seeds:Q", title="Seeds"),
        alt.Tooltip("source:N", title="From"),
    ]
    return alt.layer(
        unranked.mark_rule(strokeWidth=2).encode(y=y, color=tint, opacity=picked(), tooltip=hints),
        ranked.mark_line(color=INK, strokeWidth=1.5, opacity=0.4).encode(x=x, y=y, detail="family:N"),
        ranked.mark_rule(strokeWidth=2).encode(
            x=x, y=alt.Y("lowest:Q", title=None), y2="highest:Q", color=tint, opacity=picked()
        ),
        ranked.mark_point(filled=True, size=70).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ).properties(width=WIDTH, height=220)
