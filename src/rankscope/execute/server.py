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
# The last takes all of it out of collections, which would give each worker a copy.
SHARED_MODULES = [
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "peft",
    "rankscope.execute.frozen",
]


@dataclass(frozen=True)
class _Running:
    """Our server, where there is one: what it found when it started, and what libraries said since."""

    environment: dict[str, str]
    said: IO[bytes]


_running: _Running | None = None


def can_share_imports(layout: Layout) -> bool:
    """Whether workers are forked from one process that has imported torch.

    Not where there is one process, nor with a GPU, whose driver does not survive a fork and whose number each worker
    is told before it starts; elsewhere than on Linux system libraries do not survive one. Nor where a caller of the
    library has such a server of its own, with an environment of its own: a process cannot have two.
    """
    is_free = _running is not None or forkserver._forkserver._forkserver_pid is None
    return is_free and sys.platform == "linux" and layout.device == "cpu" and layout.num_workers * layout.shard > 1


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
    if _running is None or _running.environment != environment:
        stop_server()
        context.set_forkserver_preload(SHARED_MODULES)
        _running = _Running(environment, tempfile.TemporaryFile())
    with surroundings(layout, 0), errors_to(_running.said):
        forkserver.ensure_running()  # another, where the system has ended it
    return context


def stop_server(log_file: Path | None = None) -> None:
    """End the server, which would outlive the study with this environment; its workers have ended before.

    Args:
        log_file: What libraries said while they were imported is added to it.
    """
    global _running
    if _running is None:
        return
    running, _running = _running, None
    # The module has no public way to end its server; asked to, it would spend seconds on taking modules down.
    server = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
    server._stop()
    with running.said as said:
        said.seek(0)
        if log_file is not None and (text := said.read()):
            log_file.parent.mkdir(parents=True, exist_ok=True)
            with log_file.open("ab") as stream:
                stream.write(text)
