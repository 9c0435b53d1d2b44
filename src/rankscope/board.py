"""What is done: which pieces of work have a record that still holds, read from the study directory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rankscope.errors import DamagedFile
from rankscope.plan import Plan
from rankscope.records import UNFINISHED, Record, Status, TrainRecord
from rankscope.runs import OF_WEIGHTS
from rankscope.store import RECORD, Store, check_files
from rankscope.work import Work, all_work, expected_hash, folder_of, read_record

_ENDED = ("complete", "failed", "diverged")


@dataclass
class Board:
    """Which work has a record, and of which status; read from disk once, then kept as work comes back.

    Attributes:
        without_weights: Runs that are trained, but whose weights `keep` has deleted.
    """

    status: dict[Work, Status] = field(default_factory=dict)
    without_weights: set[str] = field(default_factory=set)

    def note(self, work: Work, record: Record) -> None:
        """Take in the record of a piece of work."""
        self.status[work] = status_of(work, record)
        if isinstance(record, TrainRecord):
            change = self.without_weights.add if record.weights_deleted else self.without_weights.discard
            change(record.run.run_id)

    def is_complete(self, work: Work) -> bool:
        """The work's result can be used."""
        return self.status.get(work) == "complete"

    def has_ended(self, work: Work) -> bool:
        """The work will not be done again: it is complete, has failed, or has diverged."""
        return self.status.get(work) in _ENDED

    def failed(self) -> list[Work]:
        """What has failed."""
        return [work for work, status in self.status.items() if status == "failed"]


def status_of(work: Work, record: Record) -> Status:
    """What a record says of a piece of work; a run that is in the middle may have come as far as a round asked."""
    stage, _, _, name = work
    if stage == "train" and name and isinstance(record, TrainRecord) and record.status in UNFINISHED:
        return "complete" if record.num_steps >= int(name) else "interrupted"
    return record.status


def read_board(plan: Plan, store: Store, *, retry_failed: bool) -> tuple[Board, list[str]]:
    """What is done, from the records on disk, every file checked; and what is kept, and what redone, and why."""
    board = Board()
    remarks: list[str] = []
    others: list[Work] = []
    try:
        store.read_rates()
    except DamagedFile as damage:
        remarks.append(f"{damage}; rates are chosen again, from the same scores")
        store.rates_file.unlink()
    for work in all_work(plan):
        try:
            record = read_record(store, work)
            if record is None:
                continue
            if record.settings_hash != expected_hash(plan, work):
                others.append(work)
                continue
            if status_of(work, record) != "interrupted":
                check_files(folder_of(store, work), record)
        except DamagedFile as damage:
            if not _is_damaged(store, work):
                continue  # another process that shares the study was writing it just then
            remarks.append(f"{damage}; it is done again")
            (folder_of(store, work) / RECORD).unlink(missing_ok=True)
            continue
        if record.status == "failed" and retry_failed:
            (folder_of(store, work) / RECORD).unlink()  # so that nobody takes the old failure for the new outcome
            continue
        if status_of(work, record) in UNFINISHED:
            continue
        board.note(work, record)
    return board, [*_kept(board), *_redone(others), *remarks, *_left_over(plan, store)]


def _redone(works: Sequence[Work]) -> list[str]:
    """What an earlier call made with other settings, by name."""
    if not works:
        return []
    counts = Counter(f"{stage} {name}".strip() for stage, _, _, name in works)
    listed = ", ".join(f"{name} ({number})" for name, number in counts.items())
    is_on_texts = any(stage == "analyse" and name not in OF_WEIGHTS for stage, _, _, name in works)
    why = "; what is measured on texts draws them from all tasks" if is_on_texts else ""
    return [f"made with other settings, and done again: {listed}{why}"]


def _is_damaged(store: Store, work: Work) -> bool:
    """Look again a moment later: a record and the files it vouches for cannot both be replaced in one instant."""
    time.sleep(0.2)
    try:
        record = read_record(store, work)
        if record is not None:
            check_files(folder_of(store, work), record)
    except DamagedFile:
        return True
    return False


def _kept(board: Board) -> list[str]:
    """How much of an earlier call stays."""
    kept = [work for work, status in board.status.items() if status != "failed"]
    counts = Counter(stage for stage, *_ in kept if stage != "train")
    counts["train"] = len({run_id for stage, _, run_id, _ in kept if stage == "train"})  # of rounds, each counts once
    names = {"train": "trained runs", "evaluate": "scores", "analyse": "analyses", "derive": "derived models"}
    parts = [f"{counts[stage]} {name}" for stage, name in names.items() if counts[stage]]
    if failed := len(board.failed()):
        parts.append(f"{failed} {'failure' if failed == 1 else 'failures'} (--retry-failed tries again)")
    return [f"kept from before: {', '.join(parts)}"] if parts else []


def _left_over(plan: Plan, store: Store) -> list[str]:
    """Runs of settings that the study no longer has."""
    known = {run.run_id for run in plan.runs}
    others = sorted(path.name for path in store.run("").glob("*") if path.is_dir() and path.name not in known)
    if not others:
        return []
    return [f"no longer part of the study, left as they are in {store.run('')}: {', '.join(others)}"]
