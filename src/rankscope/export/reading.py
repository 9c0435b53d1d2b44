"""What of a study directory is exported: its records, the tables that lie beside them, and models' weights, checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rankscope.errors import DamagedFile, UserError
from rankscope.export.model import Chosen
from rankscope.export.records import Found
from rankscope.records import UNFINISHED, DeriveRecord, Record, Subject, TrainRecord
from rankscope.report.contents import Contents
from rankscope.store import RECORD, STEPS, Store, check_files, checksum
from rankscope.work import all_work, folder_of, read_record

_WEIGHTS = ("adapter", "model")
_NOT_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}


def iter_records(store: Store, contents: Contents) -> Iterator[Found]:
    """Every record of the study, its files checked; those of work that has not begun are not there."""
    plan = contents.plan
    for work in all_work(plan):
        stage, base, run_id, name = work
        record = read_record(store, work)
        # A run that trains to several rounds of a search has one record, which comes with its last.
        if record is None or (stage == "train" and name):
            continue
        folder = folder_of(store, work)
        if record.status not in UNFINISHED:
            check_files(folder, record)
        source = (folder / RECORD).relative_to(store.root).as_posix()
        yield Found(record, plan.subject(base, run_id), name, source)
    for forecast in contents.forecasts:
        source = (store.forecast(forecast.base, forecast.training_set) / RECORD).relative_to(store.root).as_posix()
        yield Found(forecast, Subject(base=forecast.base, training_set=forecast.training_set), "", source)


def tables_beside(store: Store, one: Found) -> Iterator[Path]:
    """The tables that lie beside a record, in its folder or in one folder below (a derived model's tasks)."""
    folder = (store.root / one.source).parent
    if isinstance(one.record, TrainRecord):
        if (folder / STEPS).is_file() and (folder / STEPS).stat().st_size:
            yield folder / STEPS
        return
    yield from (folder / name for name in sorted(one.record.files) if name.endswith(".parquet"))


def scan(path: Path) -> pl.LazyFrame:
    """A table of the study, Parquet or JSON lines; of a derived model's items with the task."""
    if path.suffix == ".parquet":
        frame = pl.scan_parquet(path)
        # Of a derived model a folder names the task.
        return frame.with_columns(pl.lit(path.parent.name).alias("task")) if _is_derived(path) else frame
    frame = pl.read_ndjson(path, infer_schema_length=None)
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]  # what is not finite is written so
    return frame.with_columns(pl.col(texts).replace(_NOT_FINITE).cast(pl.Float64)).lazy()


def _is_derived(path: Path) -> bool:
    return (path.parent.parent / RECORD).is_file()


def weight_files(store: Store, one: Chosen) -> list[Path]:
    """The files of a model's weights, checked.

    Raises:
        UserError: They were deleted, or never kept.
        DamagedFile: They are not what was written.
    """
    if one.point is not None:
        folder = store.derived(one.run.run_id, one.point.name)
        record: Record | None = store.read_derive(folder)
        if record is None or record.status != "complete":
            raise UserError("is not there yet", where=folder, mend="run the study to its end")
    else:
        folder, record = store.train(one.run.run_id), one.train
    names = [name for name in record.files if name.split("/")[0] in _WEIGHTS]
    if not names:
        raise UserError(_gone(record), where=folder, mend=_mend(store, one))
    for name in names:
        if not (folder / name).is_file() or checksum(folder / name) != record.files[name]:
            raise DamagedFile(f"{folder / name} is missing, or differs from what was written (checksum)")
    return [folder / name for name in sorted(names)]


def _gone(record: Record) -> str:
    if isinstance(record, DeriveRecord) and record.rank is None:
        return "the weights of a derived whole model are not kept, only its scores"
    return "the weights were deleted (`keep` in the study file), only the records are left"


def _mend(store: Store, one: Chosen) -> str:
    if one.point is not None:
        return f"export the run itself (--model {one.run.run_id})"
    return (
        f"set `keep: chosen` in the study file, remove the folder {store.train(one.run.run_id)} and run the study "
        "again: it trains this run alone, to the same weights"
    )
