"""From records to tidy tables: one row a number, with its measure, n, interval and the file it came from."""

from __future__ import annotations

from typing import Any

import polars as pl

from rankscope.plan import VALIDATION
from rankscope.records import ARM_MEASURES, ArmResult, Interval
from rankscope.report.changed_neurons import changed_neurons
from rankscope.report.contents import Contents
from rankscope.report.derived import derived_models
from rankscope.report.explained import explaining_runs, explanations
from rankscope.report.forecast import forecast_table
from rankscope.report.inside import (
    attention_by_layer,
    neurons_by_layer,
    not_available,
    remarks,
    representations_by_layer,
    spectra_by_arm,
    spectra_by_module,
)
from rankscope.report.items import flipped_items
from rankscope.report.runs import run_losses, run_states, run_validations, troubles
from rankscope.report.wording import POOLED

DECIDE_FILE = "decide/record.json"
RATES_FILE = "decide/rates.json"


def make_tables(contents: Contents) -> dict[str, pl.DataFrame]:
    """Every table of the report by name; each is also written as report/tables/<name>.csv."""
    return {
        "arms": arms(contents),
        "pairs": pairs(contents),
        "rates": rates(contents),
        "comparisons": comparisons(contents),
        "scores": scores(contents),
        "separate_rows": separate_rows(contents),
        "flipped_items": flipped_items(contents),
        "spectra_by_arm": spectra_by_arm(contents),
        "spectra_by_module": spectra_by_module(contents),
        "attention_by_layer": attention_by_layer(contents),
        "representations_by_layer": representations_by_layer(contents),
        "neurons_by_layer": neurons_by_layer(contents),
        "changed_neurons": changed_neurons(contents),
        "derived": derived_models(contents),
        "explaining_runs": explaining_runs(contents),
        "explanations": explanations(contents),
        "not_available": not_available(contents),
        "remarks": remarks(contents),
        "runs": run_states(contents),
        "losses": run_losses(contents),
        "validations": run_validations(contents),
        "troubles": troubles(contents),
        "data": data_summaries(contents),
        "contamination": contamination(contents),
        "settings": differing_settings(contents),
        "forecast": forecast_table(contents),
    }


def _interval(interval: Interval | None) -> dict[str, Any]:
    return dict.fromkeys(_INTERVAL_SCHEMA) if interval is None else interval.model_dump()


def pooled(frame: pl.DataFrame) -> pl.DataFrame:
    """With `seeds_part`, whose seeds are in the intervals; null for the base, and where no arm has a second seed."""
    is_repeated = pl.col("num_seeds").max().over("base", "training_set") > 1
    words = pl.when(is_repeated & (pl.col("num_items") > 0)).then(pl.lit(POOLED))
    columns = [name for name in frame.columns if name != "source"]
    return frame.with_columns(words.alias("seeds_part")).select(*columns, "seeds_part", "source")


_INTERVAL_SCHEMA = {
    "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "confidence": pl.Float64,
    "num_items": pl.Int64, "num_seeds": pl.Int64,
}  # fmt: skip
_ARM_SCHEMA = {"base": pl.String, "training_set": pl.String, "arm": pl.String}


def arms(contents: Contents) -> pl.DataFrame:
    """Each arm's standing: one row for each of gain and forgetting that a verdict gives, the base itself included."""
    rows = []
    for verdict in contents.decision.verdicts if contents.decision else ():
        for arm in verdict.arms:
            for measure in (*ARM_MEASURES, "behind_best"):
                rows.append(
                    {
                        "base": verdict.base,
                        "training_set": verdict.training_set,
                        **_arm_fields(arm),
                        "measure": measure,
                        **_interval(dict(arm)[measure]),
                        "source": DECIDE_FILE,
                    }
                )
    schema = {
        **_ARM_SCHEMA, "method": pl.String, "rank": pl.Int64, "learning_rate": pl.Float64, "num_trainable": pl.Int64,
        "eligible": pl.String, "measure": pl.String, **_INTERVAL_SCHEMA, "source": pl.String,
    }  # fmt: skip
    return pooled(pl.DataFrame(rows, schema=schema).filter(pl.col("value").is_not_null()))


