"""Figures of what was learned against what was forgotten: the scatter, the rank curves, the learning rates."""

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
    horizontal_rule,
    log_axis,
    picked,
    shape,
    specification,
    tooltips,
)
from rankscope.report.wording import amount_of, evidence, is_fraction, rate, scaled, unit_of
from rankscope.spec import Decide

_TITLES = {
    "gain": "Learned: in-domain accuracy gained, points",
    "gain_nats": "Learned: in-domain loss removed, nats per token",
    "forgetting": "Forgotten: retention accuracy lost, points",
    "forgetting_nats": "Forgotten: retention loss added, nats per token",
}
_SHORT = {
    "gain": "Learned (accuracy)",
    "gain_nats": "Learned (loss)",
    "forgetting": "Forgotten (accuracy)",
    "forgetting_nats": "Forgotten (loss on text)",
}
_HINTS = {"arm": "Arm", "rate": "Rate", "shown": "Value", "evidence": "Rests on"}


def tradeoff_figure(arms: pl.DataFrame, settings: Decide | None, style: Style) -> Figure | None:
    """Learned (up) against forgotten (right), one point an arm, intervals both ways, the base at the origin."""
    present = _present(arms)
    ups = [name for name in ("gain", "gain_nats") if name in present][:1]
    rights = [name for name in ("forgetting", "forgetting_nats") if name in present]
    if not ups or not rights:
        return None
    panels = []
    for right in rights:
        frame = _paired(arms, ups[0], right)
        if not frame.is_empty():
            chart = _scatter(frame, ups[0], right, _budget(settings, right), style)
            label = f"Scatter plot: {_TITLES[ups[0]]} (up) against {_TITLES[right]} (right), one point an arm."
            title = f"{_SHORT[ups[0]]} against {_SHORT[right].lower()}"
            panels.append(Panel(title, label, specification(chart)))
    return Figure(
        key="learned_forgotten",
        title="Learned against forgotten",
        shows="Each mark is an arm at its chosen learning rate; its lines are the intervals. The base, untouched, "
        "stands at zero on both. The dashed line is the forgetting that the study accepts.",
        reading="Up is better: more was learned. Left is better: less was forgotten. An arm whose whole horizontal "
        "line lies left of the dashed one keeps within the budget.",
        caution="Two arms whose lines overlap are not thereby equal; the table above compares them item by item, "
        "which is sharper.",
        panels=panels,
        measures=(*ups, *rights),
        sources=("decide/record.json",),
    )


def rank_figure(arms: pl.DataFrame, settings: Decide | None, style: Style) -> Figure | None:
    """What each rank learned and forgot at its own best learning rate, with full fine-tuning as a line."""
    ranked = arms.filter(pl.col("rank").is_not_null())
    if ranked.is_empty():
        return None
    measures = [name for name in _TITLES if name in _present(ranked)]
    panels = []
    for measure in measures:
        chart = _rank_curve(arms.filter(pl.col("measure") == measure), measure, _budget(settings, measure), style)
        label = f"Line plot: {_TITLES[measure]}, against LoRA rank; full fine-tuning is a horizontal line."
        panels.append(Panel(_SHORT[measure], label, specification(chart)))
    return Figure(
        key="rank_curves",
        title="What the rank does",
        shows="Every LoRA rank at the learning rate that suited it best, with its interval. The horizontal line with "
        "its band is full fine-tuning; the dashed line is the accepted forgetting.",
        reading="A curve that is flat within its bars says that the rank hardly matters here. In the plots of what "
        "was forgotten, lower is better.",
        caution="A bend that is smaller than the bars is not a best rank. Other data or another base may bend "
        "elsewhere.",
        panels=panels,
        measures=measures,
        sources=("decide/record.json",),
        columns=3,
    )


