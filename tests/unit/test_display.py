"""The forecast of the time left, and what a log shows of a study."""

from __future__ import annotations

import io
import math
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from rankscope.board import Board
from rankscope.clock import Clock
from rankscope.display import CountLines, LiveDisplay, PlainDisplay, duration
from rankscope.execute.events import Failed, Finished, Progress
from rankscope.plan import Pack, Plan, piece_key
from rankscope.records import Rates
from rankscope.work import needed_work
from synthetic import write_study


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 61, 3599, 7500)] == [
        "0 s", "59 s", "1 min 01 s", "59 min 59 s", "2 h 05 min",
    ]  # fmt: skip


def forecast(plan: Plan, seconds: dict[str, float], by_stage: dict[str, float], num_workers: int = 2) -> Plan:
    estimate = plan.estimate.model_copy(update={"seconds_by_piece": seconds, "seconds_by_stage": by_stage})
    layout = plan.layout.model_copy(update={"num_workers": num_workers})
    return plan.model_copy(update={"estimate": estimate, "layout": layout})


def test_the_time_left_is_the_forecast_corrected_by_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = write_study(tmp_path).plan
    needed = [work for work in needed_work(plan, Rates()) if work[0] == "train" and work[2]]
    pieces = {piece_key("train", base, plan.run(run_id), ""): 10.0 for _, base, run_id, _ in needed}
    planned = 10.0 * len(needed) + 60.0  # later seeds, of rates that are not chosen yet
    # The start lies behind; verdicts and report are made at the end, by one process.
    clock = Clock(forecast(plan, pieces, {"train": planned, "start": 99.0, "decide": 1.0, "report": 6.0}))
    # Untried, a forecast is half as wrong as it is large; its two parts err by themselves, on two workers.
    errors = (10.0 * len(needed) / 2, 30.0)
    left, error = clock.seconds_left(Board(), needed)
    assert (left, error) == pytest.approx((planned / 2 + 7.0, math.hypot(*errors) / 2))
    board = Board()
    for work, took in zip(needed[:2], (15.0, 25.0), strict=True):
        pack = Pack("train", work[1], (work[2],))
        clock.note([Progress(pack, work[2], 1, 5, 1.0)])
        now[0] += took
        clock.note([Finished(pack)])
        board.status[work] = "complete"
    # Twice as slow as forecast: ratios 1.5 and 2.5, mean 2, deviation sqrt(0.5), relative sqrt(0.5) / 2.
    left, error = clock.seconds_left(board, needed)
    rest, later = len(needed) - 2, 6
    assert left == pytest.approx((20.0 * rest + 120.0) / 2 + 7.0)
    errors = [20.0 * n * (0.5**0.5 / 2) * (1 / n + 1 / 2) ** 0.5 for n in (rest, later)]
    assert error == pytest.approx(math.hypot(*errors) / 2)


def test_the_time_left_goes_down_within_a_piece_and_follows_a_slow_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = write_study(tmp_path).plan
    works = [work for work in needed_work(plan, Rates()) if work[0] == "train" and work[2]][:4]
    pieces = {piece_key("train", base, plan.run(run_id), ""): 10.0 for _, base, run_id, _ in works}
    clock = Clock(forecast(plan, pieces, {"train": 40.0}))

    def said(done: int) -> tuple[float, float]:
        packs = [Pack("train", work[1], (work[2],)) for work in works[:2]]
        clock.note([Progress(pack, pack.run_ids[0], done, 10, 1.0) for pack in packs])
        return clock.seconds_left(Board(), works)

    assert said(0) == (20.0, 10.0)
    now[0] = 2.0  # nothing is said of parts yet, and two of the ten seconds have gone on both workers
    assert clock.seconds_left(Board(), works)[0] == pytest.approx(18.0)
    assert said(1)[0] == pytest.approx(19.0)  # one step of ten of two pieces; the start is no step's matter
    now[0] = 7.0  # five seconds a step, where one was forecast
    left, error = said(2)
    assert left == pytest.approx(5 * (40.0 - 4.0) / 2)
    assert error == pytest.approx(0.25 * 4 * (40.0 - 4.0) / 2), "equal paces, but far from the forecast"
    now[0] = 12.0
    assert clock.seconds_left(Board(), works)[0] == pytest.approx(left - 5.0), "it goes down by the clock"
    assert said(3)[0] == pytest.approx(left - 5.0)
    now[0] = 900.0  # a piece that says nothing for long is never all done
    assert clock.seconds_left(Board(), works)[0] >= 5 * (20.0 + 2.0) / 2


