"""Learned against forgotten: the arms with their intervals, the base and its noise, the line of the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import polars as pl

from rankscope.report.figure import Figure, Panel
from rankscope.report.labels import Box, Place, places
from rankscope.report.marks import (
    GROUP_FILTER,
    INK,
    WIDTH,
    Style,
    colour,
    data,
    either,
    picked,
    shape,
    specification,
    tooltips,
)
from rankscope.report.standings import SHORT, TITLES, budget_of, present, shown
from rankscope.report.wording import amount_of, evidence, scaled, unit_of
from rankscope.spec import Decide

_HINTS = {"arm": "Arm", "rate": "Rate", "learned": "Learned", "forgotten": "Forgotten", "evidence": "Rests on"}
_DERIVED = {"rewind": "rewound to {:g} of its update", "truncate": "cut to rank {:g}",
            "intruders": "intruders times {:g}"}  # fmt: skip
_MOST_NAMES = 8
_HEIGHT, _SMALL_HEIGHT = 360, 220
# As wide as they are drawn, in pixels, on a desk and on a phone; where names go depends on it.
_WIDTHS = {_HEIGHT: (440, 280), _SMALL_HEIGHT: (325, 245)}
_BRIEF = {"gain": "Learned, points", "gain_nats": "Learned, nats per token", "forgetting": "Forgotten, points",
          "forgetting_nats": "Forgotten, nats per token"}  # fmt: skip


def tradeoff_figure(arms: pl.DataFrame, derived: pl.DataFrame, settings: Decide | None, style: Style) -> Figure | None:
    """Learned (up) against forgotten (right), one point an arm, intervals both ways, the base at the origin."""
    axes = _axes(arms)
    panels = []
    for (up, right), groups in axes.items():
        mine = arms.filter(pl.col("group").is_in(groups))
        made = _made(derived.filter(pl.col("group").is_in(groups)), mine, up, right)
        frame = _paired(mine, (up, right), _HEIGHT, budget_of(settings, right), made)
        if frame.is_empty():
            continue
        layers = [*_background(frame, right, settings), *_derived_layer(made, style)]
        layers += _arm_layers(frame, _BRIEF[up], _BRIEF[right], style)
        chart = alt.layer(*layers).properties(width=WIDTH, height=_HEIGHT)
        label = f"Scatter plot: {TITLES[up]} (up) against {TITLES[right]} (right), one point an arm."
        unit = f"up: {TITLES[up].split(': ')[1]}; right: {TITLES[right].split(': ')[1]}"
        panels.append(Panel(f"{SHORT[up]} against {SHORT[right].lower()}", label, specification(chart), unit=unit))
    if not panels:
        return None
    return Figure(
        key="learned_forgotten",
        title="Learned against forgotten",
        shows="Each mark is an arm at its chosen learning rate; its lines are the intervals. The base, untouched, "
        "stands at zero on both, and the grey box round it is as wide and as high as the middle arm's intervals. The "
        "stepped line joins the arms that learned most for what they forgot; the dashed line is the forgetting that "
        "the study accepts." + _hollow(derived),
        reading="Up is better: more was learned. Left is better: less was forgotten. An arm whose whole horizontal "
        "line lies left of the dashed one keeps within the budget. One inside the grey box cannot be told from the "
        "base.",
        caution="Two arms whose lines overlap are not thereby equal; the verdict compares them item by item, "
        "which is sharper. The stepped line is made of estimates: a neighbour below it may be as good.",
        panels=panels,
        measures=tuple(dict.fromkeys([up for up, _ in axes] + [right for _, right in axes])),
        sources=("decide/record.json", *(("report/tables/derived.csv",) if derived.height else ())),
    )


def glances(arms: pl.DataFrame, settings: Decide | None, style: Style) -> dict[str, Panel]:
    """By group, the first of these plots in small, to stand beside the verdict."""
    found = {}
    for group in dict.fromkeys(arms["group"]):
        mine = arms.filter(pl.col("group") == group)
        up, right = next(iter(_axes(mine)), (None, None))
        if up is None:
            continue
        frame = _paired(mine, (up, right), _SMALL_HEIGHT, budget_of(settings, right))
        if frame.filter(pl.col("arm") != "base").is_empty():
            continue
        layers = [*_background(frame, right, settings), *_arm_layers(frame, _BRIEF[up], _BRIEF[right], style)]
        chart = alt.layer(*layers).properties(width=WIDTH, height=_SMALL_HEIGHT)
        label = f"Scatter plot, trained on {group}: {TITLES[up]} (up) against {TITLES[right]} (right)."
        found[group] = Panel("Learned against forgotten", label, specification(chart), group=group)
    return found


def frontier(points: pl.DataFrame) -> pl.DataFrame:
    """The points (x forgotten, y learned) than which none learned more and forgot less, by what they forgot.

    Of equal ones the first stands for all.
    """
    kept, best = [], float("-inf")
    for row in points.sort("x", "y", descending=[False, True], maintain_order=True).iter_rows(named=True):
        if row["y"] is not None and row["x"] is not None and row["y"] > best:
            best = row["y"]
            kept.append(row)
    return pl.DataFrame(kept, schema=points.schema)


def _axes(arms: pl.DataFrame) -> dict[tuple[str, str], list[str]]:
    """What goes up and what goes right, a plot each, with the groups it is of.

    A group has accuracy going up where it has some, and losses where its data have no right answer.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for group in dict.fromkeys(arms["group"]):
        measures = present(arms.filter(pl.col("group") == group))
        up = "gain" if "gain" in measures else "gain_nats"
        for right in ("forgetting", "forgetting_nats"):
            if {up, right} <= measures:
                found.setdefault((up, right), []).append(group)
    return found


