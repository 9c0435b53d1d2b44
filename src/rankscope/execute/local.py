"""Workers on this machine, each with a model of its own; of a model in parts a worker is several processes."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from rankscope.execute.events import Event, Failed, Finished, Halted, Progress
from rankscope.execute.failures import disk_full, failure_of, has_little_space, record_failure
from rankscope.execute.server import can_share_imports, start_server, stop_server
from rankscope.execute.surroundings import surroundings
from rankscope.execute.worker import worker_main
from rankscope.plan import Pack, Place, Plan
from rankscope.store import Store

# A process that dies under the same pack a second time would die a third.
_MAX_DEATHS = 2
_STOP_SECONDS = 30.0
# A process whose neighbour has died hears of it before that one is quite gone.
_DEATH_SECONDS = 2.0


class WorkerDied(Exception):
    """A worker process ended by itself, most often because the machine ran out of memory."""


@dataclass
class _Process:
    """One of a worker's processes; the first (rank 0) reports, and carries out alone what needs no more than one."""

    process: BaseProcess
    connection: Connection
    rank: int


@dataclass
class _Worker:
    """Processes with a device each; the slot says which are the worker's own.

    Attributes:
        meeting: The folder with the file by which they find each other.
        busy: The processes that are at the pack.
    """

    processes: list[_Process]
    slot: int
    meeting: Path | None = None
    pack: Pack | None = None
    busy: list[_Process] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        return all(one.process.is_alive() for one in self.processes)

    def end(self) -> None:
        """End all processes at once: of one that is left, its work is nothing without the others."""
        for one in self.processes:
            one.process.kill()
        if self.meeting is not None:
            shutil.rmtree(self.meeting, ignore_errors=True)


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
        if not self._shares_imports:
            stop_server()  # begun early for a study of another layout, it would hold its memory to the end
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
        for worker in [worker for worker in self._workers if not worker.pack and not worker.is_alive]:
            worker.end()
            self._workers.remove(worker)
        worker = next((worker for worker in self._workers if worker.pack is None), None)
        if worker is None:
            worker = self._start()
            self._workers.append(worker)
        worker.pack = pack
        worker.busy = list(worker.processes if self._plan.is_in_parts(pack) else worker.processes[:1])
        for one in worker.busy:
            with _ignoring_broken_pipe():  # one that dies before it has heard of the pack is found by `wait`
                one.connection.send(pack)

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, after waiting at most so long for something to."""
        events: list[Event] = []
        at = {one.connection: (worker, one) for worker in self._workers if worker.pack for one in worker.busy}
        for connection in wait(list(at), seconds):
            worker, one = at[connection]
            if worker not in self._workers or one not in worker.busy:
                continue  # ended with another of its processes a moment ago
            try:
                event = connection.recv()
            except (EOFError, ConnectionError):
                events += self._replace(worker)
                continue
            events += self._news(worker, one, event)
        return events

    def _news(self, worker: _Worker, one: _Process, event: Event) -> list[Event]:
        """What a process's word means: of several all have to be done, and one that fails ends all."""
        if isinstance(event, Progress):
            return [event]
        worker.busy.remove(one)
        if isinstance(event, Finished):
            if worker.busy:
                return []
            worker.pack = None
            return [event]
        if self._plan.is_in_parts(event.pack):
            return self._end_together(worker, event)
        worker.pack = None
        return [event]

    def _end_together(self, worker: _Worker, event: Failed | Halted) -> list[Event]:
        """A process of several has failed, and the others would wait for it; what it says may come of one that died."""
        sentinels = [one.process.sentinel for one in worker.processes]
        if len(sentinels) > 1 and wait(sentinels, _DEATH_SECONDS):
            return self._replace(worker)
        worker.end()
        self._workers.remove(worker)
        if isinstance(event, Failed) and event.failure is not None:
            record_failure(self._store, self._plan, event.pack, event.failure)
        return [event]

    def stop(self) -> None:
        """Ask for checkpoints, wait for the packs that train, and end all processes."""
        self._is_stopping = True
        for worker in self._workers:
            if worker.pack is not None and worker.pack.stage == "train":
                worker.processes[0].process.terminate()  # it takes the signal for the wish that it is, and tells others
            elif worker.pack is not None:
                worker.end()  # what it would have written is computed again
                worker.pack = None
        deadline = time.monotonic() + _STOP_SECONDS
        while self.in_flight and time.monotonic() < deadline:
            self.wait(0.2)
        self.close()

    def close(self) -> None:
        """End all processes."""
        idle = [one for worker in self._workers if worker.pack is None for one in worker.processes]
        for one in idle:
            with _ignoring_broken_pipe():
                one.connection.send(None)
        for one in [one for worker in self._workers for one in worker.processes]:
            one.process.join(timeout=5.0)
        for worker in self._workers:
            worker.end()
            for one in worker.processes:
                one.process.join(timeout=5.0)
        self._workers.clear()
        if self._shares_imports:
            stop_server(self._store.root / "logs" / "imports.log")

    def _start(self) -> _Worker:
        slot = next(number for number in range(len(self._workers) + 1) if number not in self._slots())
        layout = self._plan.layout
        # A name that no other worker has or had: what is left in such a file would be taken for who is there.
        meeting = Path(tempfile.mkdtemp(prefix="rankscope-")) if layout.is_sharded else None
        processes = []
        for rank in range(layout.shard):
            place = Place(rank, layout.shard, str(meeting / "all")) if meeting is not None else None
            processes.append(self._start_process(slot, rank, place))
        return _Worker(processes, slot, meeting)

    def _start_process(self, slot: int, rank: int, place: Place | None) -> _Process:
        ours, theirs = self._context.Pipe()
        number = slot if rank == 0 else f"{slot}-{rank}"
        log_file = self._store.root / "logs" / f"worker-{number}.log"
        arguments = (theirs, self._store.root, log_file, place)
        process = self._context.Process(target=worker_main, args=arguments, daemon=True)
        if self._shares_imports:
            start_server(self._plan.layout)
        with surroundings(self._plan.layout, slot, rank):
            process.start()
        theirs.close()
        return _Process(process, ours, rank)

    def _slots(self) -> set[int]:
        return {worker.slot for worker in self._workers}

    def _replace(self, worker: _Worker) -> list[Event]:
        """Start another process in the place of one that died; its pack is tried once more, then recorded as failed.

        A process that cannot even write its log dies of the full disk, which is no failure of its pack.
        """
        pack = worker.pack
        code = _code(worker)
        worker.end()
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
        record_failure(self._store, self._plan, pack, failure_of(WorkerDied(cause)))
        return [Failed(pack, cause)]


def _code(worker: _Worker) -> int | None:
    """With which status the worker's process ended that did."""
    processes = {one.process.sentinel: one.process for one in worker.processes}
    for sentinel in wait(list(processes), 5.0):
        processes[sentinel].join(5.0)
    return next((code for process in processes.values() if (code := process.exitcode) is not None), None)


def _meaning(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, most often because memory ran out: use fewer workers or a smaller max_tokens_per_batch"
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"{name}; see logs/ and the run's log.txt"
    return "see logs/ and the run's log.txt"


@contextmanager
def _ignoring_broken_pipe() -> Iterator[None]:
    """A worker that has just ended needs no word that it should."""
    try:
        yield
    except (BrokenPipeError, ConnectionError):
        return
