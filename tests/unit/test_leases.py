"""Only one process holds a lease; a dead process's is recognised, on this machine and on another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rankscope.errors import UserError
from rankscope.leases import LEASE_SECONDS, Leases, is_occupied, occupy
from rankscope.store import Store


def make(root: Path, orphan_seconds: float = 0.0) -> Leases:
    return Leases(root, is_shared=True, orphan_seconds=orphan_seconds)


def forge(root: Path, name: str, **holder: object) -> Path:
    path = root / "leases" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": name, "birth": None} | holder))
    return path


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_takes_it_and_the_other_does_not(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    assert first.take("a")
    assert not second.take("a")
    assert second.take("b")
    first.release("a")
    assert second.take("a")
    first.close()
    assert not make(tmp_path).take("a")
    second.close()
    assert not list((tmp_path / "leases").glob("*.json"))


def test_many_that_try_at_once(tmp_path: Path) -> None:
    everyone = [make(tmp_path) for _ in range(8)]
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: taken.append(i) if everyone[i].take("a") else None) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    leases = make(tmp_path)
    forge(tmp_path, "a", host=leases._owner["host"], pid=dead_pid())
    assert leases.take("a")
    forge(tmp_path, "b", host=leases._owner["host"], pid=os.getpid(), birth=leases._owner["birth"])
    assert not leases.take("b")
    # The number of a process that was killed may be another's by now: its time of birth tells them apart.
    forge(tmp_path, "c", host=leases._owner["host"], pid=os.getpid(), birth="1")
    assert leases.take("c")


def test_a_process_that_was_killed_and_not_yet_reaped_holds_nothing(tmp_path: Path) -> None:
    leases = make(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    birth = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    forge(tmp_path, "a", host=leases._owner["host"], pid=process.pid, birth=birth)
    assert not leases.take("a")
    process.kill()
    time.sleep(0.2)
    assert leases.take("a")
    process.wait()


def test_the_workers_of_a_killed_process_are_given_time_to_end(tmp_path: Path) -> None:
    leases = make(tmp_path, orphan_seconds=0.3)
    forge(tmp_path, "a", host=leases._owner["host"], pid=dead_pid())
    assert not leases.take("a")
    time.sleep(0.35)
    assert leases.take("a")


def test_a_lease_that_another_took_over_is_not_given_back(tmp_path: Path) -> None:
    leases = make(tmp_path)
    assert leases.take("a")
    path = forge(tmp_path, "a")
    leases.release("a")
    assert path.exists()


def test_a_lease_from_another_host_expires_when_it_is_not_renewed(tmp_path: Path) -> None:
    leases = make(tmp_path)
    path = forge(tmp_path, "a")
    assert not leases.take("a")
    age(path, LEASE_SECONDS - 5)
    assert not leases.take("a")
    age(path, 10)
    assert leases.take("a")
    assert json.loads(path.read_text())["id"] == leases._owner["id"]


def test_alone_and_together_exclude_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    assert not is_occupied(store)
    with occupy(store, share=True), occupy(store, share=True):
        assert is_occupied(store)
        with pytest.raises(UserError, match="--share"), occupy(store, share=False):
            pass
    with occupy(store, share=False):
        assert is_occupied(store)
        for share in (True, False):
            with pytest.raises(UserError, match="another process works on it"), occupy(store, share=share):
                pass
    assert not is_occupied(store)


def test_a_process_on_another_host_keeps_this_one_out_until_it_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    store.root.mkdir()
    path = forge(store.root, "study")
    with pytest.raises(UserError, match="process 1 on elsewhere"), occupy(store, share=False):
        pass
    age(path, LEASE_SECONDS + 5)
    with occupy(store, share=False):
        pass
