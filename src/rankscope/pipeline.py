"""A study from its file to its report: what is ready is handed to the executor until nothing is left."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rankscope.decide import stage as decide
from rankscope.decide.rates import update_rates
from rankscope.errors import DamagedFile, MachineError, UserError
from rankscope.execute.events import Event, Failed, Finished, Halted, Progress
from rankscope.execute.local import LocalExecutor
from rankscope.plan import Plan
from rankscope.planning import Inputs, make_plan, write_inputs
from rankscope.provenance import provenance
from rankscope.records import DecideRecord, Rates
from rankscope.report import stage as report
from rankscope.schedule import Board, Work, chosen_run_ids, needed_work, read_board, read_record, ready_packs, work_of
from rankscope.spec import Study
from rankscope.store import Store, read_model, remove_leftovers, write_record, write_text
from rankscope.study_file import dump_study, load_study

_ORPHAN_SECONDS = 20.0


class Display(Protocol):
    """Who shows a person what is going on."""

    def planned(self, plan: Plan, remarks: list[str]) -> None:
        """The plan is made; remarks say what of an earlier run is redone, and why."""

    def update(self, board: Board, needed: list[Work], events: list[Event], in_flight: list[Progress]) -> None:
        """Something has happened, or a second has passed."""

    def message(self, text: str) -> None:
        """A line for a person."""


@dataclass(frozen=True)
class Outcome:
    """How a study ended: the verdicts, where the report is, and what failed."""

    record: DecideRecord
    report: Path
    num_failed: int

    @property
    def is_decided(self) -> bool:
        """Every verdict is a recommendation."""
        return all(verdict.decision == "recommended" for verdict in self.record.verdicts)


def run_study(study: Study, out: Path, display: Display, *, retry_failed: bool = False) -> Outcome:
    """Run a study, or finish one that was stopped.

    Args:
        study: The study.
        out: The study directory; made if it does not exist.
        display: Who shows what is going on.
        retry_failed: Try again what failed before.

    Raises:
        UserError: The data or the directory is wrong; nothing was started.
        MachineError: The disk is full; the same call goes on when there is space.
        KeyboardInterrupt: The person stopped it; the same call goes on.
    """
    store = Store(out)
    _check_directory(store, study)
    plan, inputs = make_plan(study, _earlier_plan(store, study))
    with _alone(store):
        remove_leftovers(store.root)
        _write_start(store, study, plan, inputs)
        board, remarks = read_board(plan, store, retry_failed=retry_failed)
        display.planned(plan, remarks)
        _carry_out(study, plan, store, board, display)
        display.message("deciding")
        record = decide.run(store, study, plan)
        if study.keep == "records":
            for settings in plan.runs:
                _delete_weights(store, board, settings.run_id)
        display.message("writing the report")
        page = report.run(store)
    return Outcome(record, page, len(board.failed()))


def _carry_out(study: Study, plan: Plan, store: Store, board: Board, display: Display) -> None:
    """Everything that trains, scores or looks inside; rates are chosen on the way."""
    executor = LocalExecutor(store, plan)
    rates = update_rates(store, plan)
    progress: dict[str, Progress] = {}
    try:
        while True:
            busy = {work for pack in executor.in_flight for work in work_of(pack)}
            for pack in ready_packs(plan, board, rates):
                if executor.num_idle and not busy.intersection(work_of(pack)):
                    executor.submit(pack)
            if not executor.in_flight:
                return
            events = executor.wait(1.0)
            for event in events:
                if isinstance(event, Halted):
                    raise MachineError(event.cause)
                _note(store, board, progress, event)
            if any(isinstance(event, (Finished, Failed)) for event in events):
                rates = update_rates(store, plan)
                _delete_unchosen(study, plan, store, board, rates)
            in_flight = list(progress.values())
            display.update(board, list(needed_work(plan, rates)), events, in_flight)
            _write_status(store, in_flight)
    except KeyboardInterrupt:
        display.message("stopping: runs in training write a checkpoint")
        executor.stop()
        raise
    finally:
        executor.close()
        (store.root / "running.json").unlink(missing_ok=True)


def _note(store: Store, board: Board, progress: dict[str, Progress], event: Event) -> None:
    """Keep the board in step with what came back."""
    if isinstance(event, Progress):
        progress[event.run_id] = event
        return
    for work in work_of(event.pack):
        progress.pop(work[2] or work[1], None)
        record = read_record(store, work)
        if record is not None and record.status != "interrupted":
            board.note(work, record)


def _delete_unchosen(study: Study, plan: Plan, store: Store, board: Board, rates: Rates) -> None:
    """Delete the full models of arms whose rate is chosen, but for the chosen ones: nothing will need them."""
    if study.keep == "all":
        return
    chosen = chosen_run_ids(plan, rates)
    settled = {(choice.base, choice.training_set, choice.arm) for choice in rates.choices}
    for run in plan.runs:
        is_settled = (run.base.name, run.training_set.name, run.arm.label) in settled
        if run.arm.method == "full" and is_settled and run.run_id not in chosen:
            _delete_weights(store, board, run.run_id)


def _delete_weights(store: Store, board: Board, run_id: str) -> None:
    record = None if run_id in board.without_weights else store.read_train(run_id)
    if record is None or record.status != "complete":
        return
    folder = store.train(run_id)
    kept = [name for name in record.files if "/" not in name]
    # The record first: weights without a record are rubbish, a record of missing weights is damage.
    write_record(folder, record.model_copy(update={"weights_deleted": True}), kept)
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    board.without_weights.add(run_id)


def _check_directory(store: Store, study: Study) -> None:
    """A directory belongs to a study by its name."""
    if not store.root.exists():
        return
    if not store.root.is_dir():
        raise UserError("is a file, and results need a folder", where=store.root, mend="choose another --out")
    if not store.study_file.exists():
        if any(child.name not in {".lock", ".workers"} for child in store.root.iterdir()):
            raise UserError("holds files that are no study's", where=store.root, mend="choose another --out")
        return
    found = load_study(store.study_file).study
    if found != study.study:
        mend = "choose another --out, or give the study its old name"
        raise UserError(f"holds the study '{found}', not '{study.study}'", where=store.root, mend=mend)


def _earlier_plan(store: Store, study: Study) -> Plan | None:
    """The plan of an earlier call whose layout is to be replayed, so that results repeat bit for bit."""
    if not store.plan_file.exists() or not store.study_file.exists():
        return None
    if load_study(store.study_file).execute != study.execute:
        return None
    try:
        return read_model(store.plan_file, Plan)
    except DamagedFile:
        return None  # of another version, or cut short: the plan is made anew, and records are held against it


def _write_start(store: Store, study: Study, plan: Plan, inputs: Inputs) -> None:
    write_text(store.study_file, dump_study(study))
    write_text(store.plan_file, plan.model_dump_json(indent=1) + "\n")
    write_text(store.root / "provenance.json", json.dumps(provenance(), indent=1) + "\n")
    write_inputs(store, inputs)


def _write_status(store: Store, in_flight: list[Progress]) -> None:
    """What is being done right now, for `status` in another terminal."""
    rows = [
        {"run": event.run_id, "stage": event.pack.stage, "done": event.done, "total": event.total, "loss": event.loss}
        for event in in_flight
    ]
    write_text(store.root / "running.json", json.dumps({"time": time.time(), "runs": rows}))


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold the study directory for this process; workers that an earlier one left behind end first."""
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / ".lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            mend = "wait for it, or watch it with `rankscope status`"
            what = f"another process works on it ({lock.read().strip()})"
            raise UserError(what, where=store.root, mend=mend) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        _wait_for_orphans(store)
        yield


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
                    raise UserError("workers of an earlier process still write to it", where=store.root) from None
                time.sleep(0.2)