def _hollow(derived: pl.DataFrame) -> str:
    if derived.is_empty():
        return ""
    return (
        " Hollow marks are models made of the trained ones without training; the interval that one shows is of its "
        "arm's own seeds, those of the arms have their seeds pooled."
    )


def _paired(
    arms: pl.DataFrame, axes: tuple[str, str], height: int, budget: float | None, made: pl.DataFrame | None = None
) -> pl.DataFrame:
    """One row an arm and group, with both numbers (up and right), and where its name goes."""
    up, right = axes
    ups = shown(arms.filter(pl.col("measure") == up), up)
    rights = shown(arms.filter(pl.col("measure") == right), right).select(
        "group", "arm", pl.col("value").alias("x"), pl.col("low").alias("x_low"), pl.col("high").alias("x_high"),
        pl.col("shown").alias("forgotten"),
    )  # fmt: skip
    frame = ups.join(rights, on=["group", "arm"], how="inner", maintain_order="left")
    frame = frame.rename({"value": "y", "shown": "learned"}).drop("rank")
    named = []
    for (group,), part in frame.group_by(["group"], maintain_order=True):
        others = [] if made is None else list(made.filter(pl.col("group") == group).select("x", "y").iter_rows())
        named.append(_named(part, height, others, budget or 0.0))
    return pl.concat(named) if named else frame


