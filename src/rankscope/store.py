"""The study directory: where things lie, atomic writes, checked reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import BaseModel, ValidationError

from rankscope.errors import DamagedFile, UserError
from rankscope.records import (
    FORMAT_VERSION,
    AnalyseRecord,
    DecideRecord,
    DeriveRecord,
    EvaluateRecord,
    ForecastRecord,
    Rates,
    Record,
    TrainRecord,
)
from rankscope.runs import settings_hash

RECORD = "record.json"
CHECKPOINT = "checkpoint"  # a run in the middle of training, in its training folder
# Tables of the stages: what is trained on, each step of it, what is asked, and what was answered.
EXAMPLES, STEPS, PROMPTS, ITEMS = "examples.parquet", "steps.jsonl", "prompts.parquet", "items.parquet"
# By analysis, what is kept of the base while its runs are compared with it.
CACHES = {"attention": "patterns", "representations": "streams"}
Model = TypeVar("Model", bound=BaseModel)


class Store:
    """Paths, reads and writes of one study directory; knows no stage's meaning."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # Where things lie ------------------------------------------------------------------------------------------------

    @property
    def study_file(self) -> Path:
        """The study as it was run, overrides applied."""
        return self.root / "study.yaml"

    @property
    def plan_file(self) -> Path:
        """Runs, packs, layout and what was found in the data."""
        return self.root / "plan.json"

    def base(self, base: str) -> Path:
        """What is computed once per base."""
        return self.root / "base" / base

    def training_data(self, base: str, training_set: str) -> Path:
        """The folder with examples.parquet of one base and training set."""
        return self.base(base) / "train" / training_set

    def base_task(self, base: str, task: str) -> Path:
        """The base's scores of a task, with prompts.parquet."""
        return self.base(base) / "evaluate" / task

    def base_analysis(self, base: str, analysis: str) -> Path:
        """An analysis of the base itself."""
        return self.base(base) / "analyse" / analysis

    def base_cache(self, base: str, analysis: str) -> Path:
        """What a base showed, for its runs to be compared with; no result, and deleted when all is done."""
        return self.base_analysis(base, analysis) / CACHES[analysis]

    def forecast(self, base: str, training_set: str) -> Path:
        """What was expected of a training set before anything was trained."""
        return self.base(base) / "forecast" / training_set

    def run(self, run_id: str) -> Path:
        """A run's folder."""
        return self.root / "runs" / run_id

    def train(self, run_id: str) -> Path:
        """A run's training folder: adapter or weights, steps.jsonl, record."""
        return self.run(run_id) / "train"

    def task(self, run_id: str, task: str) -> Path:
        """A run's scores of a task."""
        return self.run(run_id) / "evaluate" / task

    def analysis(self, run_id: str, analysis: str) -> Path:
        """An analysis of a run."""
        return self.run(run_id) / "analyse" / analysis

    def derived(self, run_id: str, name: str) -> Path:
        """A model that was made of a run's: its scores, and of an adapter the adapter."""
        return self.run(run_id) / "derive" / name

    @property
    def decide(self) -> Path:
        """Choices and verdicts."""
        return self.root / "decide"

    @property
    def report(self) -> Path:
        """The page, its tables and figures."""
        return self.root / "report"

    @property
    def rates_file(self) -> Path:
        """The learning rates chosen so far."""
        return self.decide / "rates.json"

    # Records ---------------------------------------------------------------------------------------------------------

    def read_train(self, run_id: str) -> TrainRecord | None:
        """A run's training record, or None where there is none yet."""
        return read_model(self.train(run_id) / RECORD, TrainRecord)

    def read_evaluate(self, folder: Path) -> EvaluateRecord | None:
        """The record of a task's scores in the folder that `task` or `base_task` names."""
        return read_model(folder / RECORD, EvaluateRecord)

    def read_analyse(self, folder: Path) -> AnalyseRecord | None:
        """The record of an analysis in the folder that `analysis` or `base_analysis` names."""
        return read_model(folder / RECORD, AnalyseRecord)

    def read_derive(self, folder: Path) -> DeriveRecord | None:
        """The record of a derived model in the folder that `derived` names."""
        return read_model(folder / RECORD, DeriveRecord)

    def read_forecast(self, base: str, training_set: str) -> ForecastRecord | None:
        """The forecast of a training set, or None where none was made."""
        return read_model(self.forecast(base, training_set) / RECORD, ForecastRecord)

    def read_rates(self) -> Rates:
        """The learning rates chosen so far."""
        return read_model(self.rates_file, Rates) or Rates()

    def read_decide(self) -> DecideRecord | None:
        """The verdicts, or None before there are any."""
        return read_model(self.decide / RECORD, DecideRecord)


def read_model(path: Path, kind: type[Model]) -> Model | None:
    """A record or another model from JSON, or None where there is no file.

    Raises:
        UserError: It was written by a newer version of rankscope.
        DamagedFile: It is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        value = kind.model_validate_json(text)
    except ValidationError as error:
        raise DamagedFile(f"{path} is not a record of this version ({error.errors()[0]['msg']})") from None
    version = getattr(value, "format_version", FORMAT_VERSION)  # plain models carry none
    if version > FORMAT_VERSION:
        raise UserError(f"written by a newer rankscope (format {version})", where=path, mend="update rankscope")
    if version < FORMAT_VERSION:
        mend = "choose another --out, or remove the directory"
        what = f"written by an older rankscope (format {version}), which this one cannot read"
        raise UserError(what, where=path, mend=mend)
    if isinstance(value, Record) and value.seal is not None:
        if value.seal != _seal(text):
            raise DamagedFile(f"{path} differs from what was written (checksum)")
        return value.model_copy(update={"seal": None})
    return value


def _seal(text: str) -> str:
    """The checksum of a record's content, however its JSON is laid out."""
    content = {key: value for key, value in json.loads(text).items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, record: Record, files: Iterable[str] = ()) -> None:
    """Write a stage's record, last of all its files, with the checksums of the others.

    Args:
        folder: Where the stage's files lie.
        record: The record, without checksums.
        files: Names of the files, relative to the folder, that the record vouches for.
    """
    sums = {}
    for name in sorted(files):
        _sync(folder / name)  # what a record vouches for outlives a loss of power
        sums[name] = checksum(folder / name)
    whole = record.model_copy(update={"files": sums, "seal": None})
    sealed = whole.model_copy(update={"seal": _seal(whole.model_dump_json())})
    write_text(folder / RECORD, sealed.model_dump_json(indent=1) + "\n")


def check_files(folder: Path, record: Record) -> None:
    """Compare a record's files with their checksums.

    Raises:
        DamagedFile: Naming the first file that is missing or differs.
    """
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedFile(f"{path} is missing")
        if checksum(path) != expected:
            raise DamagedFile(f"{path} differs from what was written (checksum)")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file, which takes its place once it is written; where that fails, nothing of it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that a reader never sees half of it."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(path.parent)


def write_checked(path: Path, value: Any) -> None:
    """Write plain data as JSON with a checksum of its own, for what no record vouches for."""
    write_text(path, json.dumps({"sha256": settings_hash(value), "value": value}) + "\n")


def read_checked(path: Path) -> Any | None:
    """What `write_checked` wrote; None where there is none, or where it is not what was written."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document["value"] if document["sha256"] == settings_hash(document["value"]) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def remove_leftovers(root: Path) -> None:
    """Remove what a process that was killed left under temporary names."""
    for path in list(root.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlive a loss of power: names belong to the folder, not to the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a table under a temporary name and rename it."""
    with replacing(path) as temporary:
        frame.write_parquet(temporary)