def test_a_run_that_goes_on_from_a_checkpoint_is_timed_by_the_steps_that_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = write_study(tmp_path).plan
    works = [work for work in needed_work(plan, Rates()) if work[0] == "train" and work[2]][:2]
    pieces = {piece_key("train", base, plan.run(run_id), ""): 10.0 for _, base, run_id, _ in works}
    clock = Clock(forecast(plan, pieces, {"train": 20.0}))
    packs = [Pack("train", work[1], (work[2],)) for work in works]
    for second, done in ((0.0, 0), (1.0, 7), (3.0, 8)):
        now[0] = second
        clock.note([Progress(pack, pack.run_ids[0], done, 10, 1.0) for pack in packs])
    # Two seconds a step where one was forecast; two steps are left of each.
    assert clock.seconds_left(Board(), works)[0] == pytest.approx(4.0)
    clock.note([Failed(pack, "cause") for pack in packs])
    assert clock.seconds_left(Board({work: "failed" for work in works}), works) is None


def test_pieces_whose_start_and_end_are_heard_of_at_once_say_nothing_of_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a busy driver of a Ray cluster hears of them; it ended with a division by zero."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    plan = write_study(tmp_path).plan
    works = [work for work in needed_work(plan, Rates()) if work[0] == "train" and work[2]][:6]
    pieces = {piece_key("train", base, plan.run(run_id), ""): 10.0 for _, base, run_id, _ in works}
    clock, board = Clock(forecast(plan, pieces, {"train": 60.0})), Board()
    for work in works[:4]:
        pack = Pack("train", work[1], (work[2],))
        clock.note([Progress(pack, work[2], done, 10, 1.0) for done in (1, 9)])
        if work in works[:2]:
            clock.note([Finished(pack)])
            board.status[work] = "complete"
    # As if nothing had been seen: of four pieces of ten seconds, two are nine tenths done.
    assert clock.seconds_left(board, works) == pytest.approx((22.0 / 2, 0.5 * 22.0 / 2))


def test_nothing_left_and_no_forecast_have_no_time(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    needed = list(needed_work(plan, Rates()))
    assert Clock(forecast(plan, {}, {})).seconds_left(Board(), needed) is None
    done = Board({work: "complete" for work in needed})
    assert Clock(forecast(plan, {}, {"train": 10.0})).seconds_left(done, needed) is None


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
    total = 1 + sum(work[0] == "train" for work in needed)
    later = [("train", "small", "a run at a rate that is chosen later", "")]
    shown.update(Board(), needed, later, [progress], [progress])
    time.sleep(0.4)  # a live picture renews itself a few times a second
    shown.update(Board(), needed, later, [Failed(pack, "RuntimeError: [no] memory")], [])
    shown.close()
    text = stream.getvalue()
    assert "a file was damaged" in text
    assert f"FAILED {run_id}: RuntimeError: [no] memory" in text
    assert "1.234" in text
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    assert any(re.match(rf" *train 0/{total}, ", line) for line in written), "the summary has a line of its own"


class Unread(io.StringIO):
    """A stream whose reader has gone."""

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_count_goes_on_where_nobody_reads_it() -> None:
    for stream in (Unread(), None):
        CountLines(stream).message("read 1 of 2")
