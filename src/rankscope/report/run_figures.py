"""Figures of the runs: what they cost, and how their losses went."""

from __future__ import annotations

import altair as alt
import polars as pl

from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import GROUP_FILTER, WIDTH, Style, colour, data, picked, shape, specification

_COSTS = {
    "train_seconds": ("Training time of one run, seconds", False),
    "num_trainable": ("Trainable parameters (logarithmic)", True),
    "peak_memory": ("Peak memory, MB", False),
}
_MOST_POINTS = 100  # in one line, of a plot that is a few hundred pixels wide


def cost_figure(runs: pl.DataFrame, style: Style) -> Figure | None:
    """What one run of each arm cost: time, trainable parameters, memory."""
    done = runs.filter(pl.col("is_chosen") & (pl.col("state") == "complete"))
    if done.is_empty():
        return None
    done = done.with_columns((pl.col("peak_memory_bytes") / 1e6).alias("peak_memory"))
    costs = done.group_by("group", "arm", maintain_order=True).agg(
        *(pl.col(name).cast(pl.Float64).mean() for name in _COSTS), pl.len().alias("num_seeds")
    )
    panels = []
    for name, (title, is_log) in _COSTS.items():
        part = costs.filter(pl.col(name).is_not_null())
        if not part.is_empty():
            label = f"Dot plot: {title.lower()}, by arm."
            panels.append(Panel(title, label, specification(_dots(part, name, is_log, style))))
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
        panels.append(Panel(title, label, specification(_losses(_thinned(_readable(finite)), style))))
    if not panels:
        return None
    return Figure(
        key="losses",
        title="Loss while training",
        shows="One line a run at its chosen rate (long runs averaged over neighbouring steps), and the runs "
        "that diverged, as far as they stay among the others.",
        reading="Lower is less surprised. A validation loss that rises while the training loss falls is over-fitting.",
        caution="A lower training loss is no better model: the verdict never looks at it.",
        panels=panels,
        measures=("loss_nats_per_token",),
        sources=("runs/*/train/steps.jsonl", "runs/*/train/record.json"),
    )


def _dots(frame: pl.DataFrame, name: str, is_log: bool, style: Style) -> alt.Chart:
    shown = frame.select("group", "arm", pl.col(name).alias("value"), "num_seeds")
    scale = alt.Scale(type="log", nice=False, padding=12) if is_log else alt.Scale(zero=True)
    decades = [10**power for power in range(13)] if is_log else alt.Undefined
    axis = alt.Axis(format="~s", labelOverlap="greedy", tickCount=4, values=decades, grid=True)
    return (
        alt.Chart(data(shown))
        .transform_filter(GROUP_FILTER)
        .mark_point(filled=True, size=110)
        .encode(
            x=alt.X("value:Q", title=None, scale=scale, axis=axis),
            y=alt.Y("arm:N", sort=list(style.looks), title=None, axis=alt.Axis(grid=True)),
            color=colour(style),
            shape=shape(style),
            opacity=picked(),
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("value:Q", title=name.replace("_", " "), format=",.4~g"),
                alt.Tooltip("num_seeds:Q", title="Seeds"),
            ],
        )
        .properties(width=WIDTH, height=28 * shown["arm"].n_unique())
    )


def _losses(frame: pl.DataFrame, style: Style) -> alt.Chart:
    return (
        alt.Chart(data(frame))
        .transform_filter(GROUP_FILTER)
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("step:Q", title="Optimizer step"),
            y=alt.Y("loss:Q", title="Loss, nats per token", scale=alt.Scale(zero=False)),
            detail="run_id:N",
            color=colour(style),
            opacity=picked(0.06, 0.75),
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("seed:N", title="Seed"),
                alt.Tooltip("step:Q", title="Step"),
                alt.Tooltip("loss:Q", title="Loss, nats per token", format=".4f"),
            ],
        )
        .properties(width=WIDTH, height=260)
    )


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
        .group_by("group", "arm", "seed", "run_id", "stretch", maintain_order=True)
        .agg(pl.col("step").max(), pl.col("loss_nats_per_token").mean().alias("loss"))
        .drop("stretch")
    )
