"""The forecast of ranks held against what the study measured: what was expected, what came, from which file."""

from __future__ import annotations

import statistics
from typing import Any

import polars as pl

from rankscope.records import ForecastRecord, Verdict
from rankscope.report.contents import Contents

_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "question": pl.String, "forecast": pl.String, "measured": pl.String,
    "source": pl.String, "measured_source": pl.String,
}  # fmt: skip
_NOT_YET = "not measured"


def forecast_table(contents: Contents) -> pl.DataFrame:
    """One row a question of a forecast, with its answer before training and after; empty where none was made."""
    rows = []
    for record in contents.forecasts:
        source = f"base/{record.base}/forecast/{record.training_set}/record.json"
        verdicts = contents.decision.verdicts if contents.decision else ()
        key = (record.base, record.training_set)
        verdict = next((item for item in verdicts if (item.base, item.training_set) == key), None)
        for question, expected, measured, measured_source in _questions(contents, record, verdict):
            rows.append((*key, question, expected, measured, source, measured_source))
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _questions(contents: Contents, record: ForecastRecord, verdict: Verdict | None) -> list[tuple[str, str, str, str]]:
    ranks = _gains(verdict)
    margin = _margin(contents, verdict)
    decide, spectra = "decide/record.json", "runs/*/analyse/spectra/matrices.parquet"
    return [
        ("ranks worth trying", ", ".join(map(str, record.ranks_to_try)), _good_ranks(ranks, margin), decide),
        (
            "ranks too small for the training set",
            f"those below {record.capacity_rank}",
            f"worse than the margin: {_listed(_behind(ranks, margin))}" if ranks and margin is not None else _NOT_YET,
            decide,
        ),
        (
            "directions that hold 90% of a matrix's update, in the median matrix",
            f"{record.energy_rank_90_median} (of the first gradient)",
            _energy_rank(contents, record),
            spectra,
        ),
    ]


def _gains(verdict: Verdict | None) -> dict[int, float]:
    """By rank, the best gain of its arms: in accuracy, or in nats where no task in domain has right answers."""
    found: dict[int, float] = {}
    for arm in verdict.arms if verdict else ():
        gain = arm.gain or arm.gain_nats
        if arm.rank is not None and gain is not None:
            found[arm.rank] = max(gain.value, found.get(arm.rank, gain.value))
    return dict(sorted(found.items()))


def _margin(contents: Contents, verdict: Verdict | None) -> float | None:
    if contents.settings is None or verdict is None:
        return None
    is_accuracy = any(arm.gain is not None for arm in verdict.arms)
    return contents.settings.margin if is_accuracy else contents.settings.margin_nats


def _behind(ranks: dict[int, float], margin: float | None) -> list[int]:
    """The ranks that learned less than the best rank by more than the margin, as estimated."""
    best = max(ranks.values())
    return [rank for rank, gain in ranks.items() if margin is not None and gain < best - margin]


def _good_ranks(ranks: dict[int, float], margin: float | None) -> str:
    if not ranks or margin is None:
        return _NOT_YET
    left_behind = _behind(ranks, margin)
    good = [rank for rank in ranks if rank not in left_behind]
    return f"within the margin of the best of those tried: {_listed(good)}"


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks)) if ranks else "none"


def _energy_rank(contents: Contents, record: ForecastRecord) -> str:
    """Of the update with the most room: full fine-tuning where it was analysed, else the largest rank."""
    if contents.matrices.is_empty() or "energy_rank_90" not in contents.matrices.columns:
        return _NOT_YET
    runs = {run.run_id: run for run in contents.plan.runs}
    values: dict[tuple[float, str], list[Any]] = {}
    for run_id, value in contents.matrices.select("run_id", "energy_rank_90").drop_nulls().iter_rows():
        run = runs.get(run_id)
        is_mine = run is not None and (run.base.name, run.training_set.name) == (record.base, record.training_set)
        if is_mine and (run.arm.method == "full" or run.arm.rank is not None):
            room = float("inf") if run.arm.rank is None else float(run.arm.rank)
            values.setdefault((room, run.arm.label), []).append(value)
    if not values:
        return _NOT_YET
    (_, arm), found = max(values.items())
    return f"{statistics.median(found):g} (of {arm}'s update)"
