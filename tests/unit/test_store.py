"""Records survive a write and a read; damage is detected and named; names become numbers only when declared."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from rankscope import store
from rankscope.errors import DamagedFile, UserError
from rankscope.records import (
    AnalyseRecord,
    DecideRecord,
    EvaluateRecord,
    Failure,
    Interval,
    RateChoice,
    Rates,
    Record,
    Subject,
    TrainRecord,
    ValidationPoint,
    Verdict,
)
from rankscope.runs import ArmSettings, BaseSettings, RunSettings, TrainingData
from rankscope.spec import Optimization
from rankscope.store import Store, check_files, read_model, replacing, write_parquet, write_record, write_text

COMMON = {"status": "complete", "settings_hash": "h", "provenance": {"code": None}, "started_at": "t", "seconds": 1.5}
RUN = RunSettings(
    base=BaseSettings(name="b", source="s", revision=None, fingerprint="f"),
    training_set=TrainingData(name="t", fingerprint="d", validation_fingerprint="v", num_examples=3),
    arm=ArmSettings(label="lora-r2", method="lora", options={"r": 2, "lora_alpha": 4.0}),
    learning_rate=1e-4,
    seed=0,
    num_steps=3,
    optimization=Optimization(),
)
INTERVAL = Interval(value=math.inf, low=None, high=math.nan, confidence=0.95, num_items=3, num_seeds=1)
RECORDS: list[Record] = [
    TrainRecord(
        **COMMON,
        run=RUN,
        final_loss_nats_per_token=math.nan,
        validations=(ValidationPoint(step=1, loss_nats_per_token=math.inf),),
    ),
    EvaluateRecord(
        **COMMON, subject=Subject(base="b"), task="t", scoring="loss", values={"loss_nats_per_token": -math.inf}
    ),
    AnalyseRecord(**COMMON, subject=Subject(base="b"), analysis="spectra", summary={"update_norm": math.nan}),
    DecideRecord(
        **COMMON,
        verdicts=(
            Verdict(
                base="b",
                training_set="t",
                decision="undecided",
                arm=None,
                learning_rate=None,
                gain=INTERVAL,
                forgetting=None,
                rule="r",
                runner_up=None,
                needed=None,
            ),
        ),
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_survives_a_write_and_a_read(tmp_path: Path, record: Record) -> None:
    write_text(tmp_path / "a.txt", "a")
    write_record(tmp_path, record, ["a.txt"])
    again = read_model(tmp_path / "record.json", type(record))
    assert again is not None
    # NaN differs from itself, so the texts are compared.
    assert again.model_dump_json() == record.model_copy(update={"files": again.files}).model_dump_json()
    json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    check_files(tmp_path, again)


def test_scores_from_before_unfinished_answers_were_counted_are_read(tmp_path: Path) -> None:
    write_record(tmp_path, RECORDS[1], [])
    content = json.loads((tmp_path / "record.json").read_text())
    del content["num_unfinished"]
    write_text(tmp_path / "record.json", json.dumps(content | {"seal": store._seal(json.dumps(content))}))
    assert read_model(tmp_path / "record.json", EvaluateRecord).num_unfinished is None


def test_an_undeclared_number_is_refused() -> None:
    with pytest.raises(KeyError, match="acuracy"):
        EvaluateRecord(**COMMON, subject=Subject(base="b"), task="t", scoring="loss", values={"acuracy": 0.5})


def test_a_failed_record_says_why() -> None:
    with pytest.raises(ValidationError, match="says why"):
        TrainRecord(**(COMMON | {"status": "failed"}), run=RUN)
    failure = Failure(type="E", message="m", traceback="t")
    assert TrainRecord(**(COMMON | {"status": "failed"}), run=RUN, error=failure).status == "failed"


def test_damage_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "items.parquet", pl.DataFrame({"a": [1, 2, 3]}))
    write_record(tmp_path, RECORDS[0], ["items.parquet"])
    record = read_model(tmp_path / "record.json", TrainRecord)
    assert record is not None
    data = bytearray((tmp_path / "items.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "items.parquet").write_bytes(data)
    with pytest.raises(DamagedFile, match=r"items.parquet.*checksum"):
        check_files(tmp_path, record)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(DamagedFile, match=r"items.parquet is missing"):
        check_files(tmp_path, record)
    text = (tmp_path / "record.json").read_text()
    (tmp_path / "record.json").write_text(text.replace('"seconds": ', '"seconds": 1'))
    with pytest.raises(DamagedFile, match=r"record.json differs from what was written"):
        read_model(tmp_path / "record.json", TrainRecord)
    (tmp_path / "record.json").write_text(json.dumps(json.loads(text)))  # laid out anew, the same content
    assert read_model(tmp_path / "record.json", TrainRecord).model_dump_json() == record.model_dump_json()
    (tmp_path / "record.json").write_text(text[: len(text) // 2])
    with pytest.raises(DamagedFile, match=r"record.json"):
        read_model(tmp_path / "record.json", TrainRecord)


def test_another_format_is_refused_with_the_mend(tmp_path: Path) -> None:
    write_text(tmp_path / "rates.json", Rates(format_version=99).model_dump_json())
    with pytest.raises(UserError, match="update rankscope"):
        read_model(tmp_path / "rates.json", Rates)
    write_text(tmp_path / "rates.json", Rates(format_version=0).model_dump_json())
    with pytest.raises(UserError, match="older rankscope"):
        read_model(tmp_path / "rates.json", Rates)


def test_rates_survive(tmp_path: Path) -> None:
    assert Store(tmp_path).read_rates() == Rates()
    choice = RateChoice.model_construct(**{name: None for name in RateChoice.model_fields})
    assert choice.learning_rate is None


def test_two_runs_that_differ_have_different_names() -> None:
    others = [
        RUN.model_copy(update={"seed": 1}),
        RUN.model_copy(update={"learning_rate": 2e-4}),
        RUN.model_copy(update={"num_steps": 4}),
        RUN.model_copy(update={"optimization": Optimization(weight_decay=0.1)}),
        RUN.model_copy(update={"training_set": RUN.training_set.model_copy(update={"fingerprint": "e"})}),
    ]
    names = {run.run_id for run in [RUN, *others]}
    assert len(names) == 6
    assert RUN.model_copy().run_id == RUN.run_id
    assert RUN.run_id.startswith("b-t-lora-r2-lr0.0001-seed0-")


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "numbers.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("the disk is full")
    assert [child.name for child in path.parent.iterdir()] == ["numbers.txt"] and path.read_text() == "old"


def test_a_renamed_file_outlives_a_loss_of_power(tmp_path, monkeypatch):
    """The folder is synced once the file has its name: the name is written there."""
    path, synced = tmp_path / "new" / "plan.json", []

    def note(descriptor):
        synced.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_text(path, "{}")
    assert synced[-1] == (path.parent.stat().st_ino, True)
    assert synced[0] == (path.stat().st_ino, False)