def _named(frame: pl.DataFrame, height: int, others: Sequence[tuple[float, float]], farthest: float) -> pl.DataFrame:
    """With the place of each name; where arms are many, only those on the line of the best are named at first."""
    best = set(frontier(frame)["arm"]) | {"base"}
    is_few = frame.height <= _MOST_NAMES
    rows = frame.rows(named=True)
    half = _noise(frame)
    xs = [*(row[name] for row in rows for name in ("x_low", "x", "x_high")), *(x for x, _ in others), farthest]
    ys = [*(row[name] for row in rows for name in ("low", "y", "high")), *(y for _, y in others)]
    across = _scale([*xs, half["x"], -(half["x"] or 0.0)])
    down = _scale([*ys, half["y"], -(half["y"] or 0.0)])

    def at(x: float, y: float) -> tuple[float, float]:
        return _WIDTHS[height][0] * across(x), height * (1 - down(y))

    spots = [(*at(row["x"], row["y"]), row["arm"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: rows[index]["arm"] not in best)
    line = at(farthest, 0.0)[0]  # of the accepted forgetting
    bars = [(line, 0.0, line, float(height)), *(box for row in rows for box in _bars(row, at))]
    chosen = places([spots[index] for index in order], [at(*point) for point in others], bars, _WIDTHS[height])
    found: dict[int, Place] = dict(zip(order, chosen, strict=True))
    return frame.with_columns(
        pl.Series("_named", [is_few or row["arm"] in best for row in rows], dtype=pl.Boolean),
        pl.Series("_dx", [found[index].dx for index in range(len(rows))], dtype=pl.Int64),
        pl.Series("_dy", [found[index].dy for index in range(len(rows))], dtype=pl.Int64),
        pl.Series("_align", [found[index].align for index in range(len(rows))], dtype=pl.String),
    )


def _bars(row: dict[str, Any], at: Callable[[float, float], tuple[float, float]]) -> list[Box]:
    """The lines of an arm's two intervals, of those that it has."""
    if row["arm"] == "base" or None in (row["x_low"], row["x_high"], row["low"], row["high"]):
        return []
    ends = ((row["x_low"], row["y"]), (row["x_high"], row["y"])), ((row["x"], row["high"]), (row["x"], row["low"]))
    return [(*at(*one), *at(*other)) for one, other in ends]


def _scale(values: Sequence[float | None]) -> Callable[[float], float]:
    """From a value to its share of the axis, which holds them all and 0, and ends at round numbers."""
    known = [0.0, *(value for value in values if value is not None)]
    span = max(known) - min(known) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 6))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= span / 8)
    low, high = step * math.floor(min(known) / step), step * math.ceil(max(known) / step)
    return lambda value: (value - low) / ((high - low) or 1.0)


def _noise(frame: pl.DataFrame) -> dict[str, float | None]:
    """Half the width and height of the middle arm's intervals, of one group."""
    tuned = frame.filter(pl.col("arm") != "base")
    return tuned.select(
        ((pl.col("x_high") - pl.col("x_low")) / 2).median().alias("x"),
        ((pl.col("high") - pl.col("low")) / 2).median().alias("y"),
    ).row(0, named=True)


def _background(frame: pl.DataFrame, right: str, settings: Decide | None) -> list[alt.Chart]:
    """The noise round the base, the axes through it, the accepted forgetting, and the line of the best."""
    boxes, lines = [], []
    for (group,), part in frame.group_by(["group"], maintain_order=True):
        half = _noise(part)
        if half["x"] is not None and half["y"] is not None:
            title = "as wide and as high as the middle arm's intervals: in here an arm cannot be told from the base"
            boxes.append({"group": group, "left": -half["x"], "right": half["x"], "low": -half["y"],
                          "high": half["y"], "title": title})  # fmt: skip
        lines += frontier(part).select("group", "arm", "x", "y").to_dicts()
    edge = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=INK, opacity=0.25)
    layers = []
    if boxes:
        box = alt.Chart(alt.Data(values=boxes)).transform_filter(GROUP_FILTER).mark_rect(color=INK, opacity=0.07)
        layers.append(box.encode(x="left:Q", x2="right:Q", y="low:Q", y2="high:Q",
                                 tooltip=alt.Tooltip("title:N", title="Noise")))  # fmt: skip
    layers += [edge.encode(x="zero:Q"), edge.encode(y="zero:Q")]
    budget = budget_of(settings, right)
    if budget is not None:
        line = alt.Chart(alt.Data(values=[{"x": budget, "title": f"accepted forgetting: {budget:g} {unit_of(right)}"}]))
        layers.append(
            line.mark_rule(strokeDash=[4, 4], color=INK, opacity=0.6).encode(
                x="x:Q", tooltip=alt.Tooltip("title:N", title="Line")
            )
        )
    if len(lines) > 1:
        best = alt.Chart(alt.Data(values=lines)).transform_filter(GROUP_FILTER)
        layers.append(
            best.mark_line(interpolate="step-after", color=INK, opacity=0.35, strokeWidth=1.5).encode(x="x:Q", y="y:Q")
        )
    return layers


