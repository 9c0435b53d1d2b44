"""The process that follows a study: whatever its tracker does, the study goes on and a person hears of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rankscope.track.process import Tracking, tracking, without_secrets
from synthetic import ARMS, Synthetic, write_study

# Stands for the real package, in a process that imports what this one's path has.
BROKEN = """
import os
class Settings:
    def __init__(self, **options): pass
class Run:
    def define_metric(self, *names, **options): pass
    def log(self, values): raise ConnectionError("no server for " + os.environ["WANDB_API_KEY"])
def init(**options): return Run()
"""


@pytest.fixture
def study(tmp_path: Path) -> Synthetic:
    return write_study(tmp_path / "study", arms=ARMS[:1])


def test_a_tracker_that_fails_is_seen_once_and_tells_no_secret(
    study: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("WANDB_API_KEY", "hushHUSHhush")
    with tracking("wandb", study.store.root) as tracker:
        news = None
        deadline = time.monotonic() + 60
        while news is None and time.monotonic() < deadline:
            news = tracker.news()
            time.sleep(0.05)
        assert news is not None and "ConnectionError: no server for ***" in news and "the study goes on" in news
        assert tracker.news() is None
        tracker.finish()
    log = (study.store.root / "logs" / "tracker.log").read_text()
    assert "Traceback" in log and "hushHUSHhush" not in log


def test_a_process_that_is_killed_is_seen(study: Synthetic) -> None:
    tracker = Tracking("tensorboard", study.store.root)
    tracker._process.kill()
    tracker._process.join()
    tracker.finish()
    assert (
        tracker.news()
        == "tensorboard has stopped tracking (its process ended; see logs/tracker.log); the study goes on without it"
    )
    tracker.close()


def test_all_is_told_when_the_study_is_over(study: Synthetic) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tracking("tensorboard", study.store.root) as tracker:
        tracker.finish()
    assert tracker.failure is None
    run = study.plan.runs[0]
    events = accumulator.EventAccumulator(str(study.store.root / "tensorboard" / run.run_id))
    events.Reload()
    assert len(events.Scalars("train/loss_nats_per_token")) == run.num_steps


def test_without_a_tracker_there_is_no_process(tmp_path: Path) -> None:
    with tracking("none", tmp_path) as tracker:
        tracker.finish()
        assert tracker.news() is None and tracker.failure is None


def test_secrets_of_the_environment_and_in_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("MY_KEY", "ab")  # too short to be one, and would be found everywhere
    text = "https://me:pw@host/api?password=correct-horse abc"
    assert without_secrets(text) == "https://***@host/api?password=*** abc"
