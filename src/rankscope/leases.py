"""Who may work on what in a study directory: one process alone, or several that each take pieces under a lease."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rankscope.errors import UserError
from rankscope.store import Store

# A lease that its holder has not renewed for so long has expired; the holder renews it six times in that time.
LEASE_SECONDS = 60.0
_RENEW_SECONDS = LEASE_SECONDS / 6
_ORPHAN_SECONDS = 20.0
# Workers look for their parent every half second.
ORPHAN_LIFE_SECONDS = 2.0
_STUDY = "study"
_MEMBER = "member-"
# Whose holder was killed, or had no space, between making the file and saying who it is: it expires by its age.
_UNKNOWN = {"host": "an unknown machine", "pid": 0, "birth": None, "id": ""}


class Leases:
    """Claims on pieces of work, each a file that says who holds it, kept young by a thread of the holder.

    A file system that several machines share need not have locks that work, so a lease is a file that only one can
    create. It has expired when its process is gone (same machine) or it has not been renewed for `LEASE_SECONDS` by the
    file system's own clock (any machine). A process of this machine that was killed leaves workers that live for a
    moment longer, so its leases are taken over only some time after it is first seen to be gone.

    Args:
        root: The study directory.
        is_shared: Several processes work on the study; alone, nobody else can hold anything.
        orphan_seconds: How long the workers of a killed process of this machine may live on.
    """

    def __init__(self, root: Path, *, is_shared: bool, orphan_seconds: float = ORPHAN_LIFE_SECONDS) -> None:
        self.is_shared = is_shared
        self._orphan_seconds = orphan_seconds
        self._folder = root / "leases"
        self._folder.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        self._owner = {"host": socket.gethostname(), "pid": pid, "birth": _birth(pid), "id": uuid.uuid4().hex}
        self._held: set[str] = set()
        self._seen_gone: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def take(self, name: str) -> bool:
        """Take a lease; False where another holds it."""
        path = self._folder / f"{name}.json"
        if self._create(path):
            self._held.add(name)
            return True
        holder = self._read(path)
        if holder is None or not self._has_expired(path, holder) or not self._remove(path, holder):
            return False
        return self.take(name)

    def release(self, name: str) -> None:
        """Give a lease back."""
        self._held.discard(name)
        path = self._folder / f"{name}.json"
        holder = self._read(path)
        if holder is not None and holder["id"] == self._owner["id"]:  # else it expired, and another took it over
            path.unlink(missing_ok=True)

    def living(self, prefix: str) -> list[str]:
        """Who holds leases whose names begin so, other than this process, as text for a person.

        A process of this machine that was killed counts for as long as its workers may live.
        """
        found = []
        for path in sorted(self._folder.glob(f"{prefix}*.json")):
            holder = self._read(path)
            if holder is None or holder["id"] == self._owner["id"] or self._has_expired(path, holder):
                continue
            found.append(f"process {holder['pid']} on {holder['host']}")
        return found

    def clear(self) -> None:
        """Remove what others left, by a process that has the study to itself."""
        for path in self._folder.iterdir():
            if path.name not in {f"{name}.json" for name in self._held}:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give everything back."""
        self._stopped.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(self._owner, stream)
        except OSError:  # no space: nobody must wait for a lease that nobody holds
            path.unlink(missing_ok=True)
            raise
        return True

    def _read(self, path: Path) -> dict | None:
        """A lease's holder; None where it has just gone."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            return _UNKNOWN

    def _has_expired(self, path: Path, holder: dict) -> bool:
        if holder["host"] == self._owner["host"]:
            if _is_alive(holder["pid"]) and _birth(holder["pid"]) == holder["birth"]:
                return False
            first = self._seen_gone.setdefault(holder["id"], time.monotonic())
            return time.monotonic() - first >= self._orphan_seconds
        try:
            return self._now() - path.stat().st_mtime > LEASE_SECONDS
        except FileNotFoundError:
            return False

    def _now(self) -> float:
        """The file system's time: clocks of machines differ by more than one would think."""
        probe = self._folder / f".now-{self._owner['id']}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except PermissionError:
            return time.time()  # who may only read can take nothing, and an estimate will do
        finally:
            probe.unlink(missing_ok=True)

    def _remove(self, path: Path, holder: dict) -> bool:
        """Remove an expired lease; only one of several that try can rename it."""
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        found = self._read(aside)
        if found is not None and found["id"] != holder["id"]:
            aside.rename(path)  # another was quicker, and this one is its fresh lease
            return False
        aside.unlink()
        return True

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEW_SECONDS):
            for name in list(self._held):
                # A lease that is just being given back, or a file system that stumbles, must not end this thread.
                with contextlib.suppress(OSError):
                    os.utime(self._folder / f"{name}.json")


@contextmanager
def occupy(store: Store, *, share: bool) -> Iterator[Leases]:
    """Hold a study directory: alone, or as one of several that share it.

    Args:
        store: The study directory, made if it does not exist.
        share: Work beside other processes that say the same.

    Raises:
        UserError: Another process works on it, and not both of them share.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / ".lock").open("a+", encoding="utf-8") as lock:
        _lock(store, lock, share=share)
        leases = Leases(store.root, is_shared=share)
        try:
            _enter(store, leases, share=share)
            if not share:
                leases.clear()
                _wait_for_orphans(store)
            yield leases
        finally:
            leases.close()


def _enter(store: Store, leases: Leases, *, share: bool) -> None:
    """Take the lease of the whole study, or of a member, once whoever held it before and was killed is surely gone."""
    name = f"{_MEMBER}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}" if share else _STUDY
    deadline = time.monotonic() + 2 * ORPHAN_LIFE_SECONDS
    while True:
        others = leases.living(_STUDY) if share else leases.living(_STUDY) + leases.living(_MEMBER)
        if not others and leases.take(name):
            return
        if time.monotonic() > deadline:
            raise _occupied(store, (others or ["another process"])[0], share=share)
        time.sleep(0.2)


def is_occupied(store: Store) -> bool:
    """Whether a process works on the study now, on this machine or another."""
    if not (store.root / "leases").is_dir():
        return False
    leases = Leases(store.root, is_shared=True, orphan_seconds=0.0)
    try:
        return bool(leases.living(_STUDY) or leases.living(_MEMBER))
    finally:
        leases.close()


def _lock(store: Store, lock: TextIO, *, share: bool) -> None:
    """The kernel's lock, which cannot outlive its process; where there is none, the leases decide."""
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if share else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise _occupied(store, lock.read().strip() or "another process", share=share) from None
    except OSError:
        return  # a network file system without locks
    if not share:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()


def _occupied(store: Store, who: str, *, share: bool) -> UserError:
    mend = "wait for it, or watch it with `rankscope status`; to work on it together start all of them with --share"
    if share:
        mend = "it works on it alone: wait for it, or stop it and start it again with --share"
    return UserError(f"another process works on it ({who})", where=store.root, mend=mend)


def _wait_for_orphans(store: Store) -> None:
    """Wait until the workers of a process that was killed have noticed and ended."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    with (store.root / ".workers").open("a+", encoding="utf-8") as workers:
        while True:
            try:
                fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    what = "workers of an earlier process still write to it"
                    raise UserError(
                        what, where=store.root, mend="wait for them, or end them, and start again"
                    ) from None
                time.sleep(0.2)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _birth(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks: numbers of processes are used again.

    A process that has ended and whose parent has not looked yet still has a number; it has no birth here.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None  # no such process, or no Linux: there the number alone has to do
    return None if fields[0] in {"Z", "X"} else fields[19]