def rate_figure(rates: pl.DataFrame, style: Style) -> Figure | None:
    """The validation score of every candidate; the rate chosen for each arm is ringed."""
    measured = rates.filter(pl.col("value").is_not_null())
    if measured.is_empty():
        return None
    measures = list(dict.fromkeys(measured["measure"]))
    panels = []
    for measure in measures:
        chart = _rate_curve(measured.filter(pl.col("measure") == measure), measure, style)
        title = "Validation accuracy" if is_fraction(measure) else "Validation loss"
        label = f"Line plot: {title.lower()} of every arm against its learning rate; the chosen rates are ringed."
        panels.append(Panel(title, label, specification(chart)))
    return Figure(
        key="learning_rates",
        title="The learning rate of each arm",
        shows="How each arm did on validation items at every rate that was tried. The ringed rate was chosen, by the "
        "score, then by the loss, then the lower one; no test item had been seen.",
        reading="A peak inside the range is a fair choice. A best rate at the end of the range means that the arm may "
        "do better than this study shows.",
        caution="Validation scores chose the rates, so they flatter them a little; the plots above use other items.",
        panels=panels,
        measures=measures,
        sources=("decide/rates.json",),
        notes=_rate_notes(rates),
    )


def _present(arms: pl.DataFrame) -> set[str]:
    """The measures that some arm other than the base has."""
    return set(arms.filter(pl.col("arm") != "base")["measure"])


def _budget(settings: Decide | None, measure: str) -> float | None:
    """The accepted forgetting on the scale of the plot, or None where the measure has no budget."""
    if settings is None:
        return None
    return {"forgetting": 100 * settings.forgetting_budget, "forgetting_nats": settings.forgetting_budget_nats}.get(
        measure
    )


def _shown(frame: pl.DataFrame, measure: str) -> pl.DataFrame:
    """The frame with what a tooltip says of each number, and values on the scale of the plot."""
    rows = frame.rows(named=True)
    texts = [amount_of(row["value"], row["low"], row["high"], measure) for row in rows]
    rests = [evidence(row["confidence"], row["num_items"], row["num_seeds"], row["source"]) for row in rows]
    return frame.with_columns(
        *(pl.col(name).map_elements(lambda x: scaled(x, measure), pl.Float64) for name in ("value", "low", "high")),
        pl.Series("shown", texts, dtype=pl.String),
        pl.Series("evidence", rests, dtype=pl.String),
        pl.Series("rate", [rate(row["learning_rate"]) for row in rows], dtype=pl.String),
    ).select("group", "arm", "rank", "value", "low", "high", "shown", "evidence", "rate")


def _paired(arms: pl.DataFrame, up: str, right: str) -> pl.DataFrame:
    ups = _shown(arms.filter(pl.col("measure") == up), up)
    rights = _shown(arms.filter(pl.col("measure") == right), right)
    rights = rights.select(
        "group", "arm", pl.col("value").alias("x"), pl.col("low").alias("x_low"), pl.col("high").alias("x_high"),
        pl.col("shown").alias("forgotten"),
    )  # fmt: skip
    return ups.join(rights, on=["group", "arm"], how="inner").rename({"value": "y", "shown": "learned"}).drop("rank")


def _scatter(frame: pl.DataFrame, up: str, right: str, budget: float | None, style: Style) -> alt.LayerChart:
    hints = tooltips(arm="Arm", rate="Rate", learned="Learned", forgotten="Forgotten", evidence="Rests on")
    plot = alt.Chart(data(frame)).transform_filter(GROUP_FILTER)
    tint = colour(style, with_base=True)
    x = alt.X("x:Q", title=_TITLES[right], axis=alt.Axis(grid=False))
    y = alt.Y("y:Q", title=_TITLES[up])
    is_tuned = plot.transform_filter("datum.arm !== 'base'")
    across = is_tuned.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("x_low:Q", title=_TITLES[right]), x2="x_high:Q", y=y, color=tint, opacity=picked(0.08, 0.75)
    )
    upright = is_tuned.mark_rule(strokeWidth=1.5).encode(
        x=x, y=alt.Y("low:Q", title=_TITLES[up]), y2="high:Q", color=tint, opacity=picked(0.08, 0.75)
    )
    points = plot.mark_point(filled=True, size=110, opacity=1).encode(
        x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
    )
    names = plot.mark_text(align="left", dx=9, dy=-9, fontSize=12, color=INK).encode(
        x=x, y=y, text="arm:N", opacity=picked(0.15)
    )
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=INK, opacity=0.25)
    layers = [zero.encode(x="zero:Q"), zero.encode(y="zero:Q"), across, upright, points, names]
    if budget is not None:
        line = alt.Chart(alt.Data(values=[{"x": budget, "title": f"accepted forgetting: {budget:g} {unit_of(right)}"}]))
        layers.insert(
            0,
            line.mark_rule(strokeDash=[4, 4], color=INK, opacity=0.6).encode(
                x="x:Q", tooltip=alt.Tooltip("title:N", title="Line")
            ),
        )
    return alt.layer(*layers).properties(width=WIDTH, height=360)


