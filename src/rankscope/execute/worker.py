"""One process of this machine that carries out packs."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import multiprocessing
import os
import signal
import threading
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from rankscope.execute.bench import Bench, redirect_output
from rankscope.execute.events import Event
from rankscope.plan import Place, Plan
from rankscope.store import Store, read_model


def worker_main(connection: Connection, root: Path, log_file: Path, place: Place | None = None) -> None:
    """Carry out the packs that come through `connection` until None comes.

    Args:
        connection: Packs come in, events go out.
        root: The study directory.
        log_file: Where what is printed before the first pack goes; later it goes to the log of the pack's run.
        place: Among the processes of the worker, where it trains models in parts; the first tells of progress.
    """
    gc.freeze()  # modules stay; collections need not look at them
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # the parent's wish for a checkpoint and an end
    _end_with_parent()
    redirect_output(log_file)
    store = Store(root)
    workers_lock = (root / ".workers").open("a+", encoding="utf-8")
    with contextlib.suppress(OSError):  # a network file system without locks
        fcntl.flock(workers_lock, fcntl.LOCK_SH)  # held until this process ends, however it ends
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise FileNotFoundError(store.plan_file)
    is_first = place is None or place.rank == 0
    bench = Bench(store, plan, partial(_tell, connection) if is_first else lambda _: None, stop, place)
    while (pack := connection.recv()) is not None:
        _tell(connection, bench.finish(pack))
    bench.close()


def _tell(connection: Connection, event: Event) -> None:
    """Send an event to the parent; without one this process ends at once, as its work is no failure."""
    try:
        connection.send(event)
    except ConnectionError:
        os._exit(1)


def _end_with_parent() -> None:
    """End this process with the one that started it, so that no orphan writes into a study that goes on elsewhere."""
    parent = multiprocessing.parent_process()  # not getppid: that may be the server that this one was forked from
    if parent is None:
        raise RuntimeError("a worker is started by multiprocessing")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