def _arm_fields(arm: ArmResult) -> dict[str, Any]:
    return arm.model_dump(include={"arm", "method", "rank", "learning_rate", "num_trainable", "eligible"})


def pairs(contents: Contents) -> pl.DataFrame:
    """Each arm less each other one, one row for each measure, paired by item and by seed."""
    rows = [
        {
            "base": verdict.base, "training_set": verdict.training_set, "arm": pair.arm, "rival": pair.rival,
            "measure": pair.measure, **_interval(pair.difference), "source": DECIDE_FILE,
        }
        for verdict in (contents.decision.verdicts if contents.decision else ())
        for pair in verdict.pairs
    ]  # fmt: skip
    schema = {**_ARM_SCHEMA, "rival": pl.String, "measure": pl.String, **_INTERVAL_SCHEMA, "source": pl.String}
    return pooled(pl.DataFrame(rows, schema=schema))


def rates(contents: Contents) -> pl.DataFrame:
    """The validation score and loss of every candidate, and which rate was chosen; null where it diverged."""
    rows = []
    for choice in contents.rates.choices:
        for rate, score in choice.scores.items():
            # A score that is a loss itself counts its tokens as the task does, so the two would not lie on one line.
            measured = {choice.score_key: score} | {"loss_nats_per_token": choice.losses.get(rate)}
            for measure, value in measured.items():
                if value is None and rate in choice.steps:
                    continue  # halving left it behind by its loss, and nothing was scored
                rows.append(
                    {
                        "base": choice.base,
                        "training_set": choice.training_set,
                        "arm": choice.arm,
                        "learning_rate": float(rate),
                        "measure": measure,
                        "value": value,
                        "is_chosen": choice.learning_rate is not None and float(rate) == choice.learning_rate,
                        "at_edge": choice.at_edge,
                        "after_step": choice.steps.get(rate),
                        "num_seeds": len(contents.plan.search_seeds),
                        "num_items": contents.plan.validation[choice.base][choice.training_set].num_items,
                        "source": RATES_FILE,
                    }
                )
    schema = {
        **_ARM_SCHEMA, "learning_rate": pl.Float64, "measure": pl.String, "value": pl.Float64, "is_chosen": pl.Boolean,
        "at_edge": pl.String, "after_step": pl.Int64, "num_seeds": pl.Int64, "num_items": pl.Int64, "source": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def comparisons(contents: Contents) -> pl.DataFrame:
    """Each arm against the base on each task and category: both values, the difference, its interval and test."""
    ranks = {run.arm.label: run.arm.rank for run in contents.plan.runs}
    rows = []
    for one in contents.decision.comparisons if contents.decision else ():
        rows.append(
            {
                **one.model_dump(exclude={"difference"}),
                "rank": ranks.get(one.arm),
                "measure": "accuracy" if one.unit == "accuracy" else "loss_nats_per_token",
                **_interval(one.difference),
                "source": DECIDE_FILE,
            }
        )
    schema = {
        **_ARM_SCHEMA, "rank": pl.Int64, "learning_rate": pl.Float64, "task": pl.String, "category": pl.String,
        "relation": pl.String, "measure": pl.String, "unit": pl.String, "base_value": pl.Float64,
        "tuned_value": pl.Float64, **_INTERVAL_SCHEMA, "num_lost": pl.Int64, "num_gained": pl.Int64,
        "p_value": pl.Float64, "p_holm": pl.Float64, "source": pl.String,
    }  # fmt: skip
    return pooled(pl.DataFrame(rows, schema=schema))


def scores(contents: Contents) -> pl.DataFrame:
    """Every value that an evaluation recorded, of each base and run, on tasks and validation items."""
    rows = []
    for scored in contents.scored:
        record, subject = scored.record, scored.record.subject
        for measure, value in record.values.items():
            rows.append(
                {
                    **subject.model_dump(),
                    "task": record.task,
                    "is_validation": record.task.startswith(VALIDATION),
                    "measure": measure,
                    "value": value,
                    "num_items": record.num_items,
                    "num_truncated": record.num_truncated,
                    "num_unfinished": record.num_unfinished,
                    "source": scored.source,
                }
            )
    schema = {
        "base": pl.String, "training_set": pl.String, "arm": pl.String, "learning_rate": pl.Float64, "seed": pl.Int64,
        "run_id": pl.String, "task": pl.String, "is_validation": pl.Boolean, "measure": pl.String, "value": pl.Float64,
        "num_items": pl.Int64, "num_truncated": pl.Int64, "num_unfinished": pl.Int64, "source": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def separate_rows(contents: Contents) -> pl.DataFrame:
    """Bases whose options were scored one row each, and why; arms where the reason is their own."""
    rows: dict[tuple[str | None, ...], str] = {}
    for scored in contents.scored:
        subject, why = scored.record.subject, scored.record.note
        if why and (subject.base, None, None, why) not in rows:
            rows.setdefault((subject.base, subject.training_set, subject.arm, why), scored.source)
    names = ("base", "training_set", "arm", "reason", "source")
    found = [(*key, source) for key, source in rows.items()]
    return pl.DataFrame(found, schema=dict.fromkeys(names, pl.String), orient="row")


def data_summaries(contents: Contents) -> pl.DataFrame:
    """What was read of each training set and task: rows, truncated, duplicates, tokens, one decoded sample."""
    rows = [
        {**summary.model_dump(), "data_source": summary.source, "unread_fields": ", ".join(summary.unread_fields)}
        for summary in contents.plan.data
    ]
    schema = {
        "base": pl.String, "name": pl.String, "role": pl.String, "data_source": pl.String, "form": pl.String,
        "num_rows": pl.Int64, "num_used": pl.Int64, "num_refused": pl.Int64, "num_truncated": pl.Int64,
        "num_duplicates": pl.Int64, "num_tokens": pl.Int64, "num_scored_tokens": pl.Int64, "median_tokens": pl.Int64,
        "p95_tokens": pl.Int64, "longest_tokens": pl.Int64, "unread_fields": pl.String, "sample_prompt": pl.String,
        "sample_trained": pl.String,
    }  # fmt: skip
    rows = [{name: row[name] for name in schema} for row in rows]
    return pl.DataFrame(rows, schema=schema).with_columns(pl.lit("plan.json").alias("source"))


def contamination(contents: Contents) -> pl.DataFrame:
    """How many items of each task are in each training set, or among the rows on which its rates are chosen."""
    schema = {
        "base": pl.String, "training_set": pl.String, "part": pl.String, "task": pl.String, "num_items": pl.Int64,
        "num_exact": pl.Int64, "num_ngram": pl.Int64,
    }  # fmt: skip
    rows = [overlap.model_dump() for overlap in contents.plan.overlaps]
    return pl.DataFrame(rows, schema=schema).with_columns(pl.lit("plan.json").alias("source"))


def differing_settings(contents: Contents) -> pl.DataFrame:
    """The settings on which arms differ, one row an arm and setting; whatever is not here is the same for all."""
    by_arm: dict[str, dict[str, Any]] = {}
    for run in contents.plan.runs:
        settings = {"method": run.arm.method, **run.arm.options, **run.optimization.model_dump()}
        if contents.plan.is_beyond(run):
            continue
        rates = by_arm.setdefault(run.arm.label, {**settings, "learning_rate": set()})["learning_rate"]
        rates.add(run.learning_rate)
    keys = dict.fromkeys(key for settings in by_arm.values() for key in settings)
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in by_arm.values()}) > 1]
    rows = [
        {"arm": arm, "setting": key, "value": _shown(settings[key]) if key in settings else None, "source": "plan.json"}
        for arm, settings in by_arm.items()
        for key in differing
    ]
    schema = {"arm": pl.String, "setting": pl.String, "value": pl.String, "source": pl.String}
    return pl.DataFrame(rows, schema=schema)


def _shown(value: Any) -> str:
    if isinstance(value, (set, list, tuple)):
        return ", ".join(_shown(item) for item in sorted(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
