"""The same settings in several studies: what each learned and forgot, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl

from rankscope.report.across import Study, setting_in_words
from rankscope.report.figure import Figure, Panel
from rankscope.report.marks import INK, WIDTH, Style, data, picked, specification, tooltips
from rankscope.report.palette import Look, several_looks
from rankscope.report.standings import SHORT, TITLES, with_rates, worded
from rankscope.report.tables import pooled

_AIR = 12  # pixels


def standings(studies: Sequence[Study]) -> pl.DataFrame:
    """One row a study, setting and measure: what the arm learned or forgot there, with its interval and file."""
    schema = {
        "arm": pl.String, "study": pl.String, "base": pl.String, "training_set": pl.String, "setting": pl.String,
        "measure": pl.String, "learning_rate": pl.Float64, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64,
        "confidence": pl.Float64, "num_items": pl.Int64, "num_seeds": pl.Int64, "source": pl.String,
    }  # fmt: skip
    frames = [pooled(pl.DataFrame(list(_rows(study)), schema=schema)) for study in studies]
    return pl.concat(frames) if frames else pooled(pl.DataFrame(schema=schema))


def across_looks(found: pl.DataFrame) -> dict[str, Look]:
    """A look for each verdict of each study, by its name."""
    return several_looks(list(dict.fromkeys(found["arm"])))


def across_figure(found: pl.DataFrame) -> Figure | None:
    """What the same settings learned and forgot in each study; None where no study has a verdict."""
    panels = []
    style = Style(across_looks(found))
    shared = found.group_by("setting").agg(pl.col("arm").n_unique()).filter(pl.col("arm") > 1)["setting"]
    if shared.len():
        found = found.filter(pl.col("setting").is_in(shared.to_list()))
    settings = list(dict.fromkeys(found["setting"]))
    for measure, title in TITLES.items():
        part = found.filter(pl.col("measure") == measure)
        if part.is_empty():
            continue
        what, unit = title.split(": ")
        better = "right is better" if what == "Learned" else "left is better"
        label = f"Interval plot: {title}, by setting, one mark a study."
        chart = specification(_dots(part, settings, style))
        panels.append(Panel(SHORT[measure], label, chart, unit=f"{unit}; {better}"))
    if not panels:
        return None
    return Figure(
        key="across",
        title="The same settings, study by study",
        shows="What each setting learned and forgot in each study, at the rate that was chosen there, with its "
        "interval" + ("; settings that only one verdict has are left out." if shared.len() else "."),
        reading="Marks of one setting that lie together: the studies agree on it. Apart, with intervals that do not "
        "overlap: the base, the data or the change between the studies matters for it.",
        caution="Studies may have had other items, tasks and rates; only what is the same in both of them is "
        "compared by this plot. Overlapping intervals do not show that two are equal.",
        panels=panels,
        measures=tuple(dict.fromkeys(found["measure"])),
        sources=("*/decide/record.json", "tables/standings.csv"),
    )


def _rows(study: Study) -> Iterable[dict[str, Any]]:
    decision, plan = study.contents.decision, study.contents.plan
    arms = {run.arm.label: run.arm for run in plan.runs}
    verdicts = decision.verdicts if decision is not None else ()
    for verdict in verdicts:
        parts = [verdict.training_set] if len(plan.relations) > 1 else []
        parts += [f"on {verdict.base}"] if len(plan.bases) > 1 else []
        name = f"{study.name}: {' '.join(parts)}" if parts else study.name
        for result in verdict.arms:
            for measure in TITLES:
                interval = dict(result)[measure]
                if interval is None or result.arm not in arms:
                    continue
                yield {
                    "arm": name, "study": study.name, "base": verdict.base, "training_set": verdict.training_set,
                    "setting": setting_in_words(arms[result.arm]), "measure": measure,
                    "learning_rate": result.learning_rate, **interval.model_dump(),
                    "source": f"{study.name}/decide/record.json",
                }  # fmt: skip


def _dots(part: pl.DataFrame, settings: Sequence[str], style: Style) -> alt.LayerChart:
    drawn = with_rates(worded(part, part["measure"][0]))
    shown = drawn.select("arm", "setting", "value", "low", "high", "shown", "rate", "evidence")
    plot, names = alt.Chart(data(shown)), list(style.looks)
    looks = style.looks.values()
    y = alt.Y("setting:N", sort=list(settings), title=None, axis=alt.Axis(labelLimit=260, grid=True))
    offset = alt.YOffset("arm:N", sort=names, scale=alt.Scale(paddingOuter=0.5))
    tint = alt.Color("arm:N", legend=None, scale=alt.Scale(domain=names, range=[look.colour for look in looks]))
    form = alt.Shape("arm:N", legend=None, scale=alt.Scale(domain=names, range=[look.shape for look in looks]))
    hints = tooltips(arm="Study", setting="Setting", rate="Rate", shown="Value", evidence="Rests on")
    # With air at both ends, or an interval as wide as the plot would seem to run out of it.
    x = alt.X("x:Q", title=None, scale=alt.Scale(padding=_AIR))
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=INK, opacity=0.5).encode(x=x)
    end = plot.mark_tick(orient="vertical", size=9, thickness=2, aria=False)
    ends = [
        end.encode(x=alt.X(f"{name}:Q", title=None), y=y, yOffset=offset, color=tint, opacity=picked())
        for name in ("low", "high")
    ]
    return alt.layer(
        zero,
        *ends,
        plot.mark_rule(strokeWidth=2, aria=False).encode(
            x=alt.X("low:Q", title=None), x2="high:Q", y=y, yOffset=offset, color=tint, opacity=picked()
        ),
        plot.mark_point(filled=True, size=60).encode(
            x=alt.X("value:Q", title=None), y=y, yOffset=offset, color=tint, shape=form, opacity=picked(), tooltip=hints
        ),
    ).properties(width=WIDTH, height=part["setting"].n_unique() * (16 + 12 * len(names)))