def _arm_layers(frame: pl.DataFrame, up: str, right: str, style: Style) -> list[alt.Chart]:
    plot = alt.Chart(data(frame)).transform_filter(GROUP_FILTER)
    tint = colour(style, with_base=True)
    x = alt.X("x:Q", title=right, axis=alt.Axis(grid=False))
    y = alt.Y("y:Q", title=up)
    is_tuned = plot.transform_filter("datum.arm !== 'base'")
    across = is_tuned.mark_rule(strokeWidth=1.5, aria=False).encode(
        x=alt.X("x_low:Q", title=right), x2="x_high:Q", y=y, color=tint, opacity=picked(0.06, 0.7)
    )
    upright = is_tuned.mark_rule(strokeWidth=1.5, aria=False).encode(
        x=x, y=alt.Y("low:Q", title=up), y2="high:Q", color=tint, opacity=picked(0.06, 0.7)
    )
    points = plot.mark_point(filled=True, size=110, opacity=1).encode(
        x=x, y=y, color=tint, shape=shape(style, with_base=True), opacity=picked(), tooltip=tooltips(**_HINTS)
    )
    # A field cannot say where a text goes, but an expression of one can.
    at = {name: alt.ExprRef(f"datum._{name}") for name in ("dx", "dy", "align")}
    is_named = "length(arms) === 0 ? datum._named : indexof(arms, datum.arm) >= 0"
    names = plot.mark_text(fontSize=12, color=INK, aria=False, **at).encode(
        x=x, y=y, text="arm:N", opacity=either(alt.OpacityValue, is_named, 1, 0)
    )
    return [across, upright, points, names]


def _made(derived: pl.DataFrame, arms: pl.DataFrame, up: str, right: str) -> pl.DataFrame:
    """One row a model made of a trained one, with both its numbers; the trained ones stand among the arms already."""
    keys = ["group", "arm", "kind", "amount"]
    ranks = arms.select("group", "arm", pl.col("rank").cast(pl.Float64)).unique()
    own = pl.when(pl.col("kind") == "truncate").then(pl.col("rank")).otherwise(pl.lit(1.0))
    made = derived.join(ranks, on=["group", "arm"], how="left").filter(pl.col("amount").ne_missing(own))
    both = made.filter(pl.col("measure") == up).join(
        made.filter(pl.col("measure") == right), on=keys, how="inner", suffix="_right"
    )
    rows = []
    for row in both.iter_rows(named=True):
        learned, forgotten = (
            amount_of(row[f"value{end}"], row[f"low{end}"], row[f"high{end}"], measure)
            for end, measure in (("", up), ("_right", right))
        )
        rows.append({
            "group": row["group"], "arm": row["arm"], "what": _DERIVED[row["kind"]].format(row["amount"]),
            "x": scaled(row["value_right"], right), "y": scaled(row["value"], up), "learned": learned,
            "forgotten": forgotten,
            "evidence": evidence(
                row["confidence"], row["num_items"], row["num_seeds"], row["source"], row["seeds_part"]
            ),
        })  # fmt: skip
    names = ("group", "arm", "what", "learned", "forgotten", "evidence")
    return pl.DataFrame(rows, schema={**dict.fromkeys(names, pl.String), "x": pl.Float64, "y": pl.Float64})


def _derived_layer(made: pl.DataFrame, style: Style) -> list[alt.Chart]:
    if made.is_empty():
        return []
    hints = tooltips(arm="Made of", what="It", learned="Learned", forgotten="Forgotten", evidence="Rests on")
    marks = alt.Chart(data(made)).transform_filter(GROUP_FILTER)
    return [
        marks.mark_point(filled=False, size=45, strokeWidth=1.5).encode(
            x="x:Q", y="y:Q", color=colour(style, with_base=True), shape=shape(style, with_base=True),
            opacity=picked(0.06, 0.7), tooltip=hints,
        )
    ]  # fmt: skip
