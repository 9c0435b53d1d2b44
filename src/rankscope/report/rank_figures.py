"""Figures of the two choices inside an arm: what the rank does, and how each learning rate did."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import (
    GROUP_FILTER,
    INK,
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
from rankscope.report.palette import family
from rankscope.report.standings import SHORT, TITLES, budget_of, present, shown
from rankscope.report.wording import amount_of, evidence, is_fraction, rate, scaled, unit_of
from rankscope.spec import Decide

_MOST_SPAN = 5.0  # of losses on a plain axis, highest to lowest
_HINTS = {"arm": "Arm", "rate": "Rate", "shown": "Value", "evidence": "Rests on"}


def rank_figure(arms: pl.DataFrame, derived: pl.DataFrame, settings: Decide | None, style: Style) -> Figure | None:
    """What each rank learned and forgot at its own best learning rate, with full fine-tuning as a line."""
    ranked = arms.filter(pl.col("rank").is_not_null())
    if ranked.is_empty():
        return None
    measures = [name for name in TITLES if name in present(ranked)]
    cuts = _cuts(derived, ranked)
    ticks = sorted({*ranked["rank"].to_list(), *cuts["amount"].to_list()})
    panels = []
    for measure in measures:
        layers = [
            *_budget_rule(budget_of(settings, measure), measure),
            *_rank_curve(arms.filter(pl.col("measure") == measure), measure, ticks, style),
            *_cut_curve(cuts.filter(pl.col("measure") == measure), measure, style),
        ]
        label = f"Line plot: {TITLES[measure]}, against LoRA rank; full fine-tuning is a horizontal line."
        chart = alt.layer(*layers).properties(width=WIDTH, height=240)
        unit = f"{TITLES[measure].split(': ')[1]}; {'lower' if measure.startswith('forg') else 'higher'} is better"
        panels.append(Panel(SHORT[measure], label, specification(chart), unit=unit))
    return Figure(
        key="rank_curves",
        title="What the rank does",
        shows="Every rank at the learning rate that suited it best, with its interval. Horizontal lines with bands are "
        "arms without a rank, full fine-tuning among them; the dashed line is the accepted forgetting."
        + (" Hollow marks are the highest rank that was cut, at lower ones without training." if cuts.height else ""),
        reading="A curve that is flat within its bars says that the rank hardly matters here."
        + (
            " Where the hollow marks keep up with the filled ones, a high rank can be trained and cut afterwards."
            if cuts.height
            else ""
        ),
        caution="A bend that is smaller than the bars is not a best rank. Other data or another base may bend "
        "elsewhere.",
        panels=panels,
        measures=measures,
        sources=("decide/record.json", *(("runs/*/derive/*/record.json",) if cuts.height else ())),
        columns=3,
    )


def rate_figure(rates: pl.DataFrame, style: Style) -> Figure | None:
    """The validation score of every candidate; the rate chosen for each arm is ringed."""
    measured = rates.filter(pl.col("value").is_not_null())
    if measured.is_empty():
        return None
    is_halved = measured["after_step"].is_not_null().any()
    measures = [name for name in dict.fromkeys(measured["measure"]) if _compares(measured, name)]
    panels = []
    for measure in measures:
        chart = _rate_curve(measured.filter(pl.col("measure") == measure), measure, style)
        title = "Validation accuracy" if is_fraction(measure) else "Validation loss"
        label = f"Line plot: {title.lower()} of every arm against its learning rate; the chosen rates are ringed."
        unit = "% right, higher is better" if is_fraction(measure) else "nats per token, lower is better"
        panels.append(Panel(title, label, specification(chart), unit=unit))
    return Figure(
        key="learning_rates",
        title="The learning rate of each arm",
        shows="How each arm did on validation items at every rate that was tried. The ringed rate was chosen: the "
        "best score, and among scores within a standard error of it the lower loss. No test item had been seen. The "
        "loss is what training watches, of answers with the token that ends them; a score that is a loss leaves that "
        "token out, and stands in decide/rates.json."
        + (
            " Rates that halving left behind are shown by their loss when they stopped; nothing was scored of them."
            if is_halved
            else ""
        ),
        reading="A best rate inside the range is a fair choice. One at the end of the range means that the arm may do "
        "better than this study shows.",
        caution="What was forgotten had no say in the choice: a lower rate may learn nearly as much and forget less. "
        "Validation scores chose the rates, so they flatter them a little; the plots above use other items.",
        panels=panels,
        measures=measures,
        sources=("decide/rates.json",),
        notes=_rate_notes(rates),
    )


def _budget_rule(budget: float | None, measure: str) -> list[alt.Chart]:
    if budget is None:
        return []
    return [horizontal_rule(budget, f"accepted forgetting: {budget:g} {unit_of(measure)}")]


def _rank_curve(frame: pl.DataFrame, measure: str, ticks: Sequence[float], style: Style) -> list[alt.Chart]:
    rows = shown(frame.filter(pl.col("arm") != "base"), measure).with_columns(
        pl.col("rank").alias("x"), pl.col("arm").map_elements(family, pl.String).alias("family")
    )
    plot = alt.Chart(data(rows)).transform_filter(GROUP_FILTER)
    ranked, unranked = plot.transform_filter("datum.x !== null"), plot.transform_filter("datum.x === null")
    x, y = log_axis(ticks, "Rank", base=2), alt.Y("value:Q", title=None)
    tint, hints = colour(style), tooltips(**_HINTS)
    # Where many arms have no rank their bands would only hide each other.
    band = 0.14 if rows.filter(pl.col("rank").is_null())["arm"].n_unique() <= 2 else 0.0
    return [
        unranked.mark_rect(aria=False).encode(
            y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked(0.0, band)
        ),
        unranked.mark_rule(strokeWidth=2).encode(y=y, color=tint, opacity=picked(), tooltip=hints),
        ranked.mark_line(color=INK, strokeWidth=1.5, aria=False).encode(
            x=x, y=y, detail="family:N", opacity=either(alt.OpacityValue, "length(arms) === 0", 0.45, 0.15)
        ),
        ranked.mark_rule(strokeWidth=2, aria=False).encode(
            x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked()
        ),
        ranked.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ]


def _cuts(derived: pl.DataFrame, ranked: pl.DataFrame) -> pl.DataFrame:
    """By group, the largest rank that was cut to lower ones, with what it was before the cut."""
    ranks = ranked.select("group", "arm", "rank").unique()
    cut = derived.filter(pl.col("kind") == "truncate").join(ranks, on=["group", "arm"], how="inner")
    return cut.filter(pl.col("rank") == pl.col("rank").max().over("group"))


def _cut_curve(cuts: pl.DataFrame, measure: str, style: Style) -> list[alt.Chart]:
    if cuts.is_empty():
        return []
    rows = shown(cuts.with_columns(pl.lit(None, dtype=pl.Float64).alias("learning_rate")), measure).with_columns(
        cuts["amount"].alias("x"), ("cut to rank " + cuts["amount"].cast(pl.Int64).cast(pl.String)).alias("what")
    )
    plot = alt.Chart(data(rows)).transform_filter(GROUP_FILTER)
    tint, hints = colour(style), tooltips(arm="Made of", what="It", shown="Value", evidence="Rests on")
    x, y = alt.X("x:Q"), alt.Y("value:Q", title=None)
    return [
        plot.mark_line(strokeWidth=1.5, strokeDash=[2, 3], aria=False).encode(
            x=x, y=y, detail="arm:N", color=tint, opacity=picked(0.05, 0.8)
        ),
        plot.mark_point(filled=False, size=60, strokeWidth=1.5).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(0.05, 1.0), tooltip=hints
        ),
    ]


def _compares(rates: pl.DataFrame, measure: str) -> bool:
    """Whether a measure tells rates apart: with halving only the last of an arm's rates is scored."""
    return measure == "loss_nats_per_token" or not rates.filter(pl.col("measure") == measure)["is_chosen"].all()


