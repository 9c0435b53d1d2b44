"""What a worker says of how far it is."""

from __future__ import annotations

import threading

from rankscope.execute.bench import _Watcher
from rankscope.execute.events import Event
from rankscope.plan import Pack


def test_every_run_of_a_pack_is_told_of() -> None:
    """They step within milliseconds of each other: one clock for all would be the first one's alone."""
    told: list[Event] = []
    watcher = _Watcher(Pack("train", "base", ("first", "second")), told.append, threading.Event())
    for step in range(3):
        for run_id in ("first", "second"):
            watcher.progress(run_id, step, 60, 1.0)
    assert [event.run_id for event in told] == ["first", "second"]
