"""What several figures say of an arm's standing: the titles of gain and forgetting, and their numbers as drawn."""

from __future__ import annotations

import polars as pl

from rankscope.report.wording import amount_of, evidence, rate, scaled
from rankscope.spec import Decide

TITLES = {
    "gain": "Learned: in-domain accuracy gained, points",
    "gain_nats": "Learned: in-domain loss removed, nats per token",
    "forgetting": "Forgotten: retention accuracy lost, points",
    "forgetting_nats": "Forgotten: retention loss added, nats per token",
}
SHORT = {
    "gain": "Learned (accuracy)",
    "gain_nats": "Learned (loss)",
    "forgetting": "Forgotten (accuracy)",
    "forgetting_nats": "Forgotten (loss on text)",
}


def present(arms: pl.DataFrame) -> set[str]:
    """The measures that some arm other than the base has."""
    return set(arms.filter(pl.col("arm") != "base")["measure"])


def budget_of(settings: Decide | None, measure: str) -> float | None:
    """The accepted forgetting on the scale of the plots, or None where the measure has no budget."""
    if settings is None:
        return None
    return {"forgetting": 100 * settings.forgetting_budget, "forgetting_nats": settings.forgetting_budget_nats}.get(
        measure
    )


def worded(frame: pl.DataFrame, measure: str) -> pl.DataFrame:
    """The frame with values on the scale of the plots, and with what a tooltip says of each number."""
    rows = frame.rows(named=True)
    texts = [amount_of(row["value"], row["low"], row["high"], measure) for row in rows]
    names = ("confidence", "num_items", "num_seeds", "source", "seeds_part")
    rests = [evidence(*(row[name] for name in names)) for row in rows]
    return frame.with_columns(
        *(pl.col(name).map_elements(lambda x: scaled(x, measure), pl.Float64) for name in ("value", "low", "high")),
        pl.Series("shown", texts, dtype=pl.String),
        pl.Series("evidence", rests, dtype=pl.String),
    )


def with_rates(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with its learning rates in words."""
    return frame.with_columns(pl.Series("rate", [rate(value) for value in frame["learning_rate"]], dtype=pl.String))


def shown(frame: pl.DataFrame, measure: str) -> pl.DataFrame:
    """An arm's numbers as they are drawn."""
    drawn = with_rates(worded(frame, measure))
    return drawn.select("group", "arm", "rank", "value", "low", "high", "shown", "evidence", "rate")
