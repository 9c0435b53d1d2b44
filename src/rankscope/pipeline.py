"""A study from its file to its report: what is ready is handed to the executor until nothing is left."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rankscope.board import Board, read_board, status_of
from rankscope.cost.estimate import in_layout
from rankscope.decide import stage as decide
from rankscope.decide.rates import later_work, update_rates
from rankscope.errors import MachineError, UserError
from rankscope.execute.events import Event, Finished, Halted, Progress
from rankscope.execute.executor import Executor
from rankscope.execute.failures import disk_full, is_disk_full
from rankscope.execute.local import LocalExecutor
from rankscope.execute.ray import RayExecutor, cluster_layout
from rankscope.execute.trials import TrialError, measured_layout
from rankscope.housekeeping import delete_derived, delete_unchosen, delete_weights, remove_caches, remove_rubbish
from rankscope.layout import check_machine, layouts_to_try
from rankscope.leases import Leases, occupy
from rankscope.plan import Pack, Plan
from rankscope.planning import Inputs, make_plan
from rankscope.records import UNFINISHED, DecideRecord, EvaluateRecord, ForecastRecord, Rates
from rankscope.report import stage as report
from rankscope.schedule import possible_work, ready_packs, shared_out
from rankscope.spec import Study
from rankscope.start import changed_since, check_directory, read_earlier, write_start
from rankscope.store import RECORD, Store, remove_leftovers, write_text
from rankscope.track.process import Tracking, tracking
from rankscope.track.trackers import check_installed
from rankscope.work import Work, expected_hash, read_record, work_of

_LONG_SECONDS = 1800.0
_SHARE_SECONDS = 1.0


class Display(Protocol):
    """Who shows a person what is going on."""

    def planned(self, plan: Plan, remarks: list[str]) -> None:
        """The plan is made; remarks say what of an earlier run is redone, and why."""

    def update(
        self, board: Board, needed: list[Work], later: list[Work], events: list[Event], in_flight: list[Progress]
    ) -> None:
        """Something has happened, or a second has passed; `later` stands for what choices of rates will ask for."""

    def message(self, text: str) -> None:
        """A line for a person."""


class Silent(Display):
    """A display that shows nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a study ended: the verdicts, where the report is, what failed, and why its tracker was not told all."""

    record: DecideRecord
    report: Path
    num_failed: int
    tracker_failure: str | None = None

    @property
    def is_decided(self) -> bool:
        """Every verdict is a recommendation."""
        return all(verdict.decision == "recommended" for verdict in self.record.verdicts)


def run_study(
    study: Study, out: Path, display: Display | None = None, *, retry_failed: bool = False, share: bool = False
) -> Outcome:
    """Run a study, or finish one that was stopped.

    Args:
        study: The study.
        out: The study directory; made if it does not exist.
        display: Who shows what is going on; nobody where none is given.
        retry_failed: Try again what failed before.
        share: Work beside other processes that were started on the same directory in the same way.

    Raises:
        UserError: The data or the directory is wrong; nothing was started.
        MachineError: The disk is full; the same call goes on when there is space.
        KeyboardInterrupt: The person stopped it; the same call goes on.
    """
    check_installed(study.report_to)
    display = display or Silent()
    store = Store(out)
    earlier, damage = read_earlier(store)
    # Of a study that was carried out elsewhere, verdicts and report can be made on any machine.
    is_decided = earlier.study == study and (store.decide / RECORD).is_file()
    if study.execute.backend == "local" and not is_decided:
        check_machine(study.execute)
    check_directory(store, study, earlier)
    # With other processes or threads than before the numbers may differ in their last digits, so the old layout stays.
    is_replayed = earlier.plan is not None and earlier.study is not None and earlier.study.execute == study.execute
    cluster = cluster_layout(study.execute) if study.execute.backend == "ray" else None
    plan, inputs = make_plan(study, earlier.plan, keep_layout=is_replayed, cluster=cluster)
    if not is_replayed and _is_worth_measuring(study, plan):
        plan = _with_measured_layout(study, plan, inputs, display)
    with _naming_a_full_disk(store), occupy(store, share=share) as leases:
        if not share:
            remove_leftovers(store.root)  # those of others may be in use
        damage += write_start(store, study, plan, inputs)
        board, remarks = read_board(plan, store, retry_failed=retry_failed)
        if not share:
            remove_rubbish(store, board)
        remarks = [*changed_since(earlier.study, study), *damage, *remarks, *_pack_remarks(study, plan, leases)]
        display.planned(plan if _is_alone(study, leases) else _without_packs(plan), remarks)
        # Of several processes that share a study one tells its tracker what all of them write.
        kind = study.report_to if study.report_to != "none" and leases.take("tracker") else "none"
        with tracking(kind, store.root) as tracker:
            _Work(study, plan, store, board, leases, tracker).carry_out(display)
            _wait_for_turn(leases, "decide")
            record = _decide(study, plan, store, board, display)
            display.message("writing the report")
            page = report.run(store)
            leases.release("decide")
            tracker.finish()
            _tell_of(tracker, display)
    return Outcome(record, page, len(board.failed()), tracker.failure)


def _decide(study: Study, plan: Plan, store: Store, board: Board, display: Display) -> DecideRecord:
    """The verdicts; what nothing needs after them is deleted."""
    remove_caches(store, plan)
    display.message("deciding")
    record = decide.run(store, study, plan)
    if study.keep == "records":
        for settings in plan.runs:
            delete_weights(store, board, settings.run_id)
            delete_derived(store, plan, settings)
    return record


def _tell_of(tracker: Tracking, display: Display) -> None:
    if news := tracker.news():
        display.message(news)


def forecast_study(study: Study, out: Path) -> list[ForecastRecord]:
    """Make the forecast of a study before it is run, and record it where the study will look for it.

    Args:
        study: The study.
        out: The study directory; made if it does not exist.

    Raises:
        UserError: The data or the directory is wrong.
    """
    from rankscope.analyse import forecast
    from rankscope.models.loading import Models

    store = Store(out)
    earlier, _ = read_earlier(store)
    check_directory(store, study, earlier)
    plan, inputs = make_plan(study, earlier.plan)
    with _naming_a_full_disk(store), occupy(store, share=False):
        write_start(store, study, plan, inputs)
        return forecast.run(plan, store, Models(store, plan.dtype, plan.layout.device))


@dataclass
class _Work:
    """Everything that trains, scores or looks inside, in this process and in others that share the study."""

    study: Study
    plan: Plan
    store: Store
    board: Board
    leases: Leases
    tracker: Tracking
    told: set[str] = field(default_factory=set)
    later: tuple[Rates, list[Work]] | None = None

    def carry_out(self, display: Display) -> None:
        """Hand out what is ready until nothing is left; rates are chosen on the way."""
        executor = self._executor()
        running = self.store.root / "running" / f"{socket.gethostname()}-{os.getpid()}.json"
        progress: dict[tuple[Pack, str], Progress] = {}
        try:
            while True:
                rates = self._choose_rates()
                self._submit(executor, rates, display)
                if not executor.in_flight and not self._is_left(rates):
                    return
                events = executor.wait(1.0)
                for event in events:
                    self._note(progress, event)
                    self._tell_of_separate_rows(event, display)
                needed = possible_work(self.plan, self.board, rates)
                display.update(self.board, needed, self._later_work(rates), events, list(progress.values()))
                _write_running(running, list(progress.values()))
                _tell_of(self.tracker, display)
        except KeyboardInterrupt:
            display.message("stopping: runs in training write a checkpoint")
            executor.stop()
            raise
        finally:
            executor.close()
            running.unlink(missing_ok=True)

    def _executor(self) -> Executor:
        if self.study.execute.backend == "ray":
            return RayExecutor(self.store, self.plan, self.study.execute)
        return LocalExecutor(self.store, self.plan)

    def _choose_rates(self) -> Rates:
        """The rates chosen so far; one process at a time adds to them."""
        if not self.leases.take("rates"):
            return self.store.read_rates()
        try:
            rates = update_rates(self.store, self.plan)
            delete_unchosen(self.study, self.plan, self.store, self.board, rates)
        finally:
            self.leases.release("rates")
        return rates

    def _submit(self, executor: Executor, rates: Rates, display: Display) -> None:
        """Give idle workers the most urgent of what nobody has taken."""
        busy = {work for pack in executor.in_flight for work in work_of(pack)}
        is_alone = _is_alone(self.study, self.leases)
        packs = ready_packs(self.plan, self.board, rates, busy, self.plan.layout.pack_size if is_alone else 1)
        for pack in shared_out(self.plan, packs, busy) if is_alone else packs:
            if not executor.num_idle:
                return
            if self.leases.is_shared and not self.leases.take(_lease(pack)):
                continue
            # Another process may have finished it since the board was read.
            if self.leases.is_shared and self._refresh(work_of(pack)):
                self.leases.release(_lease(pack))
                continue
            if pack.stage == "train" and self.board.without_weights.intersection(pack.run_ids):
                display.message(f"{'+'.join(pack.run_ids)}: its deleted weights are needed, so it is trained again")
            executor.submit(pack)

    def _later_work(self, rates: Rates) -> list[Work]:
        """What choices will ask for; of thousands of runs it takes a second, so only when rates have changed."""
        if self.later is None or self.later[0] != rates:
            self.later = rates, later_work(self.plan, rates)
        return self.later[1]

    def _is_left(self, rates: Rates) -> bool:
        """Whether others are still at something that this study needs; waits a moment where they are."""
        if not self.leases.is_shared:
            return False
        left = [work for work in possible_work(self.plan, self.board, rates) if not self.board.has_ended(work)]
        self._refresh(left)
        if left:
            time.sleep(_SHARE_SECONDS)
        return bool(left)

    def _refresh(self, works: Iterable[Work]) -> bool:
        """Take in records that others have written; whether any piece of the work has ended."""
        has_ended = False
        for work in works:
            record = read_record(self.store, work)
            if record is None or status_of(work, record) in UNFINISHED:
                continue
            if record.settings_hash == expected_hash(self.plan, work):
                self.board.note(work, record)
                # A run whose weights were deleted has a record and may have to be trained again all the same.
                has_ended = has_ended or work[2] not in self.board.without_weights or work[0] != "train"
        return has_ended

    def _note(self, progress: dict[tuple[Pack, str], Progress], event: Event) -> None:
        """Keep the board in step with what came back."""
        if isinstance(event, Halted):
            raise MachineError(event.cause)
        if isinstance(event, Progress):
            progress[event.pack, event.run_id] = event
            return
        self._refresh(work_of(event.pack))
        self.leases.release(_lease(event.pack))
        for run_id in event.pack.run_ids or (event.pack.base,):
            progress.pop((event.pack, run_id), None)

    def _tell_of_separate_rows(self, event: Event, display: Display) -> None:
        """Say once why options are not scored in trees, where that shows only on the way; the plan told of the rest."""
        if not isinstance(event, Finished) or event.pack.stage != "evaluate":
            return
        for record in (read_record(self.store, work) for work in work_of(event.pack)):
            if not isinstance(record, EvaluateRecord) or not record.note:
                continue
            base, arm = f"base {record.subject.base}", record.subject.arm
            text = f"{f'{arm} of {base}' if arm else base}: options are scored in separate rows"
            if text not in self.told and not any(record.note in warning for warning in self.plan.warnings):
                self.told.add(text)
                display.message(f"{text}, slower and with the same numbers: {record.note}")


def _is_alone(study: Study, leases: Leases) -> bool:
    """Whether runs can share packs: where others take runs from the same study, each run has a lease of its own."""
    return not leases.is_shared and study.execute.backend == "local"


def _without_packs(plan: Plan) -> Plan:
    return plan.model_copy(update={"layout": plan.layout.model_copy(update={"pack_size": 1})})


def _pack_remarks(study: Study, plan: Plan, leases: Leases) -> list[str]:
    """That packs are not made, where the study file or a measurement asks for them."""
    stated = study.execute.pack_size
    size = plan.layout.pack_size if stated == "auto" else stated
    if size == 1 or _is_alone(study, leases) or not any(run.packs for run in plan.runs):
        return []
    return [f"LoRA runs go one at a time here: packs (of {size}) are made without --share and on one machine only"]


def _is_worth_measuring(study: Study, plan: Plan) -> bool:
    """Whether the layout is open and the study so long that a minute of measuring is little."""
    if study.execute.backend != "local" or study.execute.is_sharded:
        return False  # this machine may do none of the work, or none with a model in one piece
    if study.execute.measure != "auto":
        return study.execute.measure
    is_open = "auto" in (study.execute.num_workers, study.execute.threads_per_worker, study.execute.pack_size)
    return is_open and (plan.estimate.seconds or 0.0) > _LONG_SECONDS


def _with_measured_layout(study: Study, plan: Plan, inputs: Inputs, display: Display) -> Plan:
    """The plan with the layout in which this machine trains fastest."""
    display.message("measuring how this machine is best divided among the runs")
    try:
        layout = measured_layout(plan, inputs.examples, layouts_to_try(study, plan.layout))
    except TrialError as error:  # what is wrong with a run is recorded when it is run
        display.message(f"measuring failed ({error}); the machine is divided as it would be without it")
        return plan
    return plan.model_copy(update={"layout": layout, "estimate": in_layout(plan.estimate, inputs.outline, layout)})


def _lease(pack: Pack) -> str:
    """The name of the lease on a pack's work: one model in one stage, so that no two processes meet in one folder."""
    # The names of all of its runs would be too long for a file.
    others = f"+{len(pack.run_ids) - 1}" if len(pack.run_ids) > 1 else ""
    return f"{pack.stage}-{(*pack.run_ids, pack.base)[0]}{others}"


def _wait_for_turn(leases: Leases, name: str) -> None:
    while not leases.take(name):
        time.sleep(_SHARE_SECONDS)


@contextmanager
def _naming_a_full_disk(store: Store) -> Iterator[None]:
    """Libraries report a full disk in their own ways; a person gets one message."""
    try:
        yield
    except (UserError, MachineError):
        raise
    except Exception as error:
        if store.root.exists() and is_disk_full(store.root, error):
            raise MachineError(disk_full(f"{type(error).__name__}: {error}")) from error
        raise


def _write_running(path: Path, in_flight: list[Progress]) -> None:
    """What this process is doing right now, for `status` in another terminal."""
    rows = [
        {"run": event.run_id, "stage": event.pack.stage, "done": event.done, "total": event.total, "loss": event.loss}
        for event in in_flight
    ]
    write_text(path, json.dumps({"time": time.time(), "runs": rows}))
