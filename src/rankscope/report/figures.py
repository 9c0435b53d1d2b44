"""The report's figures in its order: each a sentence, how to read it, what not to conclude, and its panels."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from rankscope.plan import Plan
from rankscope.report.causes_figures import derived_figure, explanation_figure
from rankscope.report.contents import Contents
from rankscope.report.derived import sentences
from rankscope.report.figure import Figure, Panel
from rankscope.report.inside_figures import module_figure, spectra_figure, subspace_figure
from rankscope.report.layer_figures import attention_figure, neuron_figure, representation_figure
from rankscope.report.marks import Style
from rankscope.report.palette import looks
from rankscope.report.rank_figures import rank_figure, rate_figure
from rankscope.report.run_figures import cost_figure, loss_figure
from rankscope.report.scatter_figure import glances, tradeoff_figure
from rankscope.report.task_figures import differences_figure, matrix_figure, one_task_figure


def make_figures(tables: Mapping[str, pl.DataFrame], contents: Contents) -> dict[str, Figure]:
    """All figures that the records allow, by key, in the report's order; what cannot be drawn is not in it."""
    style = Style(looks(contents.plan))
    names = group_names(contents)
    grouped = {name: _with_group(table, names) for name, table in tables.items()}
    cuts = sentences(tables["derived"])
    made = (
        tradeoff_figure(grouped["arms"], grouped["derived"], contents.settings, style),
        rank_figure(grouped["arms"], grouped["derived"], contents.settings, style),
        rate_figure(grouped["rates"], style),
        matrix_figure(grouped["comparisons"], contents.settings, style),
        one_task_figure(grouped["comparisons"], style),
        differences_figure(grouped["comparisons"], style),
        module_figure(grouped["spectra_by_module"], style),
        spectra_figure(grouped["spectra_by_arm"], style),
        subspace_figure(grouped["spectra_by_arm"], style),
        attention_figure(grouped["attention_by_layer"], style),
        representation_figure(grouped["representations_by_layer"], style),
        neuron_figure(grouped["neurons_by_layer"], style),
        explanation_figure(grouped["explanations"], leaves_candidates=_leaves_candidates(contents.plan)),
        derived_figure(grouped["derived"], style, {names[pair]: said for pair, said in cuts.items()}),
        cost_figure(grouped["runs"], style),
        loss_figure(grouped["losses"], grouped["validations"], style),
    )
    return {figure.key: figure for figure in made if figure is not None}


def make_glances(tables: Mapping[str, pl.DataFrame], contents: Contents) -> dict[str, Panel]:
    """By group, the small picture that stands beside its verdict; none where nothing was compared."""
    arms = _with_group(tables["arms"], group_names(contents))
    return glances(arms, contents.settings, Style(looks(contents.plan)))


def group_names(contents: Contents) -> dict[tuple[str, str], str]:
    """By base and training set, what a reader calls the two: the base is named only where there are several."""
    pairs = dict.fromkeys((run.base.name, run.training_set.name) for run in contents.plan.runs)
    several = len(contents.plan.bases) > 1
    return {(base, name): f"{name} on {base}" if several else name for base, name in pairs}


def _leaves_candidates(plan: Plan) -> bool:
    """Whether arms were trained at rates that are not scored."""
    rates: dict[str, set[float]] = {}
    for run in plan.runs:
        rates.setdefault(run.arm.label, set()).add(run.learning_rate)
    return not plan.scores_all_candidates and any(len(tried) > 1 for tried in rates.values())


def _with_group(table: pl.DataFrame, names: Mapping[tuple[str, str], str]) -> pl.DataFrame:
    """A table with the group of each row; rows of the base itself belong to every group of that base."""
    if not {"base", "training_set"} <= set(table.columns):
        return table
    rows = [{"base": base, "training_set": training_set, "group": name} for (base, training_set), name in names.items()]
    mapping = pl.DataFrame(rows, schema=dict.fromkeys(("base", "training_set", "group"), pl.String))
    of_runs = table.drop("group", strict=False).join(mapping, on=["base", "training_set"], how="inner",
                                                     maintain_order="left")  # fmt: skip
    of_base = table.drop("group", strict=False).filter(pl.col("training_set").is_null()).drop("training_set")
    of_base = of_base.join(mapping, on="base", how="inner")
    return pl.concat([of_runs, of_base.select(of_runs.columns)])
