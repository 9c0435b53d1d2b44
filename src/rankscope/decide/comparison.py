"""Every arm against the base on every task and category: the numbers that tables and figures are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from rankscope.decide.differences import TaskScores, from_base, shared_seeds
from rankscope.decide.standing import interval
from rankscope.records import TaskComparison
from rankscope.statistics import Estimate, holm, mcnemar_exact

MIN_CATEGORY_ITEMS = 5
MAX_CATEGORIES = 60


def compare_tasks(
    tasks: Sequence[TaskScores], rates: Mapping[str, float], confidence: float, names: tuple[str, str]
) -> tuple[list[TaskComparison], pl.DataFrame]:
    """Compare every arm with the base, on whole tasks and within their categories.

    Args:
        tasks: The scores; arms that are missing on a task are missing in the result.
        rates: The chosen rate of each arm.
        confidence: Of each interval, by itself; p-values are corrected over their family.
        names: The base's and the training set's name.

    Returns:
        The comparisons, and the same with each seed's difference as a tidy table.
    """
    rows: list[TaskComparison] = []
    extras: list[dict[str, object]] = []
    for task in tasks:
        for category, part in [(None, task), *_categories(task)]:
            for arm, result in from_base([part], [arm for arm in rates if arm in part.tuned], confidence).items():
                rows.append(_comparison(part, category, arm, rates[arm], result, names))
                extras.append(_extra(part, arm, result))
    corrected = _with_holm(rows)
    return corrected, _tidy(corrected, extras)


def _categories(task: TaskScores) -> list[tuple[str, TaskScores]]:
    """The categories with enough items, unless there is only one or there are too many to look at."""
    if task.categories is None:
        return []
    found, counts = np.unique([name for name in task.categories if name is not None], return_counts=True)
    large = [str(name) for name, count in zip(found, counts, strict=True) if count >= MIN_CATEGORY_ITEMS]
    if not 2 <= len(large) <= MAX_CATEGORIES:
        return []
    return [(name, task.select(task.categories == name)) for name in large]


def _comparison(
    part: TaskScores, category: str | None, arm: str, rate: float, result: Estimate, names: tuple[str, str]
) -> TaskComparison:
    lost = gained = p_value = None
    if part.unit == "accuracy":
        flips = part.flips(arm, shared_seeds([part], arm)[0])
        lost, gained = flips.lost, flips.gained
        p_value = mcnemar_exact(flips.clusters_lost, flips.clusters_gained)
    sign = 1.0 if part.unit == "accuracy" else -1.0
    return TaskComparison(
        base=names[0],
        training_set=names[1],
        arm=arm,
        learning_rate=rate,
        task=part.task,
        category=category,
        relation=part.relation,
        unit=part.unit,
        base_value=part.base_value,
        tuned_value=part.base_value + sign * result.value,
        difference=interval(result),
        num_lost=lost,
        num_gained=gained,
        p_value=p_value,
    )


def _with_holm(rows: Sequence[TaskComparison]) -> list[TaskComparison]:
    """Correct the p-values: whole tasks of one relation over all arms are a family, a task's categories another."""
    families: dict[tuple[str, bool], list[int]] = {}
    for index, row in enumerate(rows):
        if row.p_value is not None:
            key = (row.relation, False) if row.category is None else (row.task, True)
            families.setdefault(key, []).append(index)
    corrected = list(rows)
    for members in families.values():
        for index, p_value in zip(members, holm([rows[index].p_value for index in members]), strict=True):
            corrected[index] = rows[index].model_copy(update={"p_holm": p_value})
    return corrected


def _extra(part: TaskScores, arm: str, result: Estimate) -> dict[str, object]:
    return {
        "seed_sd": result.seeds.variance**0.5 if result.seeds else None,
        "seeds": shared_seeds([part], arm),
        "seed_differences": list(result.spread.seed_means),
    }


def _tidy(rows: Sequence[TaskComparison], extras: Sequence[dict[str, object]]) -> pl.DataFrame:
    """One row a comparison; `seed_sd` is the noise floor: how far a difference moves by the seed alone."""
    flat = []
    for row, extra in zip(rows, extras, strict=True):
        values = row.model_dump()
        difference = values.pop("difference")
        flat.append({**values, "difference": difference.pop("value"), **difference, **extra})
    return pl.DataFrame(flat, schema=_SCHEMA)


_SCHEMA = {
    "base": pl.String,
    "training_set": pl.String,
    "arm": pl.String,
    "learning_rate": pl.Float64,
    "task": pl.String,
    "category": pl.String,
    "relation": pl.String,
    "unit": pl.String,
    "base_value": pl.Float64,
    "tuned_value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "confidence": pl.Float64,
    "num_items": pl.Int64,
    "num_seeds": pl.Int64,
    "num_lost": pl.Int64,
    "num_gained": pl.Int64,
    "p_value": pl.Float64,
    "p_holm": pl.Float64,
    "seed_sd": pl.Float64,
    "seeds": pl.List(pl.Int64),
    "seed_differences": pl.List(pl.Float64),
}
