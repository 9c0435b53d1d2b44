"""Tables of the runs themselves: their state, their losses, and what went wrong."""

from __future__ import annotations

from typing import Any

import polars as pl

from rankscope.records import Divergence, Record, Subject, TrainRecord
from rankscope.report.contents import Contents
from rankscope.runs import RunSettings

_SETTINGS_SCHEMA = {
    "run_id": pl.String, "base": pl.String, "training_set": pl.String, "arm": pl.String, "method": pl.String,
    "rank": pl.Int64, "learning_rate": pl.Float64, "seed": pl.Int64, "is_chosen": pl.Boolean,
}  # fmt: skip

_DIVERGENCES: dict[Divergence | None, str] = {
    "loss_not_finite": "the loss stopped being finite",
    "gradient_not_finite": "the gradient stopped being finite",
    "loss_too_high": "the loss rose above twice that of guessing every token alike",
    None: "the loss left every bound",
}


def run_states(contents: Contents) -> pl.DataFrame:
    """Every run of the plan with its state, cost and final loss.

    A state is the record's status, or `waiting` where there is no record yet, or `not needed` where another rate
    was chosen before this seed's turn came, or no search asked for this rate; `left behind` where halving stopped it.
    """
    rows = []
    for run in contents.plan.runs:
        record = contents.trains.get(run.run_id)
        rows.append(
            {
                **_settings(contents, run),
                "state": _state(contents, run, record),
                "cause": "" if record is None else cause(record),
                "num_trainable": record and record.num_trainable,
                "num_parameters": record and record.num_parameters,
                "num_steps": record and record.num_steps,
                "num_tokens": record and record.num_tokens,
                "train_seconds": record and record.seconds,
                "peak_memory_bytes": record and record.peak_memory_bytes,
                "final_loss_nats_per_token": record and record.final_loss_nats_per_token,
                "settings_hash": run.settings_hash,
                "source": "plan.json" if record is None else f"runs/{run.run_id}/train/record.json",
            }
        )
    schema = {
        **_SETTINGS_SCHEMA, "state": pl.String, "cause": pl.String, "num_trainable": pl.Int64,
        "num_parameters": pl.Int64, "num_steps": pl.Int64, "num_tokens": pl.Int64, "train_seconds": pl.Float64,
        "peak_memory_bytes": pl.Int64, "final_loss_nats_per_token": pl.Float64, "settings_hash": pl.String,
        "source": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def run_losses(contents: Contents) -> pl.DataFrame:
    """The training loss of every step of the runs at chosen rates, and of those that diverged."""
    if contents.steps.is_empty():
        return pl.DataFrame(schema={**_SETTINGS_SCHEMA, "step": pl.Float64, "loss_nats_per_token": pl.Float64})
    wanted = [_settings(contents, run) for run in contents.plan.runs if _is_shown(contents, run)]
    columns = [name for name in ("run_id", "step", "loss_nats_per_token", "source") if name in contents.steps.columns]
    settings = pl.DataFrame(wanted, schema=_SETTINGS_SCHEMA)
    return settings.join(contents.steps.select(columns), on="run_id", how="inner", maintain_order="left_right")


def run_validations(contents: Contents) -> pl.DataFrame:
    """The validation losses during training of the runs at chosen rates."""
    rows = [
        {**_settings(contents, run), **point.model_dump(), "source": f"runs/{run.run_id}/train/record.json"}
        for run in contents.plan.runs
        if _is_shown(contents, run) and (record := contents.trains.get(run.run_id))
        for point in record.validations
    ]
    schema = {**_SETTINGS_SCHEMA, "step": pl.Int64, "loss_nats_per_token": pl.Float64, "source": pl.String}
    return pl.DataFrame(rows, schema=schema)


def troubles(contents: Contents) -> pl.DataFrame:
    """Everything that failed, diverged, was interrupted or cannot be read, each with its cause."""
    rows = []
    for run in contents.plan.runs:
        if record := contents.trains.get(run.run_id):
            rows.append(_trouble(run.run_id, "train", record, f"runs/{run.run_id}/train/record.json"))
    for one in contents.scored:
        rows.append(_trouble(_name(one.record.subject), f"evaluate {one.record.task}", one.record, one.source))
    for one in contents.analysed:
        rows.append(_trouble(_name(one.record.subject), f"analyse {one.record.analysis}", one.record, one.source))
    rows = [row for row in rows if row["status"] not in {"complete", "paused"}]
    for one in contents.missing:
        row = {"subject": one.subject, "stage": one.stage, "status": "missing", "cause": one.why, "detail": None}
        rows.append({**row, "source": one.source})
    names = ("subject", "stage", "status", "cause", "detail", "source")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String))


def cause(record: Record) -> str:
    """Why a record is not complete, in one sentence; empty where it is."""
    if record.error is not None:
        return f"{record.error.type}: {record.error.message}"
    if isinstance(record, TrainRecord) and record.status == "diverged":
        return f"{_DIVERGENCES[record.divergence]} at step {record.diverged_at_step}"
    return "stopped before it was done; the same command goes on from here" if record.status == "interrupted" else ""


def _trouble(subject: str, stage: str, record: Record, source: str) -> dict[str, Any]:
    return {
        "subject": subject,
        "stage": stage,
        "status": record.status,
        "cause": cause(record),
        "detail": record.error.traceback if record.error else None,
        "source": source,
    }


def _name(subject: Subject) -> str:
    return subject.run_id or f"{subject.base} (base)"


def _settings(contents: Contents, run: RunSettings) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "base": run.base.name,
        "training_set": run.training_set.name,
        "arm": run.arm.label,
        "method": run.arm.method,
        "rank": run.arm.rank,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "is_chosen": _chosen(contents, run) == run.learning_rate,
    }


def _chosen(contents: Contents, run: RunSettings) -> float | None:
    return contents.chosen_rate(*run.arm_key)


def _state(contents: Contents, run: RunSettings, record: TrainRecord | None) -> str:
    chosen = _chosen(contents, run)
    is_unchosen = chosen is not None and chosen != run.learning_rate
    if record is not None:
        return record.status if record.status != "paused" else "left behind" if is_unchosen else "waiting"
    is_extra = run.seed not in contents.plan.search_seeds or contents.plan.is_beyond(run)
    return "not needed" if is_extra and is_unchosen else "waiting"


def _is_shown(contents: Contents, run: RunSettings) -> bool:
    """Before rates are chosen every run is of interest; afterwards the chosen ones and those that diverged."""
    chosen = _chosen(contents, run)
    record = contents.trains.get(run.run_id)
    return chosen is None or chosen == run.learning_rate or (record is not None and record.status == "diverged")
