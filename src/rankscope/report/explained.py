"""What goes with forgetting over the runs of a study: correlations of each run's measures with what it forgot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from rankscope.correlations import Correlation, correlate
from rankscope.report.contents import Contents
from rankscope.runs import RunSettings

# What might explain, in the report's order; from the arm, or from the summaries of a run's analyses.
PREDICTORS = (
    "rank", "learning_rate", "update_norm", "intruder_dimensions", "rho_16", "rho_128", "cka", "attention_divergence",
)  # fmt: skip
TARGETS = ("forgetting", "forgetting_nats")
_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "target": pl.String, "predictor": pl.String, "given": pl.String,
    "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "confidence": pl.Float64, "num_candidates": pl.Int64,
    "num_runs": pl.Int64, "source": pl.String,
}  # fmt: skip
_RUNS_SCHEMA = {
    "base": pl.String, "training_set": pl.String, "arm": pl.String, "run_id": pl.String, "learning_rate": pl.Float64,
    "seed": pl.Int64, **dict.fromkeys((*PREDICTORS[:1], *PREDICTORS[2:], *TARGETS), pl.Float64), "source": pl.String,
}  # fmt: skip


def explaining_runs(contents: Contents) -> pl.DataFrame:
    """Every scored run with what it forgot and what might explain it; null where something is not known."""
    scores: dict[tuple[str, str | None], dict[str, dict[str, float]]] = {}
    for one in contents.scored:
        subject = one.record.subject
        if one.record.status == "complete":
            scores.setdefault((subject.base, subject.run_id), {})[one.record.task] = one.record.values
    summaries: dict[str | None, dict[str, float]] = {}
    for one in contents.analysed:
        summaries.setdefault(one.record.subject.run_id, {}).update(one.record.summary)
    rows = []
    for run in contents.plan.runs:
        base, tuned = scores.get((run.base.name, None), {}), scores.get((run.base.name, run.run_id), {})
        lost = _forgotten(contents, run, base, tuned)
        if lost:
            rows.append({**_described(run, summaries.get(run.run_id, {})), **lost})
    return pl.DataFrame([{**dict.fromkeys(_RUNS_SCHEMA), **row} for row in rows], schema=_RUNS_SCHEMA)


def explanations(contents: Contents) -> pl.DataFrame:
    """The rank correlation of forgetting with each measure, plain, and at equal size of the update."""
    confidence = contents.settings.confidence if contents.settings else 0.95
    rows = []
    for (base, training_set), runs in explaining_runs(contents).group_by("base", "training_set", maintain_order=True):
        place = {"base": base, "training_set": training_set, "source": runs["source"][0]}
        for target in TARGETS:
            for predictor in PREDICTORS:
                for given in (None, "update_norm"):
                    found = None if given == predictor else _correlation(runs, predictor, target, given, confidence)
                    if found is not None:
                        rows.append({**place, "target": target, "predictor": predictor, "given": given, **vars(found)})
    return pl.DataFrame(rows, schema=_SCHEMA)


def _correlation(
    runs: pl.DataFrame, predictor: str, target: str, given: str | None, confidence: float
) -> Correlation | None:
    names = [predictor, target, *([given] if given else [])]
    known = runs.drop_nulls(names)
    groups = list(known.select("arm", "learning_rate").iter_rows())
    held = None if given is None else known[given].to_list()
    return correlate(groups, known[predictor].to_list(), known[target].to_list(), confidence, held)


def _described(run: RunSettings, summary: Mapping[str, float]) -> dict[str, Any]:
    measures = {key: value for key in PREDICTORS[2:] if math.isfinite(value := summary.get(key, math.nan))}
    return {
        "base": run.base.name,
        "training_set": run.training_set.name,
        "arm": run.arm.label,
        "run_id": run.run_id,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "rank": None if run.arm.rank is None else float(run.arm.rank),
        **measures,
        "source": f"runs/{run.run_id}/train/record.json",
    }


def _forgotten(
    contents: Contents, run: RunSettings, base: Mapping[str, Any], tuned: Mapping[str, Any]
) -> dict[str, float]:
    """The means over retention tasks of what was lost: accuracy where there are answers, else nats per token."""
    relations = contents.plan.relations[run.training_set.name]
    lost: dict[str, list[float]] = {}
    for task, settings in contents.plan.tasks[run.base.name].items():
        if relations[task] != "retention" or task not in base or task not in tuned:
            continue
        is_text = settings.scoring == "loss"
        key, sign = ("loss_nats_per_token", 1.0) if is_text else ("accuracy", -1.0)
        if key in base[task] and key in tuned[task]:
            change = sign * (tuned[task][key] - base[task][key])
            lost.setdefault("forgetting_nats" if is_text else "forgetting", []).append(change)
    return {key: sum(values) / len(values) for key, values in lost.items()}
