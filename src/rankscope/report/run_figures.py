"""Figures of the runs: what they cost, and how their losses went."""

from __future__ import annotations

import altair as alt
import polars as pl

from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import GROUP_FILTER, WIDTH, Style, colour, data, either, picked, shape, specification

_COSTS = {
    "train_seconds": ("Training time", "seconds of one run", False),
    "num_trainable": ("Trainable parameters", "logarithmic", True),
    "peak_memory": ("Peak memory", "MB that the process held", False),
}
_FEW_POINTS = 12
_MOST_POINTS = 40  # in one line: batches are small, and what matters is the trend


def cost_figure(runs: pl.DataFrame, style: Style) -> Figure | None:
    """What one run of each arm cost: time, trainable parameters, memory."""
    done = runs.filter(pl.col("is_chosen") & (pl.col("state") == "complete"))
    if done.is_empty():
        return None
    done = done.with_columns((pl.col("peak_memory_bytes") / 1e6).alias("peak_memory"))
    costs = done.group_by("group", "arm", maintain_order=True).agg(
        *(pl.col(name).cast(pl.Float64).mean() for name in _COSTS),
        pl.len().alias("num_seeds"),
        pl.col("source").first(),
    )
    panels = []
    for name, (title, unit, is_log) in _COSTS.items():
        part = costs.filter(pl.col(name).is_not_null())
        if not part.is_empty():
            label = f"Dot plot: {title.lower()}, {unit}, by arm."
            panels.append(Panel(title, label, specification(_dots(part, name, is_log, style)), unit=unit))
    return Figure(
        key="cost",
        title="What it cost",
        shows="One run at the chosen rate, mean over seeds. The search for the rate is not in it; the table below has "
        "every run.",
        reading="Left is cheaper.",
        caution="Times were taken on this machine, with whatever else it was doing.",
        panels=panels,
        measures=(),
        sources=("runs/*/train/record.json",),
        columns=3,
    )


def loss_figure(losses: pl.DataFrame, validations: pl.DataFrame, style: Style) -> Figure | None:
    """The loss during training, and on validation examples, of every seed at the chosen rate."""
    panels = []
    for title, frame in (("On training examples", losses), ("On validation examples", validations)):
        finite = frame.filter(pl.col("loss_nats_per_token").is_finite()) if not frame.is_empty() else frame
        if finite.is_empty():
            continue
        label = f"Line plot: loss in nats per token against the step, one line a run. {title}."
        spec = specification(_losses(_thinned(_readable(finite)), style))
        panels.append(Panel(title, label, spec, unit="nats per token, lower is better"))
    if not panels:
        return None
    return Figure(
        key="losses",
        title="Loss while training",
        shows="One line a run at its chosen rate, averaged over neighbouring steps where it is long, and the runs "
        "that diverged (dashed), as far as they stay among the others. The mark at a line's end is its arm's.",
        reading="Lower is less surprised. A validation loss that rises while the training loss falls is over-fitting.",
        caution="A lower training loss is no better model: the verdict never looks at it.",
        panels=panels,
        measures=("loss_nats_per_token",),
        sources=("runs/*/train/steps.jsonl", "runs/*/train/record.json"),
    )


def _dots(frame: pl.DataFrame, name: str, is_log: bool, style: Style) -> alt.Chart:
    shown = frame.select("group", "arm", pl.col(name).alias("value"), "num_seeds", "source")
    scale = alt.Scale(type="log", nice=False, padding=12) if is_log else alt.Scale(zero=True)
    decades = [10**power for power in range(13)] if is_log else alt.Undefined
    axis = alt.Axis(format="~s", labelOverlap="greedy", tickCount=4, values=decades, grid=True)
    return (
        alt.Chart(data(shown))
        .transform_filter(GROUP_FILTER)
        .mark_point(filled=True, size=110)
        .encode(
            x=alt.X("value:Q", title=None, scale=scale, axis=axis),
            y=alt.Y("arm:N", sort=list(style.looks), title=None, axis=alt.Axis(grid=True, labelLimit=170)),
            color=colour(style),
            shape=shape(style),
            opacity=picked(),
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("value:Q", title=name.replace("_", " "), format=",.4~g"),
                alt.Tooltip("num_seeds:Q", title="Seeds"),
                alt.Tooltip("source:N", title="From"),
            ],
        )
        .properties(width=WIDTH, height=(28 if shown["arm"].n_unique() <= 8 else 20) * shown["arm"].n_unique())
    )


def _losses(frame: pl.DataFrame, style: Style) -> alt.LayerChart:
    # A line of one point cannot be seen, and few points should be.
    has_points = int(frame.group_by("run_id").len()["len"].max() or 0) <= _FEW_POINTS
    is_last = pl.col("step") == pl.col("step").max().over("run_id")
    plot = (
        alt.Chart(data(frame.with_columns(is_last.alias("is_last"))))
        .transform_filter(GROUP_FILTER)
        .encode(
            x=alt.X("step:Q", title="Optimizer step"),
            y=alt.Y("loss:Q", title=None, scale=alt.Scale(zero=False)),
            detail="run_id:N",
            color=colour(style),
            opacity=picked(0.06, 0.75),
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("seed:N", title="Seed"),
                alt.Tooltip("step:Q", title="Step"),
                alt.Tooltip("loss:Q", title="Loss, nats per token", format=".4f"),
                alt.Tooltip("run_id:N", title="Run"),
            ],
        )
    )
    dash = either(alt.StrokeDashValue, "datum.is_chosen", [1, 0], [4, 3])
    lines = plot.mark_line(strokeWidth=1.5, point={"size": 25} if has_points else False).encode(strokeDash=dash)
    ends = plot.transform_filter("datum.is_last").mark_point(filled=True, size=60).encode(shape=shape(style))
    return (lines + ends).properties(width=WIDTH, height=260)


def _readable(frame: pl.DataFrame) -> pl.DataFrame:
    """Losses without those far above every chosen run's: one that diverges would flatten all others."""
    chosen = frame.filter(pl.col("is_chosen"))
    top = (chosen if chosen.height else frame)["loss_nats_per_token"].max()
    return frame.filter(pl.col("loss_nats_per_token") <= 1.05 * pl.lit(top))


def _thinned(frame: pl.DataFrame) -> pl.DataFrame:
    """At most a hundred points a run: the means over equal stretches of steps."""
    size = pl.col("step").max().over("run_id") / _MOST_POINTS
    stretch = ((pl.col("step") - 1) / pl.max_horizontal(size, pl.lit(1.0))).floor().alias("stretch")
    return (
        frame.with_columns(stretch)
        .group_by("group", "arm", "seed", "run_id", "is_chosen", "stretch", maintain_order=True)
        .agg(pl.col("step").max(), pl.col("loss_nats_per_token").mean().alias("loss"))
        .drop("stretch")
    )
