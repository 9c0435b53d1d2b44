"""One process that carries out packs; the only place that catches everything, and records it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import signal
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rankscope.errors import MachineError
from rankscope.execute.events import Event, Failed, Finished, Halted, Progress
from rankscope.plan import Pack, Plan
from rankscope.provenance import provenance
from rankscope.records import AnalyseRecord, EvaluateRecord, Failure, TrainRecord
from rankscope.schedule import folder_of
from rankscope.store import Store, read_model, write_record

LOG = "log.txt"
_PARENT_CHECK_SECONDS = 0.5
_LITTLE_SPACE_BYTES = 1_000_000


def worker_main(connection: Connection, root: Path, log_file: Path) -> None:
    """Carry out the packs that come through `connection` until None comes.

    Args:
        connection: Packs come in, events go out.
        root: The study directory.
        log_file: Where what is printed before the first pack goes; later it goes to the log of the pack's run.
    """
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # the parent's wish for a checkpoint and an end
    _end_with_parent()
    _redirect_output(log_file)
    store = Store(root)
    workers_lock = (root / ".workers").open("a+", encoding="utf-8")
    with contextlib.suppress(OSError):  # a network file system without locks
        fcntl.flock(workers_lock, fcntl.LOCK_SH)  # held until this process ends, however it ends
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise FileNotFoundError(store.plan_file)
    bench = _Bench(store, plan, connection, stop)
    while (pack := connection.recv()) is not None:
        try:
            bench.carry_out(pack)
        except Exception as error:  # the boundary: a failed run is recorded and the rest goes on
            logging.getLogger(__name__).exception("%s failed", pack)
            cause = f"{type(error).__name__}: {error}"
            if isinstance(error, MachineError) or is_disk_full(root, error):
                _tell(connection, Halted(pack, str(error) if isinstance(error, MachineError) else disk_full(cause)))
                continue
            record_failure(store, plan, pack, error)
            _tell(connection, Failed(pack, cause))
        else:
            _tell(connection, Finished(pack))


def _tell(connection: Connection, event: Event) -> None:
    """Send an event to the parent; without one this process ends at once, as its work is no failure."""
    try:
        connection.send(event)
    except ConnectionError:
        os._exit(1)


class _Bench:
    """The stages with the models they share, and the line to the parent."""

    def __init__(self, store: Store, plan: Plan, connection: Connection, stop: threading.Event) -> None:
        import torch

        from rankscope.models.loading import Models

        torch.set_num_threads(plan.layout.threads_per_worker)
        self.store = store
        self.plan = plan
        self.models = Models(store, plan.dtype, plan.layout.device)
        self._connection = connection
        self._stop = stop

    def carry_out(self, pack: Pack) -> None:
        """Hand the pack to its stage; what it prints goes to a log in the run's folder."""
        folder = self.store.run(pack.run_ids[0]) if pack.run_ids else self.store.base(pack.base)
        _redirect_output(folder / LOG)
        from rankscope.analyse import stage as analyse
        from rankscope.evaluate import stage as evaluate
        from rankscope.train import stage as train

        _check_device(self.plan.layout.device)
        self.models.check_base(self.plan.bases[pack.base])
        watcher = _Watcher(pack, self._connection, self._stop)
        # Said at once: how long a piece of work takes is counted from here.
        watcher.progress((*pack.run_ids, pack.base)[0], 0, max(1, len(pack.names)), None)
        stage = {"train": train, "evaluate": evaluate, "analyse": analyse}[pack.stage]
        stage.run(pack, self.plan, self.store, self.models, watcher)


def _check_device(device: str) -> None:
    """Whether torch can use the device that the plan names; the plan is made without torch."""
    import torch

    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there[device]:
        what = f"the plan's device is {device}, and the torch installed here ({torch.__version__}) cannot use it"
        raise MachineError(f"{what}\n  mend: set execute.device to cpu, or install torch for this device")


@dataclass
class _Watcher:
    """Passes progress on, at most a few times a second, and the wish to stop back."""

    pack: Pack
    connection: Connection
    stop: threading.Event
    sent: float = 0.0

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        now = time.monotonic()
        if now - self.sent > 0.25 or done == total:
            _tell(self.connection, Progress(self.pack, run_id, done, total, loss))
            self.sent = now

    def wants_stop(self) -> bool:
        return self.stop.is_set()


def record_failure(store: Store, plan: Plan, pack: Pack, error: BaseException) -> None:
    """Write a record that says `failed` and why, where the work would have written its own.

    Names are carried out in order, so what failed is the first without a good record; the later ones are tried again.
    """
    common = {
        "status": "failed",
        "error": Failure(
            type=type(error).__name__, message=str(error), traceback="".join(traceback.format_exception(error))
        ),
        "provenance": provenance(),
        "started_at": datetime.now(UTC).isoformat(),
        "seconds": 0.0,
    }
    if pack.stage == "train":
        for run_id in pack.run_ids:
            record = store.read_train(run_id)
            if record is None or record.status in {"interrupted", "paused"} or record.weights_deleted:
                run = plan.run(run_id)
                failed = TrainRecord(run=run, settings_hash=run.settings_hash, **common)
                write_record(store.train(run_id), failed)
        return
    for run_id in pack.run_ids or (None,):
        for name in pack.names:
            if _write_if_first(store, plan, pack, run_id, name, common):
                return


def _write_if_first(
    store: Store, plan: Plan, pack: Pack, run_id: str | None, name: str, common: dict[str, Any]
) -> bool:
    """Record the failure of one name unless it has a good record; whether it was written."""
    folder = folder_of(store, (pack.stage, pack.base, run_id, name))
    subject = plan.subject(pack.base, run_id)
    if pack.stage == "evaluate":
        expected = plan.evaluation_hash(pack.base, run_id, name)
        found = store.read_evaluate(folder)
        scoring = plan.task(pack.base, run_id, name).scoring
        record = EvaluateRecord(subject=subject, task=name, scoring=scoring, settings_hash=expected, **common)
    else:
        expected = plan.analysis_hash(pack.base, run_id, name)
        found = store.read_analyse(folder)
        record = AnalyseRecord(subject=subject, analysis=name, settings_hash=expected, **common)
    if found is not None and found.status == "complete" and found.settings_hash == expected:
        return False
    write_record(folder, record)
    return True


def _end_with_parent() -> None:
    """End this process soon after its parent has, so that no orphan writes into a study that goes on elsewhere."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _redirect_output(log_file: Path) -> None:
    """Send what this process prints, its logging and warnings among it, to a log."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("default")


def disk_full(cause: str) -> str:
    """What is said when a write failed for want of space."""
    return f"the disk is full ({cause})\n  mend: make space"


def is_disk_full(folder: Path, error: BaseException) -> bool:
    """Whether an error came of a full disk; libraries wrap the system's error, so the space is looked at too."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return "No space left" in str(error) or has_little_space(folder)


def has_little_space(folder: Path) -> bool:
    """Whether so little of the disk is left that a write may just have failed."""
    return shutil.disk_usage(folder).free < _LITTLE_SPACE_BYTES
