"""The trackers themselves, offline, each read back with its own package; what is not installed is skipped."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.cli import USER_ERROR, main
from rankscope.track import trackers
from rankscope.track.trackers import Tracker, make_tracker
from studies import write_study

# Large programs of others, in the process of the test: what they warn of is their own.
foreign = pytest.mark.filterwarnings("ignore")
CONFIG = {"arm": "lora-r4", "learning_rate": 1e-3, "seed": 0}


def tell(tracker: Tracker) -> str:
    """Two names side by side, scores of an earlier step after later ones, an end and a going on."""
    known = tracker.begin("first", CONFIG, None)
    tracker.begin("second", CONFIG, None)
    for step in (1, 2):
        tracker.numbers("first", step, {"train/loss": 1.0 / step})
        tracker.numbers("second", step, {"train/loss": 2.0 / step})
    tracker.numbers("first", 1, {"validation/a+b": 0.25})
    tracker.text("first", "small/new", "undecided\n\nmore seeds")
    tracker.end("first")
    again = tracker.begin("first", CONFIG, known)
    tracker.numbers("first", 3, {"train/loss": 0.125})
    tracker.end("first")
    tracker.end("second")
    assert again == known
    return known


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(make_tracker("tensorboard", "study", tmp_path))
    first = EventAccumulator(str(tmp_path / "tensorboard" / "first"))
    first.Reload()
    assert [(one.step, one.value) for one in first.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 0.125)]
    assert first.Scalars("validation/a+b")[0].value == 0.25
    (text,) = first.Tensors("small/new")
    assert text.tensor_proto.string_val[0].decode() == "undecided\n\nmore seeds"
    assert "lora-r4" in first.Tensors("settings")[0].tensor_proto.string_val[0].decode()
    second = EventAccumulator(str(tmp_path / "tensorboard" / "second"))
    second.Reload()
    assert [one.value for one in second.Scalars("train/loss")] == [2.0, 1.0]


@foreign
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    known = tell(make_tracker("wandb", "study", tmp_path))
    losses, texts = [], {}
    for path in sorted((tmp_path / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            losses += [(row["step"], row["train/loss"])] if "train/loss" in row else []
            texts |= {item.key or "".join(item.nested_key): item.value_json for item in record.summary.update}
    assert losses == [(1, 1.0), (2, 0.5), (3, 0.125)]
    assert json.loads(texts["small/new"]) == "undecided\n\nmore seeds"


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log format after a header of seven bytes, each whole in files this small."""
    place = 7
    while place + 7 <= len(content):
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        assert kind == 1, "a record in parts"
        yield content[place + 7 : place + 7 + length]
        place += 7 + length


@foreign
def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    known = tell(make_tracker("mlflow", "study", tmp_path))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    history = client.get_metric_history(known, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5), (3, 0.125)]
    run = client.get_run(known)
    assert run.data.params["arm"] == "lora-r4" and run.data.metrics["validation/a_b"] == 0.25
    assert run.info.status == "FINISHED"
    (text,) = (tmp_path / "mlflow" / "artifacts").rglob("new.txt")
    assert text.read_text() == "undecided\n\nmore seeds"


@foreign
def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    tell(make_tracker("trackio", "study", tmp_path))
    (database,) = (tmp_path / "trackio").glob("study*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    losses = [
        (step, json.loads(text)["train/loss"])
        for name, step, text in rows
        if name == "first" and "train/loss" in json.loads(text)
    ]
    assert losses == [(1, 1.0), (2, 0.5), (3, 0.125)]


def test_a_tracker_that_is_not_installed_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    study = write_study(tmp_path)
    command = ["run", str(study), "--out", str(tmp_path / "out"), "--set", "report_to=trackio"]
    assert main(command) == USER_ERROR
    message = capsys.readouterr().err
    assert "the package trackio is not installed" in message and "pip install 'rankscope[trackio]'" in message
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path)
    study.write_text(study.read_text() + "report_to: neptune\n")
    assert main(["run", str(study), "--out", str(tmp_path / "out")]) == USER_ERROR
    assert "report_to" in capsys.readouterr().err
