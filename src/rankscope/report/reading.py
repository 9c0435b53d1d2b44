"""A study directory as the report reads it: whatever is there of it, and what is missing or damaged by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict

from rankscope.errors import DamagedFile, UserError
from rankscope.internals.neuron_means import neuron_means_by_layer
from rankscope.plan import PIECE_STAGES, Plan
from rankscope.records import Analysis, EvaluateRecord, ForecastRecord, Rates, Status
from rankscope.report.contents import Analysed, Contents, Missing, Scored
from rankscope.report.derived_items import derived_items
from rankscope.runs import RunSettings
from rankscope.spec import Decide
from rankscope.store import ITEMS, PROMPTS, RECORD, STEPS, Store, checksum, read_model
from rankscope.study_file import load_study

Value = TypeVar("Value", bound=BaseModel)

_STEPS = ("step", "loss_nats_per_token", "learning_rate", "grad_norm", "num_tokens", "seconds")
_PROMPTS = ("item_id", "category", "prompt", "options", "target")
_BEGINNING = 1000  # characters of a text that is scored by its loss
_ANSWERS = ("item_id", "is_correct", "prediction")


class _Sums(BaseModel):
    """What every record says of its files, whatever kind of record it is."""

    model_config = ConfigDict(extra="ignore")
    status: Status
    files: dict[str, str]


def read_contents(store: Store) -> Contents:
    """Everything the report needs of a study directory; what is missing or damaged is named, not fatal.

    Raises:
        UserError: The directory holds no plan, so it is no study.
    """
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise UserError("no study was planned here", where=store.root, mend="`rankscope run STUDY --out DIR` makes one")
    reader = _Reader(store)
    rates = reader.model(store.rates_file, store.read_rates) or Rates()
    chosen = {(*c.arm_key, c.learning_rate) for c in rates.choices}
    at_chosen = [r for r in plan.runs if (*r.arm_key, r.learning_rate) in chosen]
    trains = {}
    for settings in plan.runs:
        if record := reader.model(store.train(settings.run_id) / RECORD, store.read_train, settings.run_id):
            trains[settings.run_id] = record
    scored, analysed = _read_scored(reader, plan), _read_analysed(reader, plan)
    most_changed = _read_analysis(reader, analysed, "neurons", "most_changed.parquet")
    probes = [] if most_changed.is_empty() else most_changed["probe_id"].unique().to_list()
    return Contents(
        plan=plan,
        settings=_read_settings(reader),
        rates=rates,
        decision=reader.model(store.decide / RECORD, store.read_decide),
        trains=trains,
        steps=_read_steps(reader, trains),
        scored=tuple(scored),
        analysed=tuple(analysed),
        prompts=_read_prompts(reader, scored, probes),
        answers=_read_answers(reader, scored, {settings.run_id for settings in at_chosen}),
        matrices=_read_analysis(reader, analysed, "spectra", "matrices.parquet"),
        subspaces=_read_analysis(reader, analysed, "subspaces", "subspaces.parquet"),
        heads=_read_analysis(reader, analysed, "attention", "heads.parquet"),
        representations=_read_analysis(reader, analysed, "representations", "representations.parquet"),
        neurons=_read_analysis(reader, analysed, "neurons", "changes.parquet", _neurons),
        most_changed=most_changed,
        derived=_read_derived(reader, plan, at_chosen),
        provenance=_read_provenance(reader),
        forecasts=_read_forecasts(reader, plan),
        missing=tuple(reader.missing),
    )


class _Reader:
    """Reads files of one study and keeps a list of what could not be read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.missing: list[Missing] = []

    def name(self, path: Path) -> str:
        """The path as the report names it: relative to the study directory."""
        return path.relative_to(self.store.root).as_posix()

    def model(self, path: Path, read: Callable[..., Value | None], *arguments: object) -> Value | None:
        """A record, or None where it is absent or damaged (the second is noted)."""
        try:
            return read(*arguments)
        except DamagedFile as error:
            self.note(path, str(error))
            return None

    def table(self, path: Path, read: Callable[[Path], pl.DataFrame]) -> pl.DataFrame | None:
        """A table with its `source` column, or None where it is absent or damaged (both are noted)."""
        if not path.is_file():
            self.note(path, "the file is not there")
            return None
        expected = self._sums(path.parent).get(path.name)
        if expected is not None and checksum(path) != expected:
            self.note(path, "differs from what was written (checksum); running the study again mends it")
            return None
        try:
            return read(path).with_columns(pl.lit(self.name(path)).alias("source"))
        except (pl.exceptions.PolarsError, OSError) as error:
            self.note(path, f"cannot be read ({error})")
            return None

    def _sums(self, folder: Path) -> dict[str, str]:
        """The checksums in a folder's record; none of a run that is still being trained, whose files grow."""
        record = self.model(folder / RECORD, read_model, folder / RECORD, _Sums)
        return {} if record is None or record.status == "interrupted" else record.files

    def note(self, path: Path, why: str) -> None:
        name = self.name(path)
        stage = next((part for part in (*PIECE_STAGES, "decide") if part in name.split("/")), "study")
        self.missing.append(Missing(subject=name, stage=stage, why=why.replace(f"{self.store.root}/", ""), source=name))


