"""What a killed process left of its leases holds nobody up, though another process has its number by now."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from rankscope import leases
from rankscope.errors import UserError
from rankscope.leases import LEASE_SECONDS, Leases, occupy
from rankscope.store import Store


def left_behind(root: Path, name: str, **changes: object) -> Path:
    """A lease of a process that is gone; its number is that of a process that lives (this test's parent)."""
    folder = root / "leases"
    folder.mkdir(exist_ok=True)
    holder = {"host": socket.gethostname(), "pid": os.getppid(), "birth": "1", "id": "of the dead"} | changes
    path = folder / f"{name}.json"
    path.write_text(json.dumps(holder))
    return path


def test_a_number_that_another_process_has_now_holds_nobody_up(tmp_path: Path) -> None:
    left_behind(tmp_path, "study")
    left_behind(tmp_path, "evaluate-base")
    with occupy(Store(tmp_path), share=False) as held:
        assert held.take("evaluate-base")


def test_the_lease_of_a_living_process_holds(tmp_path: Path) -> None:
    left_behind(tmp_path, "study", birth=leases._birth(os.getppid()))
    with pytest.raises(UserError, match="another process works on it"), occupy(Store(tmp_path), share=False):
        pass


def test_alone_nobody_elses_lease_counts(tmp_path: Path) -> None:
    """The machine is gone, and its leases are too young to have expired by themselves."""
    left_behind(tmp_path, "evaluate-base", host="a machine that is gone")
    with occupy(Store(tmp_path), share=False) as held:
        assert held.take("evaluate-base")


def test_half_a_lease_expires_by_its_age(tmp_path: Path) -> None:
    path = left_behind(tmp_path, "rates")
    path.write_text("")
    mine = Leases(tmp_path, is_shared=True)
    try:
        assert not mine.take("rates")  # it may be being written right now
        old = path.stat().st_mtime - LEASE_SECONDS - 1
        os.utime(path, (old, old))
        assert mine.take("rates")
    finally:
        mine.close()


def test_a_lease_that_could_not_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    mine = Leases(tmp_path, is_shared=True)
    try:
        monkeypatch.setattr(leases.json, "dump", full)
        with pytest.raises(OSError, match="No space"):
            mine.take("rates")
        monkeypatch.undo()
        assert mine.take("rates")
    finally:
        mine.close()
