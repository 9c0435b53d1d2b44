"""What a study's tables say of the claims of arXiv 2512.15634: supported, contradicted, or undecided.

A claim is supported where intervals lie wholly on its side of the study's own limits, contradicted where they lie
wholly on the other, and undecided in every other case. Intervals are the report's, each by itself; nothing is corrected
for how many are looked at, so one that only just clears its limit is weak evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

Status = Literal["supported", "contradicted", "undecided"]
FULL = "full"
MIDDLE = (32, 64)  # the ranks that the paper calls balanced
_THIRDS = ("lower", "middle", "upper")


@dataclass(frozen=True)
class Difference:
    """One arm less another: in gains, above zero is to the credit of the first; in forgetting, below zero is."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sweep:
    """One training set's arms and how they differ.

    Attributes:
        ranks: Of the LoRA arms, by label, lowest first.
        score: The measure that arms are compared by, `gain` or `gain_nats`.
        margin: The difference in the score that does not matter.
        budgets: The forgetting that is accepted, by measure.
        pairs: Table `pairs` of this training set.
        arms: Table `arms` of this training set.
    """

    ranks: Mapping[str, int]
    score: str
    margin: float
    budgets: Mapping[str, float]
    pairs: pl.DataFrame
    arms: pl.DataFrame

    def difference(self, arm: str, rival: str, measure: str) -> Difference | None:
        """One arm less another, whichever way round the table has it; None where the table has no interval."""
        for first, second, sign in ((arm, rival, 1.0), (rival, arm, -1.0)):
            names = (pl.col("arm") == first) & (pl.col("rival") == second) & (pl.col("measure") == measure)
            rows = self.pairs.filter(names & pl.col("low").is_not_null())
            if rows.height:
                row = rows.row(0, named=True)
                ends = sorted((sign * row["low"], sign * row["high"]))
                return Difference(sign * row["value"], ends[0], ends[1])
        return None

    def of_arm(self, arm: str, measure: str) -> Difference | None:
        """An arm's own gain or forgetting."""
        rows = self.arms.filter((pl.col("arm") == arm) & (pl.col("measure") == measure) & pl.col("low").is_not_null())
        return Difference(*rows.select("value", "low", "high").row(0)) if rows.height else None


def sweep_of(tables: Mapping[str, pl.DataFrame], training_set: str, decide: Mapping[str, float]) -> Sweep:
    """One training set's part of a study's tables.

    Args:
        tables: `arms` and `pairs`.
        training_set: Its name.
        decide: The study file's section of that name.
    """
    arms, pairs = (tables[name].filter(pl.col("training_set") == training_set) for name in ("arms", "pairs"))
    ranked = arms.filter(pl.col("rank").is_not_null()).unique("arm").sort("rank")
    has_answers = "gain" in arms["measure"]
    return Sweep(
        ranks=dict(ranked.select("arm", "rank").iter_rows()),
        score="gain" if has_answers else "gain_nats",
        margin=decide["margin"] if has_answers else decide["margin_nats"],
        budgets={"forgetting": decide["forgetting_budget"], "forgetting_nats": decide["forgetting_budget_nats"]},
        pairs=pairs,
        arms=arms,
    )


def is_learned(sweep: Sweep) -> bool:
    """Whether some arm surely learned something: where none did, that arms are alike says nothing of them."""
    found = _known(sweep.of_arm(arm, sweep.score) for arm in (FULL, *sweep.ranks))
    return any(item.low > 0 for item in found)


def is_bracketed(sweep: Sweep) -> bool:
    """Whether ranks below and above the middle ones were trained: without both nothing shows a peak."""
    ranks = sweep.ranks.values()
    return min(ranks) < MIDDLE[0] and max(ranks) > MIDDLE[1]


def competitive(sweep: Sweep) -> Status:
    """LoRA at some rank learns as much as full fine-tuning, within the margin."""
    if not is_learned(sweep):
        return "undecided"
    found = _known(sweep.difference(arm, FULL, sweep.score) for arm in sweep.ranks)
    if any(item.low >= -sweep.margin for item in found):
        return "supported"
    return "contradicted" if found and all(item.high < -sweep.margin for item in found) else "undecided"


def better_than_full(sweep: Sweep) -> list[str]:
    """The LoRA arms that surely learn more than full fine-tuning."""
    found = {arm: sweep.difference(arm, FULL, sweep.score) for arm in sweep.ranks}
    return [arm for arm, item in found.items() if item is not None and item.low > 0]


def balanced(sweep: Sweep) -> Status:
    """A middle rank surely learns more or surely forgets less than every rank that is lower or higher.

    Contradicted where one of those surely does as well as every middle rank, within the margin and the budgets.
    """
    inner, outer = _inner_and_outer(sweep)
    if not inner or not outer or not is_learned(sweep):
        return "undecided"
    if is_bracketed(sweep) and any(all(_surely_ahead(sweep, arm, other) for other in outer) for arm in inner):
        return "supported"
    return "contradicted" if any(all(_as_good(sweep, o, arm) for arm in inner) for o in outer) else "undecided"


def flat(sweep: Sweep) -> Status:
    """No two ranks differ in what they learn by more than the margin."""
    if not is_learned(sweep):
        return "undecided"
    names = list(sweep.ranks)
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    found = _known(sweep.difference(a, b, sweep.score) for a, b in pairs)
    if any(item.low > sweep.margin or item.high < -sweep.margin for item in found):
        return "contradicted"
    is_within = all(-sweep.margin <= item.low and item.high <= sweep.margin for item in found)
    return "supported" if found and len(found) == len(pairs) and is_within else "undecided"