def _read_settings(reader: _Reader) -> Decide | None:
    try:
        return load_study(reader.store.study_file).decide
    except UserError as error:
        reader.note(reader.store.study_file, error.what)
        return None


def _read_provenance(reader: _Reader) -> dict[str, Any]:
    path = reader.store.root / "provenance.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reader.note(path, f"cannot be read ({error})")
        return {}


def _read_forecasts(reader: _Reader, plan: Plan) -> tuple[ForecastRecord, ...]:
    store, found = reader.store, []
    for base in plan.bases:
        for name in plan.relations:
            record = reader.model(store.forecast(base, name) / RECORD, store.read_forecast, base, name)
            found += [record] if record is not None else []
    return tuple(found)


def _read_scored(reader: _Reader, plan: Plan) -> list[Scored]:
    store, found = reader.store, []
    folders = [store.base_task(base, task) for base, tasks in plan.tasks.items() for task in tasks]
    folders += [store.task(run.run_id, task) for run in plan.runs for task in plan.tasks[run.base.name]]
    for folder in folders:
        if record := reader.model(folder / RECORD, store.read_evaluate, folder):
            found.append(Scored(record, reader.name(folder / RECORD)))
    return found


def _read_analysed(reader: _Reader, plan: Plan) -> list[Analysed]:
    store, found = reader.store, []
    folders = [store.base_analysis(base, "attention") for base in plan.bases]
    folders += [store.analysis(run.run_id, name) for run in plan.runs for name in get_args(Analysis)]
    for folder in folders:
        if record := reader.model(folder / RECORD, store.read_analyse, folder):
            found.append(Analysed(record, reader.name(folder / RECORD)))
    return found


def _read_steps(reader: _Reader, run_ids: Iterable[str]) -> pl.DataFrame:
    frames = []
    for run_id in run_ids:
        path = reader.store.train(run_id) / STEPS
        if path.is_file() and path.stat().st_size and (frame := reader.table(path, _ndjson)) is not None:
            frames.append(frame.with_columns(pl.lit(run_id).alias("run_id")))
    return _concat(frames)


def _ndjson(path: Path) -> pl.DataFrame:
    """The lines of steps.jsonl; a number that is not finite is written as text or null and read back as such."""
    frame = pl.read_ndjson(path, infer_schema_length=None)
    return frame.select(pl.col(name).cast(pl.Float64, strict=False) for name in _STEPS if name in frame.columns)