def _rate_curve(frame: pl.DataFrame, measure: str, style: Style) -> alt.LayerChart:
    rows = frame.rows(named=True)
    shown = frame.with_columns(
        pl.col("value").map_elements(lambda x: scaled(x, measure), pl.Float64),
        pl.col("learning_rate").alias("x"),
        pl.Series("shown", [amount_of(row["value"], None, None, measure, signs=False) for row in rows]),
        pl.Series("rate", [rate(row["learning_rate"]) for row in rows]),
        pl.Series("evidence", [evidence(None, row["num_items"], row["num_seeds"], row["source"]) for row in rows]),
    ).select("group", "arm", "x", "value", "is_chosen", "shown", "rate", "evidence")
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    x = log_axis(shown["x"].to_list(), "Learning rate", base=10)
    # One rate that is far too high would press all others to the floor.
    # Of one training set at a time, or the losses of one would press those of another together.
    spans = shown.group_by("group").agg((pl.col("value").max() / pl.col("value").min()).alias("span"))["span"]
    is_log = measure == "loss_nats_per_token" and shown["value"].min() > 0.0 and spans.max() > _MOST_SPAN
    scale = alt.Scale(type="log", nice=False, padding=10) if is_log else alt.Scale(zero=False, padding=10)
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, format="~g"))
    tint, hints = colour(style), tooltips(**_HINTS)
    ring = plot.transform_filter("datum.is_chosen").mark_point(size=260, strokeWidth=2, filled=False)
    return alt.layer(
        plot.mark_line(strokeWidth=2).encode(x=x, y=y, color=tint, opacity=picked(0.1, 0.8)),
        plot.mark_point(filled=True, size=60).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
        ring.encode(x=x, y=y, color=tint, opacity=picked()),
    ).properties(width=WIDTH, height=240)


def _rate_notes(rates: pl.DataFrame) -> dict[str, list[str]]:
    """By group, which arms' best rate is at the end of the range, and which rates gave no score."""
    notes: dict[str, list[str]] = {}
    edges = rates.filter(pl.col("is_chosen") & pl.col("at_edge").is_not_null()).unique(
        ["group", "arm"], maintain_order=True
    )
    for (group, edge), part in edges.group_by(["group", "at_edge"], maintain_order=True):
        beyond = "higher" if edge == "highest" else "lower"
        arms = ", ".join(f"{row['arm']} ({rate(row['learning_rate'])})" for row in part.iter_rows(named=True))
        notes.setdefault(group, []).append(f"The best rate is the {edge} that was tried, so a {beyond} one may be "
                                           f"better: {arms}.")  # fmt: skip
    lost = rates.filter(pl.col("value").is_null()).unique(["group", "arm", "learning_rate"], maintain_order=True)
    for row in lost.iter_rows(named=True):
        text = f"{row['arm']}: rate {rate(row['learning_rate'])} gave no score; see what went wrong, below."
        notes.setdefault(row["group"], []).append(text)
    return notes
