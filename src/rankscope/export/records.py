"""Every record of a study as rows: what happened, and every number it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from rankscope.records import (
    AnalyseRecord,
    DecideRecord,
    DeriveRecord,
    EvaluateRecord,
    ForecastRecord,
    Record,
    Subject,
    TrainRecord,
)

_SUBJECT = {
    "base": pl.String, "training_set": pl.String, "arm": pl.String, "learning_rate": pl.Float64, "seed": pl.Int64,
    "run_id": pl.String,
}  # fmt: skip
_RECORDS = {
    "kind": pl.String, "status": pl.String, **_SUBJECT, "name": pl.String, "started_at": pl.String,
    "seconds": pl.Float64, "peak_memory_bytes": pl.Int64, "settings_hash": pl.String, "error_type": pl.String,
    "error_message": pl.String, "source": pl.String,
}  # fmt: skip
_NUMBERS = {
    "kind": pl.String, **_SUBJECT, "name": pl.String, "task": pl.String, "measure": pl.String, "value": pl.Float64,
    "source": pl.String,
}  # fmt: skip
_VERDICTS = {
    "base": pl.String, "training_set": pl.String, "decision": pl.String, "arm": pl.String, "learning_rate": pl.Float64,
    "rule": pl.String, "runner_up": pl.String, "needed": pl.String, "warnings": pl.List(pl.String),
    "source": pl.String,
}  # fmt: skip
_TRAIN = (
    "num_trainable", "num_parameters", "num_steps", "num_tokens", "num_scored_tokens", "final_loss_nats_per_token",
)  # fmt: skip
_FORECAST = (
    "num_examples", "num_scored_tokens", "loss_nats_per_token", "bits_to_store", "bits_per_rank", "capacity_rank",
    "signal_rank_median", "signal_rank_high", "energy_rank_90_median",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A record of the study directory.

    Attributes:
        name: The task, the analysis or the derived model that it is about; empty for training.
        source: Its path relative to the study directory.
    """

    record: Record
    subject: Subject
    name: str
    source: str

    @property
    def fields(self) -> dict[str, Any]:
        """Whom and what it is about, as the columns that every table of it gets."""
        return {**self.subject.model_dump(), "name": self.name}


def record_table(found: Iterable[Found]) -> pl.DataFrame:
    """One row a record: what was done, how it ended, how long it took."""
    rows = []
    for one in found:
        record = one.record
        happened = record.model_dump(include=set(_RECORDS) - set(_SUBJECT))
        error = {"error_type": None, "error_message": None}
        if record.error is not None:
            error = {"error_type": record.error.type, "error_message": record.error.message}
        rows.append({**happened, **one.fields, **error, "source": one.source})
    return pl.DataFrame(rows, schema=_RECORDS)


def number_table(found: Iterable[Found]) -> pl.DataFrame:
    """One row a number that a record holds; what a record does not have is no row."""
    rows = []
    for one in found:
        for task, measure, value in _numbers(one):
            place = {"kind": one.record.kind, **one.fields, "task": task, "measure": measure, "source": one.source}
            rows.append({**place, "value": float(value)})
    return pl.DataFrame(rows, schema=_NUMBERS)


def _numbers(one: Found) -> Iterator[tuple[str | None, str, float]]:
    """Each number's task (where it is a score), measure and value."""
    record = one.record
    if isinstance(record, TrainRecord):
        yield from _named(record, _TRAIN)
    elif isinstance(record, EvaluateRecord):
        counts = {"num_items": record.num_items, "num_truncated": record.num_truncated}
        if record.num_unfinished is not None:
            counts["num_unfinished"] = record.num_unfinished
        lm_eval = {f"lm_eval/{name}": value for name, value in record.lm_eval.items()}
        yield from _of_task(record.task, {**counts, **record.values, **lm_eval})
    elif isinstance(record, AnalyseRecord):
        yield from _of_task(None, record.summary)
    elif isinstance(record, DeriveRecord):
        yield from _named(record, ("rank", "added_rank", "num_intruders"))
        yield from _of_task(None, record.summary)
        for task, values in record.scores.items():
            yield from _of_task(task, values)
    elif isinstance(record, ForecastRecord):
        yield from _named(record, _FORECAST)


def _named(record: Record, names: Iterable[str]) -> Iterator[tuple[None, str, float]]:
    values = dict(record)
    yield from ((None, name, values[name]) for name in names if values[name] is not None)


def _of_task(task: str | None, values: Mapping[str, float]) -> Iterator[tuple[str | None, str, float]]:
    yield from ((task, measure, value) for measure, value in values.items())


def verdict_table(decision: DecideRecord | None, source: str) -> pl.DataFrame:
    """One row a verdict, with the rule in words; its arms and comparisons are tables of the report."""
    wanted = set(_VERDICTS) - {"source"}
    rows = [
        {**verdict.model_dump(include=wanted), "warnings": list(verdict.warnings), "source": source}
        for verdict in (decision.verdicts if decision else ())
    ]
    return pl.DataFrame(rows, schema=_VERDICTS)


def with_subject(frame: pl.LazyFrame, one: Found, source: str) -> pl.LazyFrame:
    """A table that lies beside a record, with whom and what it is about in front; its own columns keep their names."""
    own = set(frame.collect_schema().names())
    types = {**_SUBJECT, "name": pl.String}
    literals = [pl.lit(value, dtype=types[key]).alias(key) for key, value in one.fields.items() if key not in own]
    return frame.select(*literals, pl.all(), pl.lit(source).alias("source"))


def csv_columns(schema: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    """The columns as CSV can hold them: a list within a cell becomes JSON, for CSV has no lists."""
    return [_as_json(name, dtype) if isinstance(dtype, pl.List) else pl.col(name) for name, dtype in schema.items()]


def _as_json(name: str, dtype: pl.List) -> pl.Expr:
    if dtype.inner.is_numeric():
        # Spelled as Python's json does: what is not finite must not become null, as polars would have it.
        spelled = pl.element().cast(pl.String).replace({"inf": "Infinity", "-inf": "-Infinity"}).fill_null("null")
        return pl.format("[{}]", pl.col(name).list.eval(spelled).list.join(", ")).alias(name)
    # polars writes JSON of structs only, so the list is put into one and the rest of it is cut off again.
    text = pl.struct(pl.col(name).alias("v")).struct.json_encode().str.slice(len('{"v":')).str.head(-1)
    return pl.when(pl.col(name).is_not_null()).then(text).alias(name)