def _read_prompts(reader: _Reader, scored: list[Scored], probes: list[str]) -> pl.DataFrame:
    """The texts of every task's items with the base's own answers; of losses only probes' texts, and their beginnings.

    Args:
        reader: Of the study.
        scored: All records of scores.
        probes: The names of texts that excite neurons, by task and item.
    """
    frames = []
    for record, folder in _folders(reader.store, scored, lambda record: record.subject.run_id is None):
        texts = reader.table(folder / PROMPTS, lambda path: pl.read_parquet(path, columns=list(_PROMPTS)))
        answers = reader.table(folder / ITEMS, lambda path: pl.read_parquet(path, columns=list(_ANSWERS)))
        if texts is None or answers is None:
            continue
        if record.scoring == "loss":
            texts = texts.filter(pl.format(f"{record.task}/{{}}", "item_id").is_in(probes))
            texts = texts.with_columns(pl.col("target").str.slice(0, _BEGINNING))
        joined = texts.drop("source").join(answers, on="item_id", how="inner")
        names = {"base": record.subject.base, "task": record.task}
        frames.append(joined.with_columns(pl.lit(name).alias(column) for column, name in names.items()))
    return _concat(frames)


def _read_answers(reader: _Reader, scored: list[Scored], run_ids: set[str]) -> pl.DataFrame:
    def has_answers(record: EvaluateRecord) -> bool:
        return record.subject.run_id in run_ids and record.scoring != "loss"

    frames = []
    for record, folder in _folders(reader.store, scored, has_answers):
        frame = reader.table(folder / ITEMS, lambda path: pl.read_parquet(path, columns=list(_ANSWERS)))
        if frame is not None:
            names = {"run_id": record.subject.run_id, "task": record.task}
            frames.append(frame.with_columns(pl.lit(name).alias(column) for column, name in names.items()))
    return _concat(frames)


def _folders(
    store: Store, scored: list[Scored], wanted: Callable[[EvaluateRecord], bool]
) -> Iterator[tuple[EvaluateRecord, Path]]:
    """The complete scores that are wanted, with their folders."""
    for one in scored:
        if one.record.status == "complete" and wanted(one.record):
            yield one.record, store.root / Path(one.source).parent


def _neurons(path: Path) -> pl.DataFrame:
    """A run's neurons by layer: large models have millions of them, and the page shows layers."""
    return neuron_means_by_layer(pl.scan_parquet(path)).collect()


def _read_analysis(
    reader: _Reader,
    analysed: list[Analysed],
    analysis: str,
    file: str,
    read: Callable[[Path], pl.DataFrame] = pl.read_parquet,
) -> pl.DataFrame:
    frames = []
    for one in analysed:
        # What can say nothing of a method has no table.
        if one.record.analysis != analysis or one.record.status != "complete" or file not in one.record.files:
            continue
        frame = reader.table(reader.store.root / Path(one.source).parent / file, read)
        if frame is not None:
            subject = one.record.subject
            frames.append(
                frame.with_columns(
                    pl.lit(subject.base).alias("base"), pl.lit(subject.run_id, dtype=pl.String).alias("run_id")
                )
            )
    return _concat(frames)


def _read_derived(reader: _Reader, plan: Plan, runs: Iterable[RunSettings]) -> pl.DataFrame:
    store, frames = reader.store, []

    def items_of(run: RunSettings, run_id: str | None, point: str | None, task: str) -> pl.DataFrame | None:
        folder = store.base_task(run.base.name, task) if run_id is None else store.task(run_id, task)
        if point is not None:
            folder = store.derived(run.run_id, point) / task
        path = folder / ITEMS
        return reader.table(path, pl.read_parquet) if path.is_file() else None

    for run in runs:
        records = []
        for point in plan.derived.get(run.arm.label, ()):
            folder = store.derived(run.run_id, point.name)
            record = reader.model(folder / RECORD, store.read_derive, folder)
            if record is not None and record.status == "complete" and record.scores:
                records.append(record)
        frames += derived_items(plan, run, records, items_of)
    return _concat(frames)


def _concat(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
