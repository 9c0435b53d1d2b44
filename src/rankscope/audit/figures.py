"""The plots of an audit: where the update lies, how it is spread over directions, and how it compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import altair as alt
import numpy as np
import polars as pl

from rankscope.audit.result import Audit, short_name
from rankscope.measures import MEASURES
from rankscope.report.figure import Figure, Panel
from rankscope.report.layer_figures import NEURONS, REPRESENTATIONS, Curve
from rankscope.report.marks import INK, WIDTH, data, specification
from rankscope.report.palette import GAIN_COLOUR

MATRICES, SPECTRA = "tables/matrices.csv", "tables/singular_values.csv"
_MAPS = {
    "update_norm_relative": "How far it moved",
    "rank_utilisation": "How much of the rank is used",
    "stable_rank": "Stable rank",
    "energy_rank_95": "Directions with 95% of the update",
}
_BASE_MAPS = {
    "intruder_dimensions": "Intruder dimensions",
    "subspace_overlap_8": "Overlap of the top 8 directions",
    "rho_16": "Update inside the base's top 16",
}
_AGAINST_MAPS = {"update_cosine": "Cosine of the two updates", "update_norm_ratio": "How far the other moved, relative"}
_ATTENTION_MAPS = {"attention_divergence": "How far it moved", "attention_entropy": "How widely it looks"}
# Scales that mean the same in every audit; the others end at the largest value.
_SCALES = {"update_cosine": 1.0, "subspace_overlap_8": 1.0}
# Curves are drawn at so many points at most.
_POINTS = 64


def make_figures(audit: Audit) -> dict[str, Figure]:
    """All figures that the numbers allow, by key, in the page's order."""
    made = (_where(audit), _spread(audit), _to_base(audit), _attention(audit), *_inside(audit), _against(audit))
    return {figure.key: figure for figure in made if figure is not None}


def _where(audit: Audit) -> Figure | None:
    keys = [key for key in _MAPS if _has(audit.matrices, key)]
    if "rank_utilisation" in keys:
        keys.remove("stable_rank")  # the same map on another scale
    if not keys:
        return None
    return Figure(
        key="map",
        title="Where the update lies",
        shows="Each weight matrix by layer and module; where one place holds several (experts), their mean.",
        reading="The stronger the colour, the larger the number; each map has a scale of its own, which stands "
        "below its title.",
        caution="A large update is not by itself a harmful one, and a low rank not a worse one.",
        panels=[_map_panel(audit.matrices, key, _MAPS[key]) for key in keys],
        measures=keys,
        sources=(MATRICES,),
        columns=3,
    )


def _spread(audit: Audit) -> Figure | None:
    curves = energy_curves(audit)
    if curves.is_empty():
        return None
    panels = []
    for module in curves["module"].unique(maintain_order=True):
        frame = curves.filter(pl.col("module") == module)
        label = f"Line plot: share of the update's energy in its first directions, {module}, median over layers."
        panels.append(Panel(module, label, specification(_curve(frame)), unit="share of the update's energy"))
    return Figure(
        key="energy",
        title="How many directions it needs",
        shows="The share of the update's energy (sum of squared singular values) in its first directions, by module: "
        "the line is the median over its matrices, the band runs from the lowest to the highest.",
        reading="A curve that is at 100% long before its end says that the rest of the rank is not used.",
        caution="Directions with little energy can still matter for what the model says.",
        panels=panels,
        measures=("energy_rank_90", "energy_rank_95", "energy_rank_99", "effective_rank"),
        sources=(SPECTRA,),
        columns=3,
    )


def _to_base(audit: Audit) -> Figure | None:
    keys = [key for key in _BASE_MAPS if _has(audit.matrices, key)]
    if not keys:
        return None
    return Figure(
        key="to_base",
        title="Against the base's own directions",
        shows="How the tuned matrices' singular vectors lie to the base's, by layer and module.",
        reading="An intruder is a large singular vector of the tuned matrix that is like none of the base's. High "
        "overlap: the base's strongest directions are still there.",
        caution="Intruders went with forgetting in one study (arXiv 2410.21228); whether they do here, only scores on "
        "tasks can say.",
        panels=[_map_panel(audit.matrices, key, _BASE_MAPS[key]) for key in keys],
        measures=keys,
        sources=(MATRICES,),
        columns=3,
    )


