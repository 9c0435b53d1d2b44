"""The forecast of the time left, and what a log shows of a study."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from rankscope import display
from rankscope.display import Clock, LiveDisplay, PlainDisplay, duration
from rankscope.execute.events import Failed, Finished, Progress
from rankscope.plan import Pack
from rankscope.records import Rates
from rankscope.schedule import Board, needed_work
from synthetic import write_study


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 61, 3599, 7500)] == [
        "0 s", "59 s", "1 min 01 s", "59 min 59 s", "2 h 05 min",
    ]  # fmt: skip


def test_the_time_left_comes_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    clock = Clock(num_workers=2)
    packs = [Pack("train", "b", (f"r{i}",)) for i in range(4)]
    left = [("train", "b", "r2", ""), ("train", "b", "r3", "")]
    assert clock.seconds_left(left) is None
    for pack, seconds in zip(packs[:2], (10.0, 14.0), strict=True):
        clock.note([Progress(pack, pack.run_ids[0], 1, 5, 1.0)])
        now[0] += seconds
        clock.note([Finished(pack)])
    # Mean 12, variance 8: two are left on two workers, and the mean is of two itself.
    assert clock.seconds_left(left) == pytest.approx((12.0, (8.0 * (2 + 4 / 2)) ** 0.5 / 2))
    assert clock.seconds_left([("evaluate", "b", "r2", "t")]) is None


@pytest.mark.parametrize("kind", [PlainDisplay, LiveDisplay])
def test_a_failure_is_shown_at_once_and_losses_as_they_come(tmp_path: Path, kind: type) -> None:
    made = write_study(tmp_path)
    stream = io.StringIO()
    shown = kind(Console(file=stream, width=200, force_terminal=kind is LiveDisplay))
    shown.planned(made.plan, ["a file was damaged; it is done again"])
    run_id = made.plan.runs[0].run_id
    pack = Pack("train", "small", (run_id,))
    progress = Progress(pack, run_id, 3, 10, 1.234)
    needed = list(needed_work(made.plan, Rates()))
    shown.update(Board(), needed, [progress], [progress])
    time.sleep(0.4)  # a live picture renews itself a few times a second
    shown.update(Board(), needed, [Failed(pack, "RuntimeError: [no] memory")], [])
    shown.close()
    text = stream.getvalue()
    assert "a file was damaged" in text
    assert f"FAILED {run_id}: RuntimeError: [no] memory" in text
    assert "1.234" in text