def _rank_curve(frame: pl.DataFrame, measure: str, budget: float | None, style: Style) -> alt.LayerChart:
    shown = _shown(frame.filter(pl.col("arm") != "base"), measure).with_columns(
        pl.col("rank").alias("x"), pl.col("arm").str.replace(r"-r\d+", "").alias("family")
    )
    plot = alt.Chart(data(shown)).transform_filter(GROUP_FILTER)
    ranked, unranked = plot.transform_filter("datum.x !== null"), plot.transform_filter("datum.x === null")
    x = log_axis([row for row in shown["rank"] if row is not None], "LoRA rank", base=2)
    y = alt.Y("value:Q", title=_TITLES[measure].split(": ")[1].capitalize())
    tint, hints = colour(style), tooltips(**_HINTS)
    layers = [
        unranked.mark_rect(opacity=0.14).encode(
            y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked(0.02, 0.14)
        ),
        unranked.mark_rule(strokeWidth=2).encode(y=y, color=tint, opacity=picked(), tooltip=hints),
        ranked.mark_line(color=INK, strokeWidth=1.5).encode(
            x=x, y=y, detail="family:N", opacity=alt.condition("length(arms) === 0", alt.value(0.45), alt.value(0.15))
        ),
        ranked.mark_rule(strokeWidth=2).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=tint, opacity=picked()),
        ranked.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ]
    if budget is not None:
        layers.insert(0, horizontal_rule(budget, f"accepted forgetting: {budget:g} {unit_of(measure)}"))
    return alt.layer(*layers).properties(width=WIDTH, height=260)


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
    title = f"Validation {MEASURES[measure].key.replace('_', ' ')}" if is_fraction(measure) else "Validation loss"
    y = alt.Y("value:Q", title=f"{title}, {'%' if is_fraction(measure) else 'nats per token'}",
              scale=alt.Scale(zero=False, padding=10))  # fmt: skip
    tint, hints = colour(style), tooltips(**_HINTS)
    ring = plot.transform_filter("datum.is_chosen").mark_point(size=260, strokeWidth=2, filled=False)
    return alt.layer(
        plot.mark_line(strokeWidth=2).encode(x=x, y=y, color=tint, opacity=picked(0.1, 0.8)),
        plot.mark_point(filled=True, size=60).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
        ring.encode(x=x, y=y, color=tint, opacity=picked()),
    ).properties(width=WIDTH, height=260)


def _rate_notes(rates: pl.DataFrame) -> dict[str, list[str]]:
    """By group, a warning for each arm whose best rate is at the end of the range, and for each rate without score."""
    notes: dict[str, list[str]] = {}
    edges = rates.filter(pl.col("is_chosen") & pl.col("at_edge").is_not_null())
    for row in edges.unique(["group", "arm"], maintain_order=True).iter_rows(named=True):
        beyond = "higher" if row["at_edge"] == "highest" else "lower"
        text = f"{row['arm']}: the best rate, {rate(row['learning_rate'])}, is the {row['at_edge']} that was tried"
        notes.setdefault(row["group"], []).append(f"{text}; a {beyond} one may be better.")
    lost = rates.filter(pl.col("value").is_null()).unique(["group", "arm", "learning_rate"], maintain_order=True)
    for row in lost.iter_rows(named=True):
        text = f"{row['arm']}: rate {rate(row['learning_rate'])} gave no score; see what went wrong, below."
        notes.setdefault(row["group"], []).append(text)
    return notes