def _attention(audit: Audit) -> Figure | None:
    if audit.on_texts is None or audit.on_texts.heads.is_empty():
        return None
    heads = audit.on_texts.heads.rename({"head": "module"}).with_columns(
        ("head " + pl.col("module").cast(pl.String).str.zfill(2)).alias("module")
    )
    keys = [key for key in _ATTENTION_MAPS if _has(heads, key)]
    return Figure(
        key="attention",
        title="Where heads look now",
        shows="Attention on the texts given, by layer and head: how far each head moved from the base's, and how "
        "widely the tuned model's heads look.",
        reading="Divergence: 0 the same tokens, 0.693 other tokens altogether. Entropy: 0 one token, 1 all alike.",
        caution="A head that moved is not by itself the reason for a change in what the model says.",
        panels=[_map_panel(heads, key, title) for key, title in _ATTENTION_MAPS.items() if key in keys],
        measures=keys,
        sources=("tables/heads.csv",),
        columns=2,
    )


def _inside(audit: Audit) -> Iterator[Figure | None]:
    if audit.on_texts is None:
        return
    layers = audit.on_texts.layers
    yield _by_layer(
        layers,
        REPRESENTATIONS,
        key="representations",
        title="How far the representations drifted",
        shows="The residual stream after each layer on the texts given, the tuned model's against the base's.",
        reading="First plot: 0 is the base turned, shifted or scaled, which the next layer can undo. In the others 1 "
        "is the same as the base, for CKA also the base turned or scaled. A bend says where the change begins.",
        caution="What was taught moves the stream as well as what was harmed.",
    )
    yield _by_layer(
        layers,
        NEURONS,
        key="neurons",
        title="What became of the neurons",
        shows="The neurons of each layer's MLP on the texts given. One fell silent if it was active at one position in "
        "a hundred or more before and at none after; it woke if the reverse.",
        reading="A high shift: the layer's neurons say more or less than before, in units of how much they vary "
        "anyway. The most changed ones, with the texts that excite them, are in tables/neurons.csv.",
        caution="On other texts a silent neuron may speak.",
    )


def _by_layer(layers: pl.DataFrame, curves: Mapping[str, Curve], **words: str) -> Figure | None:
    # A count that is 0 everywhere says nothing.
    keys = [key for key in curves if _has(layers, key) and (MEASURES[key].unit != "count" or layers[key].sum() > 0)]
    if not keys:
        return None
    panels = []
    for key in keys:
        label = f"Line plot: {MEASURES[key].meaning}, by layer."
        plot = specification(_layer_curve(layers, key, has_zero=curves[key].has_zero))
        panels.append(Panel(curves[key].title, label, plot, unit=curves[key].unit))
    return Figure(panels=panels, measures=keys, sources=("tables/layers.csv",), columns=3, **words)


