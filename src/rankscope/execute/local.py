"""Processes on this machine, each with a model of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from rankscope.execute.events import Event, Failed, Halted, Progress
from rankscope.execute.failures import disk_full, has_little_space, record_failure
from rankscope.execute.worker import worker_main
from rankscope.plan import Layout, Pack, Plan
from rankscope.store import Store

# A process that dies under the same pack a second time would die a third.
_MAX_DEATHS = 2
_STOP_SECONDS = 30.0
# What takes seconds to import and starts no threads; polars does, so nothing that imports it is here.
_SHARED_MODULES = ["torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "peft"]


class WorkerDied(Exception):
    """A worker process ended by itself, most often because the machine ran out of memory."""


@dataclass
class _Worker:
    """A process; its slot says which of the devices is its own."""

    process: BaseProcess
    connection: Connection
    slot: int
    pack: Pack | None = None


class LocalExecutor:
    """Hands packs to worker processes and brings back what they say.

    Args:
        store: The study directory.
        plan: With the layout: how many processes, how many threads each.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store = store
        self._plan = plan
        self._shares_imports = can_share_imports(plan.layout)
        # Fork and threads do not go together: what is forked here has none yet.
        self._context = multiprocessing.get_context("forkserver" if self._shares_imports else "spawn")
        if self._shares_imports:
            self._context.set_forkserver_preload(_SHARED_MODULES)
        self._is_stopping = False
        self._workers: list[_Worker] = []
        self._deaths: dict[Pack, int] = {}

    @property
    def num_idle(self) -> int:
        """How many packs could be taken now."""
        return self._plan.layout.num_workers - sum(worker.pack is not None for worker in self._workers)

    @property
    def in_flight(self) -> list[Pack]:
        """The packs that are being carried out."""
        return [worker.pack for worker in self._workers if worker.pack is not None]

    def submit(self, pack: Pack) -> None:
        """Hand a pack to an idle worker, starting one if there is none."""
        # A worker that died while idle is not missed until it is wanted.
        self._workers = [worker for worker in self._workers if worker.pack or worker.process.is_alive()]
        worker = next((worker for worker in self._workers if worker.pack is None), None)
        if worker is None:
            worker = self._start()
            self._workers.append(worker)
        worker.pack = pack
        with _ignoring_broken_pipe():  # one that dies before it has heard of the pack is found by `wait`
            worker.connection.send(pack)

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, after waiting at most so long for something to."""
        events: list[Event] = []
        for connection in wait([worker.connection for worker in self._workers if worker.pack], seconds):
            worker = next(worker for worker in self._workers if worker.connection is connection)
            try:
                event = worker.connection.recv()
            except (EOFError, ConnectionError):
                events += self._replace(worker)
                continue
            events.append(event)
            if not isinstance(event, Progress):
                worker.pack = None
        return events

    def stop(self) -> None:
        """Ask for checkpoints, wait for the packs that train, and end all processes."""
        self._is_stopping = True
        for worker in self._workers:
            if worker.pack is not None and worker.pack.stage == "train":
                worker.process.terminate()  # the worker takes the signal for the wish that it is
            elif worker.pack is not None:
                worker.process.kill()  # what it would have written is computed again
                worker.pack = None
        deadline = time.monotonic() + _STOP_SECONDS
        while self.in_flight and time.monotonic() < deadline:
            self.wait(0.2)
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            if worker.process.is_alive() and worker.pack is None:
                with _ignoring_broken_pipe():
                    worker.connection.send(None)
        for worker in self._workers:
            worker.process.join(timeout=5.0)
            worker.process.kill()
        self._workers.clear()
        if self._shares_imports:
            # The module has no public way to end its server, which would outlive the study with this environment.
            forkserver._forkserver._stop()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        slot = next(number for number in range(len(self._workers) + 1) if number not in self._slots())
        log_file = self._store.root / "logs" / f"worker-{slot}.log"
        arguments = (theirs, self._store.root, log_file)
        process = self._context.Process(target=worker_main, args=arguments, daemon=True)
        with surroundings(self._plan.layout, slot):
            process.start()
        theirs.close()
        return _Worker(process, ours, slot)

    def _slots(self) -> set[int]:
        return {worker.slot for worker in self._workers}

    def _replace(self, worker: _Worker) -> list[Event]:
        """Start another process in the place of one that died; its pack is tried once more, then recorded as failed.

        A process that cannot even write its log dies of the full disk, which is no failure of its pack.
        """
        pack = worker.pack
        worker.process.join(timeout=5.0)
        code = worker.process.exitcode
        self._workers.remove(worker)
        if pack is None or self._is_stopping:
            return []
        if has_little_space(self._store.root):
            return [Halted(pack, disk_full(f"a worker ended with status {code}"))]
        self._deaths[pack] = self._deaths.get(pack, 0) + 1
        if self._deaths[pack] < _MAX_DEATHS:
            self.submit(pack)
            return []
        cause = f"the process ended with status {code} ({_meaning(code)})"
        record_failure(self._store, self._plan, pack, WorkerDied(cause))
        return [Failed(pack, cause)]


def can_share_imports(layout: Layout) -> bool:
    """Whether workers are forked from one process that has imported torch: half of the memory and of the start.

    Not where there is one worker, nor with a GPU, whose driver does not survive a fork and whose number each worker
    is told before it starts; elsewhere than on Linux system libraries do not survive one.
    """
    return sys.platform == "linux" and layout.device == "cpu" and layout.num_workers > 1


def _meaning(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, most often because memory ran out: use fewer workers or a smaller max_tokens_per_batch"
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"{name}; see logs/ and the run's log.txt"
    return "see logs/ and the run's log.txt"


@contextmanager
def surroundings(layout: Layout, slot: int) -> Iterator[None]:
    """What a process reads once, when it starts: its number of threads, and which GPU is its own."""
    wanted = worker_environment(layout, slot)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def worker_environment(layout: Layout, slot: int) -> dict[str, str]:
    """The environment variables of a worker.

    Args:
        layout: Device and threads.
        slot: The worker's number, from 0; of the GPUs that this process may use, the one in that place is its own.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict.fromkeys(names, str(layout.threads_per_worker))
    environment["TOKENIZERS_PARALLELISM"] = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    if layout.device == "cuda" and layout.num_workers > 1:
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)] if visible else str(slot)
    return environment


@contextmanager
def _ignoring_broken_pipe() -> Iterator[None]:
    """A worker that has just ended needs no word that it should."""
    try:
        yield
    except (BrokenPipeError, ConnectionError):
        return
