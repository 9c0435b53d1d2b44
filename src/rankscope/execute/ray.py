"""Workers on a Ray cluster that is there already: the same packs, one GPU or a few processor cores for each."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.errors import UserError
from rankscope.execute.events import Event, Failed, Halted, Progress
from rankscope.execute.failures import failure_of, record_failure
from rankscope.execute.parcels import Marks, Parcel, changed_files, marks, needed_files, read_parcel, write_parcel
from rankscope.execute.surroundings import NUMBERS_OF_THREADS
from rankscope.plan import Layout, Pack, Plan
from rankscope.spec import Execute
from rankscope.store import Store, read_model

# A worker that dies under the same pack a second time would die a third; a node that is lost is not the pack's fault.
_MAX_DEATHS = 2
_STOP_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_KNOCK_SECONDS = 10.0


class WorkerLost(Exception):
    """A worker on the cluster ended by itself, though its node is there."""


def cluster_layout(execute: Execute) -> Layout:
    """Connect to the cluster and say how work is laid out on it.

    Raises:
        UserError: Ray is not installed, there is no cluster, or it has fewer devices than are asked for.
    """
    _connect(execute)
    resources = _ray().cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    device = execute.device if execute.device != "auto" else "cuda" if gpus else "cpu"
    if device == "mps":
        raise UserError("a Ray cluster has no mps devices", where="execute.device", mend="set it to auto, cpu or cuda")
    threads = execute.threads_per_worker if execute.threads_per_worker != "auto" else 1
    room = gpus if device == "cuda" else cores // threads
    wanted = execute.num_workers if execute.num_workers != "auto" else max(1, room)
    if wanted > room:
        has = f"{gpus} GPUs" if device == "cuda" else f"{cores} processor cores"
        if not room and device == "cuda":
            what = f"cuda is asked for, and the cluster has {has}"
            raise UserError(what, where="execute.device", mend="add nodes with GPUs, or set it to cpu")
        workers = f"1 worker on {device} is" if wanted == 1 else f"{wanted} workers on {device} are"
        what = f"{workers} asked for, and the cluster has {has}"
        mend = f"set it to {room} or less, or add nodes" if room else "add nodes, or lower execute.threads_per_worker"
        raise UserError(what, where="execute.num_workers", mend=mend)
    return Layout(device=device, num_workers=wanted, threads_per_worker=threads)


@dataclass
class _Worker:
    """An actor on the cluster and what it is at.

    Attributes:
        sent: Files that lie in its folder already, where it has one of its own.
    """

    actor: Any
    node: str | None = None
    pack: Pack | None = None
    result: Any = None
    asked: Any = None
    sent: Marks = field(default_factory=dict)


class RayExecutor:
    """Hands packs to actors and brings back what they say.

    Args:
        store: The study directory, which every node sees, unless results are fetched.
        plan: With the layout.
        execute: The study file's section.
    """

    def __init__(self, store: Store, plan: Plan, execute: Execute) -> None:
        _connect(execute)
        self._store, self._plan = store, plan
        self._is_fetched = execute.results == "fetched"
        self._workers: list[_Worker] = []
        self._lost: list[Pack] = []
        self._deaths: dict[Pack, int] = {}
        self._is_stopping = False
        self._most = None if execute.num_workers == "auto" else execute.num_workers
        self._places, self._looked = plan.layout.num_workers, time.monotonic()

    @property
    def num_idle(self) -> int:
        """How many packs could be taken now, by what the cluster has left."""
        busy = sum(worker.pack is not None for worker in self._workers)
        return max(0, self._room() - busy - len(self._lost))

    @property
    def in_flight(self) -> list[Pack]:
        """The packs that are being carried out, or wait for a node in the place of one that was lost."""
        return [worker.pack for worker in self._workers if worker.pack is not None] + list(self._lost)

    def submit(self, pack: Pack) -> None:
        """Hand a pack to an idle worker, starting one if there is none."""
        worker = next((worker for worker in self._workers if worker.pack is None), None)
        if worker is None:
            worker = self._start()
        parcel: Parcel = {}
        if self._is_fetched:
            here = marks(self._store.root, needed_files(self._store, pack))
            unsent = [name for name, mark in here.items() if worker.sent.get(name) != mark]
            parcel = read_parcel(self._store.root, unsent)
            # What belongs to runs leaves the node with the pack.
            worker.sent |= {name: mark for name, mark in here.items() if not name.startswith("runs/")}
        worker.pack = pack
        worker.result = worker.actor.carry_out.remote(pack, parcel)

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, after waiting at most so long for something to."""
        self._place_lost()
        ray = _ray()
        busy = {worker.result: worker for worker in self._workers if worker.pack is not None}
        if not busy:
            time.sleep(min(seconds, _LOOK_SECONDS))
            return []
        done, _ = ray.wait(list(busy), num_returns=1, timeout=seconds)
        events: list[Event] = [event for worker in busy.values() for event in self._news(worker)]
        for result in done:
            worker = busy[result]
            try:
                event, parcel = ray.get(result)
            except ray.exceptions.RayError as error:
                events += self._replace(worker, error)
                continue
            write_parcel(self._store.root, parcel)
            worker.pack = None
            events.append(event)
        return events

    def stop(self) -> None:
        """Ask for checkpoints, wait for the packs that train, and end all workers."""
        self._is_stopping = True
        self._lost.clear()
        for worker in list(self._workers):
            if worker.pack is not None and worker.pack.stage == "train":
                worker.actor.stop.remote()
            elif worker.pack is not None:
                self._end(worker)  # what it would have written is computed again
        deadline = time.monotonic() + _STOP_SECONDS
        while self.in_flight and time.monotonic() < deadline:
            self.wait(0.2)
        self.close()

    def close(self) -> None:
        """End all workers; the cluster stays as it is."""
        for worker in list(self._workers):
            self._end(worker)

    def _start(self) -> _Worker:
        layout = self._plan.layout
        resources = {"num_cpus": layout.threads_per_worker, "num_gpus": 1 if layout.device == "cuda" else 0}
        # One thread works, the others answer meanwhile how far it is and hear that it should stop.
        kind = _ray().remote(ClusterWorker).options(**resources, max_concurrency=3, max_restarts=0)
        root = None if self._is_fetched else str(self._store.root.resolve())
        worker = _Worker(kind.remote(root, layout.threads_per_worker))
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(Exception):  # it may have ended, or its node
            _ray().kill(worker.actor)

    def _news(self, worker: _Worker) -> list[Event]:
        """How far a worker's runs are, as far as it has answered."""
        ray = _ray()
        news: list[Event] = []
        if worker.asked is not None and ray.wait([worker.asked], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # its result will say the same
                worker.node, news = ray.get(worker.asked)
            worker.asked = None
        if worker.asked is None and worker.pack is not None:
            worker.asked = worker.actor.news.remote()
        return news

    def _replace(self, worker: _Worker, error: Exception) -> list[Event]:
        """Give a pack whose worker was lost to another; one that died on a living node twice has failed."""
        pack = worker.pack
        self._end(worker)
        if pack is None or self._is_stopping:
            return []
        if isinstance(error, _ray().exceptions.RayTaskError):
            # Raised outside the stage's own boundary: the node cannot do this study's work at all.
            return [Halted(pack, f"a node of the cluster cannot carry out the study: {_last_line(error)}")]
        if worker.node is None or worker.node in _living_nodes():
            self._deaths[pack] = self._deaths.get(pack, 0) + 1
        if self._deaths.get(pack, 0) < _MAX_DEATHS:
            self._lost.append(pack)
            return []
        cause = f"its worker on the cluster ended twice ({_last_line(error)}), most often because memory ran out"
        record_failure(self._store, self._plan, pack, failure_of(WorkerLost(cause)))
        return [Failed(pack, cause)]

    def _place_lost(self) -> None:
        """Packs of lost nodes go to the next worker that is free."""
        while self._lost:
            busy = sum(worker.pack is not None for worker in self._workers)
            if busy >= self._room():
                return
            self.submit(self._lost.pop(0))

    def _room(self) -> int:
        """How many workers the living nodes have room for, and the study file allows; nodes come and go."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            resources, layout = _ray().cluster_resources(), self._plan.layout
            gpus, cores = resources.get("GPU", 0), resources.get("CPU", 0)
            self._places = int(gpus if layout.device == "cuda" else cores // layout.threads_per_worker)
        return self._places if self._most is None else min(self._most, self._places)


class ClusterWorker:
    """What runs on a node: the same bench as in a process of this machine.

    Args:
        root: The study directory; None: a folder of its own, to which files are sent and from which they are fetched.
        num_threads: Processor threads.
    """

    def __init__(self, root: str | None, num_threads: int) -> None:
        # Read by numerical libraries when they are imported, which is after this.
        os.environ.update(dict.fromkeys(NUMBERS_OF_THREADS, str(num_threads)))
        self._is_own = root is None
        self._root = Path(root) if root is not None else Path(tempfile.mkdtemp(prefix="rankscope-"))
        self._stop = threading.Event()
        self._news: dict[str, Progress] = {}
        self._bench: Any = None
        self._lock: Any = None

    def carry_out(self, pack: Pack, parcel: Parcel) -> tuple[Event, Parcel]:
        """Carry out a pack; returns how it ended, and what was written where the folder is its own."""
        write_parcel(self._root, parcel)
        before = marks(self._root) if self._is_own else {}
        event = self._ready_bench().finish(pack)
        self._news.clear()
        if not self._is_own:
            return event, {}
        written = read_parcel(self._root, changed_files(self._root, before))
        # The next pack of these runs may go elsewhere: weights need not stay on every node that had some.
        shutil.rmtree(self._root / "runs", ignore_errors=True)
        return event, written

    def news(self) -> tuple[str, list[Progress]]:
        """The node, and how far its runs are."""
        import ray

        return ray.get_runtime_context().get_node_id(), list(self._news.values())

    def stop(self) -> None:
        """Training is to write a checkpoint and return."""
        self._stop.set()

    def _ready_bench(self) -> Any:
        if self._bench is None:
            from rankscope.execute.bench import Bench

            store = Store(self._root)
            plan = read_model(store.plan_file, Plan)
            if plan is None:
                what = f"{socket.gethostname()} does not see {self._root}"
                raise FileNotFoundError(f"{what}; put it on a disk that all see, or set execute.results: fetched")
            self._lock = (self._root / ".workers").open("a+", encoding="utf-8")
            with contextlib.suppress(OSError):  # a network file system without locks
                fcntl.flock(self._lock, fcntl.LOCK_SH)  # held until this process ends, however it ends
            self._bench = Bench(store, plan, self._tell, self._stop)
        return self._bench

    def _tell(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._news[event.run_id] = event


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "Ray is not installed", where="execute.backend", mend="pip install 'rankscope[ray]', or set it to local"
        ) from None
    return ray


def _connect(execute: Execute) -> None:
    ray = _ray()
    if ray.is_initialized():
        return
    try:
        _knock(execute.address)
        ray.init(address=execute.address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"there is no Ray cluster at '{execute.address}' ({_last_line(error)})",
            where="execute.address",
            mend="start one (`ray start --head`, elsewhere `ray start --address HOST:6379`), or name its address",
        ) from None


def _knock(address: str) -> None:
    """Whether anybody listens at `host:port`, which Ray itself takes minutes to find out.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in _ray().nodes() if node["Alive"]}


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