def _layer_curve(layers: pl.DataFrame, key: str, *, has_zero: bool) -> alt.LayerChart:
    plot = alt.Chart(data(layers.select("layer", pl.col(key).alias("value"))))
    x = alt.X("layer:O", title="Layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=has_zero))
    hints = [alt.Tooltip("layer:O", title="Layer"), alt.Tooltip("value:Q", title=key, format=".3g")]
    return alt.layer(
        plot.mark_line(color=GAIN_COLOUR, strokeWidth=2, aria=False).encode(x=x, y=y),
        plot.mark_point(color=GAIN_COLOUR, filled=True, size=40).encode(x=x, y=y, tooltip=hints),
    ).properties(width=WIDTH, height=150)


def _against(audit: Audit) -> Figure | None:
    if audit.against is None:
        return None
    keys = [key for key in _AGAINST_MAPS if _has(audit.against.matrices, key)]
    if not keys:
        return None
    return Figure(
        key="against",
        title=f"Against {short_name(audit.against.tuned)}",
        shows="The two updates of each matrix, set against each other.",
        reading="A cosine of 1: the same update but for its size. 0: nothing in common. For the ratio, 1: both moved "
        "as far.",
        caution="Two models can move differently and behave alike.",
        panels=[_map_panel(audit.against.matrices, key, _AGAINST_MAPS[key]) for key in keys],
        measures=keys,
        sources=("tables/against.csv",),
        columns=2,
    )


def energy_curves(audit: Audit) -> pl.DataFrame:
    """By module and number of directions, the median, lowest and highest share of energy over its matrices."""
    rows: list[dict[str, object]] = []
    modules = audit.matrices.filter(pl.col("update_norm") > 0.0).select("name", "module", "update_norm").sort("module")
    for (module,), table in modules.group_by("module", maintain_order=True):
        shares = [
            np.cumsum((np.asarray(audit.singular_values[name]) / norm) ** 2)
            for name, norm in table.select("name", "update_norm").iter_rows()
            if name in audit.singular_values
        ]
        if not shares:
            continue
        length = max(len(curve) for curve in shares)
        for k in _points(length):
            values = [float(curve[min(k, len(curve)) - 1]) for curve in shares]
            rows.append({"module": module, "k": k, "share": float(np.median(values)), "lowest": min(values),
                         "highest": max(values), "num_matrices": len(values)})  # fmt: skip
    return pl.DataFrame(rows)


def _points(length: int) -> list[int]:
    if length <= _POINTS:
        return list(range(1, length + 1))
    return sorted({round(value) for value in np.geomspace(1, length, _POINTS)})


def _has(table: pl.DataFrame, key: str) -> bool:
    return key in table.columns and table[key].null_count() < table.height


def _map_panel(table: pl.DataFrame, key: str, title: str) -> Panel:
    outside = table.filter(pl.col("layer").is_null()).height
    frame = (
        table.filter(pl.col("layer").is_not_null() & pl.col(key).is_not_null())
        .group_by("layer", "module", maintain_order=True)
        .agg(pl.col(key).mean().alias("value"), pl.len().alias("num_matrices"))
    )
    highest = _SCALES.get(key, float(frame["value"].abs().max() or 0.0))
    label = f"Heat map: {MEASURES[key].meaning}, by layer and module."
    note = f"; {outside} outside the layers left out" if outside else ""
    unit = f"from 0, no colour, to {_short(key, highest)}{note}"
    return Panel(title, label, specification(_map(frame, key, highest or 1.0)), unit=unit)


def _short(key: str, value: float) -> str:
    return f"{100 * value:.3g}%" if MEASURES[key].unit == "fraction" else f"{value:.3g}"


def _map(frame: pl.DataFrame, key: str, highest: float) -> alt.Chart:
    order = sorted(set(frame["module"]))
    signed = "value" if float(frame["value"].min() or 0.0) >= 0.0 else "magnitude"
    shown = frame.with_columns(pl.col("value").abs().alias("magnitude"))
    opacity = alt.FillOpacity(f"{signed}:Q", scale=alt.Scale(domain=[0, highest], range=[0.02, 1]), legend=None)
    bare = {"domain": False, "ticks": False}
    hints = [
        alt.Tooltip("module:N", title="Module"),
        alt.Tooltip("layer:O", title="Layer"),
        alt.Tooltip("value:Q", title=key, format=".3g"),
        alt.Tooltip("num_matrices:Q", title="Matrices"),
    ]
    return (
        alt.Chart(data(shown.select("layer", "module", "value", "magnitude", "num_matrices")))
        .mark_rect(cornerRadius=2, fill=GAIN_COLOUR)
        .encode(
            x=alt.X("layer:O", title="Layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy", **bare)),
            y=alt.Y("module:N", sort=order, title=None, axis=alt.Axis(labelLimit=110, **bare)),
            fillOpacity=opacity,
            tooltip=hints,
        )
        .properties(width=WIDTH, height=20 * len(order))
    )


def _curve(frame: pl.DataFrame) -> alt.LayerChart:
    plot = alt.Chart(data(frame))
    x = alt.X("k:Q", title="Directions", scale=alt.Scale(domain=[0, int(frame["k"].max())], nice=False))
    y_axis = alt.Axis(format="%", tickCount=4)
    y = alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=y_axis)
    hints = [
        alt.Tooltip("k:Q", title="Directions"),
        alt.Tooltip("share:Q", title="Median share", format=".1%"),
        alt.Tooltip("lowest:Q", title="Lowest", format=".1%"),
        alt.Tooltip("highest:Q", title="Highest", format=".1%"),
        alt.Tooltip("num_matrices:Q", title="Matrices"),
    ]
    goal = alt.Chart(alt.Data(values=[{"share": 0.95}])).mark_rule(strokeDash=[4, 4], color=INK, opacity=0.5)
    return alt.layer(
        plot.mark_area(opacity=0.2, color=GAIN_COLOUR).encode(x=x, y=alt.Y("lowest:Q", title=None), y2="highest:Q"),
        goal.encode(y="share:Q"),
        plot.mark_line(color=GAIN_COLOUR, strokeWidth=2).encode(x=x, y=y),
        plot.mark_point(filled=True, size=60, opacity=0, color=GAIN_COLOUR).encode(x=x, y=y, tooltip=hints),
    ).properties(width=WIDTH, height=150)