def peaked(sweep: Sweep) -> Status:
    """A middle rank surely learns more than every lower or higher one; contradicted where one of those does."""
    inner, outer = _inner_and_outer(sweep)

    def leads(ahead: Sequence[str], behind: Sequence[str]) -> bool:
        found = {arm: [sweep.difference(arm, other, sweep.score) for other in behind] for arm in ahead}
        return any(items and all(item is not None and item.low > 0 for item in items) for items in found.values())

    if is_bracketed(sweep) and leads(inner, outer):
        return "supported"
    return "contradicted" if leads(outer, inner) else "undecided"


def keeps_knowledge(sweep: Sweep) -> Status:
    """Every LoRA arm forgets no more than the budgets; contradicted where one surely forgets more."""
    standings = [_kept(sweep, arm) for arm in sweep.ranks]
    if "contradicted" in standings:
        return "contradicted"
    return "supported" if standings and set(standings) == {"supported"} else "undecided"


def keeps_elsewhere(comparisons: pl.DataFrame, arms: Iterable[str], margin: float) -> Status:
    """No arm is worse than the base by more than the margin on a task out of domain that has right answers."""
    rows = comparisons.filter(
        pl.col("arm").is_in(list(arms))
        & (pl.col("relation") == "out_of_domain")
        & pl.col("category").is_null()
        & (pl.col("unit") == "accuracy")
    )
    if (rows["high"] < -margin).any():
        return "contradicted"
    return "supported" if rows.height and bool((rows["low"] >= -margin).fill_null(value=False).all()) else "undecided"


def grows_with_rank(norms: pl.DataFrame) -> Status:
    """The update's norm grows with the logarithm of the rank, at one learning rate.

    Args:
        norms: One row a LoRA arm: `rank`, `learning_rate`, `value`, and over seeds `lowest` and `highest`.
    """
    rows = norms.sort("rank")
    if rows["learning_rate"].n_unique() != 1 or rows.height < 3:
        return "undecided"
    first, last = rows.row(0, named=True), rows.row(-1, named=True)
    if last["highest"] <= first["lowest"]:
        return "contradicted"
    values, ranks = rows["value"].to_numpy(), rows["rank"].to_numpy().astype(float)
    is_growing = last["lowest"] > first["highest"] and bool((np.diff(values) > 0).all())
    return "supported" if is_growing and fit(np.log2(ranks), values) > fit(ranks, values) else "undecided"


def fit(x: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of y that a straight line in x leaves nothing of (R squared)."""
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def thirds(by_module: pl.DataFrame) -> pl.DataFrame:
    """The relative update norm of each arm in the lower, middle and upper third of the layers, mean over matrices.

    Args:
        by_module: Table `spectra_by_module` of one training set.
    """
    rows = by_module.filter((pl.col("measure") == "update_norm_relative") & pl.col("layer").is_not_null())
    count = int(rows["layer"].max() or 0) + 1
    third = (3 * pl.col("layer") // count).clip(0, 2).cast(pl.Int64)
    means = rows.group_by("arm", third.alias("third"), maintain_order=True).agg(pl.col("value").mean())
    wide = means.pivot("third", index="arm", values="value", maintain_order=True)
    return wide.rename({str(index): name for index, name in enumerate(_THIRDS)}).select("arm", *_THIRDS)


def upper_layers_change_most(parts: pl.DataFrame) -> Status:
    """In every arm the lower third changed least; contradicted where it did in none."""
    is_least = parts["lower"] < parts.select(pl.min_horizontal("middle", "upper")).to_series()
    return "supported" if is_least.all() else "undecided" if is_least.any() else "contradicted"


def _known(found: Iterable[Difference | None]) -> list[Difference]:
    return [item for item in found if item is not None]


def _inner_and_outer(sweep: Sweep) -> tuple[list[str], list[str]]:
    inner = [arm for arm, rank in sweep.ranks.items() if rank in MIDDLE]
    return inner, [arm for arm in sweep.ranks if arm not in inner]


def _surely_ahead(sweep: Sweep, arm: str, other: str) -> bool:
    gain = sweep.difference(arm, other, sweep.score)
    lost = [sweep.difference(arm, other, measure) for measure in sweep.budgets]
    return (gain is not None and gain.low > 0) or any(item is not None and item.high < 0 for item in lost)


def _as_good(sweep: Sweep, arm: str, other: str) -> bool:
    gain = sweep.difference(arm, other, sweep.score)
    lost = {measure: sweep.difference(arm, other, measure) for measure in sweep.budgets}
    keeps = all(item is not None and item.high <= sweep.budgets[measure] for measure, item in lost.items())
    return gain is not None and gain.low >= -sweep.margin and keeps


def _kept(sweep: Sweep, arm: str) -> Status:
    lost = {measure: sweep.of_arm(arm, measure) for measure in sweep.budgets}
    if any(item is not None and item.low > sweep.budgets[measure] for measure, item in lost.items()):
        return "contradicted"
    is_kept = all(item is not None and item.high <= sweep.budgets[measure] for measure, item in lost.items())
    return "supported" if is_kept else "undecided"
