"""Figures by task: the train x test matrix, one task against the rank, and every task's difference from the base."""

from __future__ import annotations

import altair as alt
import polars as pl

from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import (
    GROUP_FILTER,
    INK,
    TASK_FILTER,
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
from rankscope.report.palette import GAIN_COLOUR, LOSS_COLOUR, family
from rankscope.report.wording import amount_of, beyond, evidence, probability, rate, scaled, signed
from rankscope.spec import Decide

_MANY_ARMS = 8  # more of them go down the page, and tasks across
_RELATIONS = {"in_domain": "in domain", "out_of_domain": "out of domain", "retention": "retention"}
_HINTS = {
    "arm": "Arm", "rate": "Rate", "task": "Task", "relation": "Relation", "values": "Base, tuned",
    "shown": "Difference", "p": "Holm p", "evidence": "Rests on",
}  # fmt: skip


def matrix_figure(comparisons: pl.DataFrame, settings: Decide | None, style: Style) -> Figure | None:
    """What every training set and arm did to every task: differences from the base as a heat map with numbers.

    Full colour stands for the largest change, or for the accepted forgetting where no change is as large: a difference
    that does not matter must not look like one that does.
    """
    shown = _shown(comparisons)
    if shown.is_empty():
        return None
    strongest = shown.group_by("unit").agg(pl.col("value").abs().max().alias("strongest"))
    budgets = {} if settings is None else {
        "accuracy": scaled(settings.forgetting_budget, "forgetting"), "nats": settings.forgetting_budget_nats
    }  # fmt: skip
    least = pl.col("unit").replace_strict(budgets, default=0.0, return_dtype=pl.Float64)
    shown = shown.join(strongest, on="unit", how="left", maintain_order="left").with_columns(
        # Each unit has its own scale, for a point and a nat cannot be compared.
        (pl.col("value").abs() / pl.max_horizontal("strongest", least, pl.lit(1e-9))).fill_nan(0.0).alias("strength")
    )
    is_wide = shown["arm"].n_unique() > _MANY_ARMS
    panels = [
        Panel(
            f"Trained on {group}",
            f"Heat map: the difference from the base of every arm trained on {group}, on every task.",
            specification(_heat_map(shown.filter(pl.col("group") == group), style)),
            group=group,
            min_width=150 + 46 * min(shown["arm"].n_unique(), shown["column"].n_unique()) if is_wide else 0,
        )
        for group in dict.fromkeys(shown["group"])
    ]
    return Figure(
        key="train_test",
        title="Trained on one thing, tested on everything",
        shows="The change of every arm against the base on every task, for every training set: points of accuracy, or "
        "nats per token where the task is text. Tasks marked \N{BULLET} are the ones that were trained for.",
        reading="Blue is better than the base, orange is worse; the stronger the colour, the larger the change. "
        "Numbers carry their sign.",
        caution="A number without its interval invites over-reading; point at a cell for it. Many cells are compared "
        "here, so some will look large by chance: the Holm-corrected p is in the next section.",
        panels=panels,
        measures=("accuracy", "loss_nats_per_token", "gain", "forgetting"),
        sources=("decide/record.json",),
        columns=1 if is_wide else 2,
    )


def one_task_figure(comparisons: pl.DataFrame, style: Style) -> Figure | None:
    """One task at a time, against the rank; the reader switches the task."""
    shown = _shown(comparisons)
    if shown.filter(pl.col("rank").is_not_null()).is_empty():
        return None
    label = "Line plot: the difference from the base on the chosen task, against LoRA rank."
    return Figure(
        key="one_task",
        title="One task at a time",
        shows="The change against the base on one task, for every rank at its best learning rate, with its interval. "
        "Lines with bands are arms without a rank, full fine-tuning among them.",
        reading="Above zero the tuned model is better than the base, below it is worse.",
        caution="Single tasks have few items, so their intervals are wide; the verdict uses the means over tasks.",
        panels=(
            Panel(
                "Difference from the base",
                label,
                specification(_one_task(shown, style)),
                unit="points of accuracy, or nats per token where the task is text; higher is better",
            ),
        ),
        measures=("accuracy", "loss_nats_per_token"),
        sources=("decide/record.json",),
        tasks=list(dict.fromkeys(shown["task"])),
        columns=1,
    )


def differences_figure(comparisons: pl.DataFrame, style: Style) -> Figure | None:
    """Every arm's difference from the base on every task, with its interval."""
    shown = _shown(comparisons)
    if shown.is_empty():
        return None
    titles = {"accuracy": "Accuracy, points", "nats": "Loss on text, nats per token"}
    panels = []
    for unit, title in titles.items():
        part = shown.filter(pl.col("unit") == unit)
        if not part.is_empty():
            label = f"Interval plot: each arm's difference from the base on each task. {title}."
            panels.append(Panel(title, label, specification(_intervals(part, title, style))))
    return Figure(
        key="task_differences",
        title="Task by task",
        shows="Each arm's difference from the base on each task, with its interval; better is to the right of zero.",
        reading="An interval that does not touch zero shows a change in that task alone; the table gives the p value "
        "corrected for looking at many.",
        caution="An interval that touches zero does not show that nothing was lost, only that these items cannot tell.",
        panels=panels,
        measures=("accuracy", "num_lost", "num_gained", "forgetting_nats"),
        sources=("decide/record.json",),
    )


def _shown(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Whole tasks only, on the plots' scale, with the words of their tooltips."""
    frame = comparisons.filter(pl.col("category").is_null())
    rows = frame.rows(named=True)
    values, texts = [], {"shown": [], "values": [], "number": [], "p": [], "evidence": [], "rate": [], "column": []}
    for row in rows:
        measure = row["measure"]
        values.append([scaled(row[key], measure) if row[key] is not None else None for key in ("value", "low", "high")])
        ends = [amount_of(row[key], None, None, measure, signs=False) for key in ("base_value", "tuned_value")]
        difference = amount_of(row["value"], row["low"], row["high"], measure).replace("nats", "nats, better")
        texts["shown"].append(difference + beyond(row["base_value"], row["low"], row["high"], measure))
        texts["values"].append(", ".join(ends))
        texts["number"].append(signed(values[-1][0], 1 if row["unit"] == "accuracy" else 2))
        texts["p"].append(probability(row["p_holm"]))
        rests = evidence(row["confidence"], row["num_items"], row["num_seeds"], row["source"], row["seeds_part"])
        texts["evidence"].append(rests)
        texts["rate"].append(rate(row["learning_rate"]))
        mark = " \N{BULLET}" if row["relation"] == "in_domain" else ""
        texts["column"].append(row["task"] + (" (nats)" if row["unit"] == "nats" else "") + mark)
    columns = [pl.Series(name, text, dtype=pl.String) for name, text in texts.items()]
    numbers = [
        pl.Series(name, [value[index] for value in values], dtype=pl.Float64)
        for index, name in enumerate(("value", "low", "high"))
    ]
    keep = ("group", "arm", "rank", "task", "relation", "unit", "value", "low", "high", *texts)
    relation = pl.col("relation").replace(_RELATIONS)
    return frame.with_columns(*columns, *numbers, relation).select(keep)


def _heat_map(frame: pl.DataFrame, style: Style) -> alt.LayerChart:
    plot = alt.Chart(data(frame.drop("low", "high", "rank")))
    tasks, arms = list(dict.fromkeys(frame["column"])), [name for name in style.looks if name in set(frame["arm"])]
    bare = {"domain": False, "ticks": False, "grid": False}
    # Tasks have long names and arms short ones, so tasks go down unless arms are many.
    down, across = (("column", tasks), ("arm", arms)) if len(arms) <= _MANY_ARMS else (("arm", arms), ("column", tasks))
    angle = 0 if len(across[1]) <= 4 else -35
    axis = alt.Axis(labelAngle=angle, orient="top", labelLimit=130, **bare)
    x = alt.X(f"{across[0]}:N", sort=across[1], title=None, axis=axis)
    y = alt.Y(f"{down[0]}:N", sort=down[1], title=None, axis=alt.Axis(labelLimit=190, **bare))
    sign = either(alt.FillValue, "datum.value >= 0", GAIN_COLOUR, LOSS_COLOUR)
    strength = alt.FillOpacity("strength:Q", scale=alt.Scale(domain=[0, 1], range=[0.03, 0.62]), legend=None)
    cells = plot.mark_rect(cornerRadius=3, stroke=None).encode(
        x=x, y=y, fill=sign, fillOpacity=strength, tooltip=tooltips(**_HINTS)
    )
    numbers = plot.mark_text(fontSize=12, color=INK).encode(x=x, y=y, text="number:N", opacity=picked(0.25))
    # What is written aslant reaches beyond the last column.
    padding = {"left": 5, "top": 5, "bottom": 5, "right": 40 if angle else 5}
    return alt.layer(cells, numbers).properties(width=WIDTH, height=28 * len(down[1]), padding=padding)


def _one_task(shown: pl.DataFrame, style: Style) -> alt.LayerChart:
    frame = shown.with_columns(pl.col("rank").alias("x"), pl.col("arm").map_elements(family, pl.String).alias("family"))
    plot = alt.Chart(data(frame.drop("number", "column"))).transform_filter(GROUP_FILTER).transform_filter(TASK_FILTER)
    ranked, unranked = plot.transform_filter("datum.x !== null"), plot.transform_filter("datum.x === null")
    x = log_axis([rank for rank in frame["rank"] if rank is not None], "Rank", base=2)
    y = alt.Y("value:Q", title=None)
    tint, hints = colour(style), tooltips(**_HINTS)
    return alt.layer(
        horizontal_rule(0, "the base"),
        unranked.mark_rect().encode(y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked(0.02, 0.14)),
        unranked.mark_rule(strokeWidth=2).encode(y=y, color=tint, opacity=picked(), tooltip=hints),
        ranked.mark_line(color=INK, strokeWidth=1.5, opacity=0.35).encode(x=x, y=y, detail="family:N"),
        ranked.mark_rule(strokeWidth=2, aria=False).encode(
            x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=tint, opacity=picked()
        ),
        ranked.mark_point(filled=True, size=80).encode(
            x=x, y=y, color=tint, shape=shape(style), opacity=picked(), tooltip=hints
        ),
    ).properties(width=WIDTH, height=280)


def _intervals(frame: pl.DataFrame, title: str, style: Style) -> alt.LayerChart:
    arms = [name for name in style.looks if name in set(frame["arm"])]
    plot = alt.Chart(data(frame.drop("rank", "number", "column"))).transform_filter(GROUP_FILTER)
    y = alt.Y("task:N", sort=list(dict.fromkeys(frame["task"])), title=None, axis=alt.Axis(labelLimit=130, grid=True))
    offset = alt.YOffset("arm:N", sort=arms, scale=alt.Scale(paddingOuter=0.6))
    x = alt.X("value:Q", title=f"Difference, {title.split(', ')[1]}; right is better")
    tint, spacing = colour(style), 10 if len(arms) <= _MANY_ARMS else 7
    return alt.layer(
        alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=INK, opacity=0.5).encode(x="zero:Q"),
        plot.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q"), x2="high:Q", y=y, yOffset=offset, color=tint, opacity=picked()
        ),
        plot.mark_point(filled=True, size=42).encode(
            x=x, y=y, yOffset=offset, color=tint, shape=shape(style), opacity=picked(), tooltip=tooltips(**_HINTS)
        ),
    ).properties(width=WIDTH, height=frame["task"].n_unique() * (14 + spacing * len(arms)))
