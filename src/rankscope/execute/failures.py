"""What is recorded of a failure, and when it is none: a full disk is the machine's matter, not the work's."""

from __future__ import annotations

import errno
import shutil
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rankscope.plan import Pack, Plan
from rankscope.provenance import provenance
from rankscope.records import UNFINISHED, AnalyseRecord, DeriveRecord, EvaluateRecord, Failure, Record, TrainRecord
from rankscope.store import Store, write_record
from rankscope.work import Work, expected_hash, folder_of, read_record, work_of

_LITTLE_SPACE_BYTES = 1_000_000


def failure_of(error: BaseException) -> Failure:
    """What a record says of an error."""
    text = "".join(traceback.format_exception(error))
    return Failure(type=type(error).__name__, message=str(error), traceback=text)


def record_failure(store: Store, plan: Plan, pack: Pack, failure: Failure) -> None:
    """Write a record that says `failed` and why, where the work would have written its own.

    Names are carried out in order, so what failed is the first without a good record; the later ones are tried again.
    """
    common = {
        "status": "failed",
        "error": failure,
        "provenance": provenance(),
        "started_at": datetime.now(UTC).isoformat(),
        "seconds": 0.0,
    }
    if pack.stage == "train":
        for run_id in pack.run_ids:
            record = store.read_train(run_id)
            if record is None or record.status in UNFINISHED or record.weights_deleted:
                run = plan.run(run_id)
                failed = TrainRecord(run=run, settings_hash=run.settings_hash, **common)
                write_record(store.train(run_id), failed)
        return
    for work in work_of(pack):
        if _write_if_first(store, plan, work, common):
            return


def _write_if_first(store: Store, plan: Plan, work: Work, common: dict[str, Any]) -> bool:
    """Record the failure of one piece of work unless it has a good record; whether it was written."""
    stage, base, run_id, name = work
    expected, found = expected_hash(plan, work), read_record(store, work)
    if found is not None and found.status == "complete" and found.settings_hash == expected:
        return False
    common = {**common, "settings_hash": expected, "subject": plan.subject(base, run_id)}
    record: Record
    if stage == "evaluate":
        record = EvaluateRecord(task=name, scoring=plan.task(base, run_id, name).scoring, **common)
    elif stage == "derive":
        record = DeriveRecord(point=plan.derived_point(run_id or "", name), **common)
    else:
        record = AnalyseRecord(analysis=name, **common)
    write_record(folder_of(store, work), record)
    return True


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
