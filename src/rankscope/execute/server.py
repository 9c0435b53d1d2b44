"""The process that imports torch once and from which workers are forked: half of their memory and of their start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO

from rankscope.execute.surroundings import errors_to, surroundings, worker_environment
from rankscope.layout import likely_layout
from rankscope.plan import Layout
from rankscope.spec import Study

# What takes seconds to import and starts no threads; polars does, so nothing that imports it is here.
SHARED_MODULES = ["torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "peft"]


@dataclass(frozen=True)
class _Running:
    """The one server that a process can have: what it found when it started, and what libraries said since."""

    environment: dict[str, str]
    said: IO[bytes]


_running: _Running | None = None


def can_share_imports(layout: Layout) -> bool:
    """Whether workers are forked from one process that has imported torch.

    Not where there is one process, nor with a GPU, whose driver does not survive a fork and whose number each worker
    is told before it starts; elsewhere than on Linux system libraries do not survive one.
    """
    return sys.platform == "linux" and layout.device == "cpu" and layout.num_workers * layout.shard > 1


@contextmanager
def importing_early(study: Study) -> Iterator[None]:
    """Begin to import what workers need while the study is planned: it takes longer than anything else at the start.

    Where the plan then divides the machine in another way, nothing is gained.
    """
    layout = likely_layout(study)
    if layout is not None and can_share_imports(layout):
        start_server(layout)
    try:
        yield
    finally:
        stop_server()


def start_server(layout: Layout) -> ForkServerContext:
    """Begin to import, if that has not begun; who starts a process in this context waits until it is done."""
    global _running
    context = multiprocessing.get_context("forkserver")
    environment = worker_environment(layout, 0)
    if _running is not None and _running.environment == environment:
        return context
    stop_server()
    said = tempfile.TemporaryFile()
    context.set_forkserver_preload(SHARED_MODULES)
    with surroundings(layout, 0), errors_to(said):
        forkserver.ensure_running()
    _running = _Running(environment, said)
    return context


def stop_server(log_file: Path | None = None) -> None:
    """End the server once its workers have ended; it would outlive the study, with this environment.

    Args:
        log_file: Where what libraries said while they were imported goes.
    """
    global _running
    if _running is None:
        return
    # The module has no public way to end its server; asked to, it would spend seconds on taking modules down.
    server = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
    server._stop()
    if log_file is not None:
        _running.said.seek(0)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.write_bytes(_running.said.read())
    _running.said.close()
    _running = None
