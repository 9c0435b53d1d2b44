"""The process that follows a study for its tracker, so that nothing a tracker does can end or delay the study."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from rankscope.execute.bench import redirect_output
from rankscope.plan import Plan
from rankscope.store import Store, read_model
from rankscope.track.follower import Follower
from rankscope.track.trackers import make_tracker

LOG = "tracker.log"
_LOOK_SECONDS = 1.0
# A tracker may have a slow line to its server; after so long the study is worth more.
_LAST_SECONDS = 120.0
_CLOSE_SECONDS = 10.0
_SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 6


class Tracking:
    """The process from the side of the study.

    Args:
        kind: As `report_to` names it; with `none` there is no process.
        root: The study directory, which holds a plan by now.
    """

    def __init__(self, kind: str, root: Path) -> None:
        self.kind = kind
        self.failure: str | None = None
        self._is_told = False
        self._root = root
        self._process = None
        if kind != "none":
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_follow, args=(theirs, kind, root), daemon=True)
            self._process.start()
            theirs.close()

    def news(self) -> str | None:
        """What a person must hear of the tracker, once: that it has stopped, and that the study goes on."""
        if self._process is not None and self.failure is None:
            self._look(0.0)
        if self.failure is None or self._is_told:
            return None
        self._is_told = True
        return f"{self.kind} has stopped tracking ({self.failure}); the study goes on without it"

    def finish(self) -> None:
        """Have the rest told, verdicts among it, and wait for that a while."""
        if self._process is None or self.failure is not None:
            return
        try:
            self._connection.send("finish")
        except OSError:  # it has ended; `_look` finds out how
            pass
        self._look(_LAST_SECONDS, is_last=True)

    def close(self) -> None:
        """End the process: it closes what is open when it hears of it, and has a few seconds for that."""
        if self._process is not None:
            self._connection.close()
            self._process.join(timeout=_CLOSE_SECONDS)
            self._process.kill()

    def _look(self, seconds: float, *, is_last: bool = False) -> None:
        if self._connection.poll(seconds):
            try:
                self.failure = self._connection.recv()
            except (EOFError, OSError):
                self.failure = f"its process ended; see logs/{LOG}"
        elif is_last:
            self.failure = f"it has not taken everything within {_LAST_SECONDS:g} s"


@contextmanager
def tracking(kind: str, root: Path) -> Iterator[Tracking]:
    """Track a study while the context lasts."""
    process = Tracking(kind, root)
    try:
        yield process
    finally:
        process.close()


def _follow(connection: Connection, kind: str, root: Path) -> None:
    """Follow a study until it says that it is over; send what went wrong, or None where all was told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the study decides what it means
    redirect_output(root / "logs" / LOG)  # what trackers print has no place in the study's picture
    try:
        failure = _tell(connection, kind, root)
    except Exception as error:  # noqa: BLE001  whatever a tracker raises, it must be seen and end nothing
        sys.stderr.write(without_secrets(traceback.format_exc()))  # into the log
        first = without_secrets(str(error)).strip().split("\n")[0]
        failure = f"{type(error).__name__}: {first}; see logs/{LOG}"
    try:
        connection.send(failure)
    except OSError:
        return  # the study has ended; nobody is left to be told


def _tell(connection: Connection, kind: str, root: Path) -> None:
    store = Store(root)
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise FileNotFoundError(store.plan_file)
    follower = Follower(store, plan, make_tracker(kind, plan.study, root), kind)
    while not connection.poll(_LOOK_SECONDS):
        follower.tell()
    try:
        connection.recv()
        follower.tell_verdicts()
    except (EOFError, OSError):
        pass  # the study was stopped: its verdicts are told when it is run again
    follower.close()


def without_secrets(text: str) -> str:
    """A text without what the environment holds under names of secrets, and without passwords in addresses."""
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)
