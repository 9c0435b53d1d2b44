"""What is done, running, failed and left in a study directory, read from its files."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from rankscope.board import Board, status_of
from rankscope.errors import DamagedFile, UserError
from rankscope.leases import LEASE_SECONDS, is_occupied
from rankscope.plan import VALIDATION, Plan
from rankscope.runs import RunSettings
from rankscope.schedule import possible_work
from rankscope.store import Store, read_model
from rankscope.work import (
    Work,
    all_work,
    asked_step,
    chosen_run_ids,
    expected_hash,
    read_record,
    round_work,
    settled_arms,
)


def study_status(store: Store) -> dict[str, Any]:
    """The state of a study as plain data: `{study, state, runs, counts, in_flight, failures}`.

    `state` is `running`, `done` or `stopped`. A run's `state` is `done`, `running`, `failed`, `diverged`,
    `interrupted` (training goes on from its checkpoint) or `waiting` (for an earlier stage, or for its turn); its
    `stage` is the one it is in, or was in last. `failures` are all pieces of work that failed, those of the base itself
    among them (`run` is None there): `{base, run, stage, name, error}`.
    `counts` are of the runs that will be made: of an arm whose rate is not chosen yet, one for each later seed.
    `in_flight` is what the working processes are at, the base's own scores among it, where `run` is the base's name:
    `{run, stage, done, total, loss}`.

    Raises:
        UserError: The directory holds no study.
    """
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise UserError("holds no study that was started", where=store.root, mend="`rankscope run STUDY` starts one")
    board = _board(plan, store)
    is_running = is_occupied(store)
    in_flight = _in_flight(store) if is_running else []
    running = {row["run"]: row for row in in_flight}  # several workers may be at one model
    rates = store.read_rates()
    needed = set(possible_work(plan, board, rates))
    chosen = chosen_run_ids(plan, rates)
    settled = settled_arms(rates)
    rows, possible = [], {}
    for run in plan.runs:
        is_settled = run.arm_key in settled
        if run.seed not in plan.search_seeds and is_settled and run.run_id not in chosen:
            continue  # a later seed of a rate that was not chosen: nothing will ever be done
        if plan.is_beyond(run) and run.run_id not in chosen and asked_step(plan, rates, run) is None:
            continue  # beyond the grid, and no search has asked for it
        rows.append(_row(plan, store, board, run, needed, running))
        if not is_settled and run.seed not in plan.search_seeds and rows[-1]["state"] == "waiting":
            possible.setdefault((run.arm_key, run.seed), []).append(run.run_id)
    counts = Counter(row["state"] for row in rows)
    counts -= Counter(waiting=sum(len(runs) - 1 for runs in possible.values()))
    is_done = store.read_decide() is not None and not set(counts) & {"waiting", "interrupted", "running"}
    state = "running" if is_running else "done" if is_done else "stopped"
    failures = [_failure(store, work) for work in board.failed()]
    return {
        "study": plan.study,
        "state": state,
        "runs": rows,
        "counts": dict(counts),
        "in_flight": in_flight,
        "failures": failures,
    }


def _row(
    plan: Plan, store: Store, board: Board, run: RunSettings, needed: set[Work], running: dict[str, Any]
) -> dict[str, Any]:
    works = _works(plan, run)
    wanted = [work for work in works if work in needed]
    left = [work for work in wanted if not board.has_ended(work)]
    failed = [work for work in works if board.status.get(work) == "failed"]
    stage, state = (wanted[-1][0] if wanted else "train"), "done"
    if failed:
        stage, state = failed[0][0], "failed"
    elif board.status.get(works[0]) == "diverged":
        stage, state = "train", "diverged"
    elif run.run_id in running:
        stage, state = running[run.run_id]["stage"], "running"
    elif left or not wanted:
        is_begun = bool(left) and board.status.get(left[0]) == "interrupted"
        stage, state = (left[0][0] if left else "train"), "interrupted" if is_begun else "waiting"
    return {
        "run": run.run_id,
        "arm": run.arm.label,
        "base": run.base.name,
        "training_set": run.training_set.name,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "stage": stage,
        "state": state,
        "error": _failure(store, failed[0])["error"] if failed else None,
        **{key: running[run.run_id][key] for key in ("done", "total", "loss") if state == "running"},
    }


def _failure(store: Store, work: Work) -> dict[str, Any]:
    """A piece of work that failed, with its cause."""
    stage, base, run_id, name = work
    record = read_record(store, work)
    error = f"{record.error.type}: {record.error.message}" if record is not None and record.error else None
    return {"base": base, "run": run_id, "stage": stage, "name": name or None, "error": error}


def _works(plan: Plan, run: RunSettings) -> list[Work]:
    base, run_id = run.base.name, run.run_id
    scores: list[Work] = [("evaluate", base, run_id, name) for name in (VALIDATION, *plan.tasks[base])]
    rounds = [round_work(run, step) for step in plan.round_steps(run)]
    points = plan.derived.get(run.arm.label, ())
    return [
        ("train", base, run_id, ""),
        *rounds,
        *scores,
        *(("analyse", base, run_id, name) for name in plan.analyses),
        *(("derive", base, run_id, point.name) for point in points),
    ]


def _board(plan: Plan, store: Store) -> Board:
    """The board from the records alone; checksums are compared when the study is run, not when it is watched."""
    board = Board()
    for work in all_work(plan):
        try:
            record = read_record(store, work)
        except DamagedFile:
            continue
        if record is not None and record.settings_hash == expected_hash(plan, work):
            board.status[work] = status_of(work, record)
    return board


def _in_flight(store: Store) -> list[dict[str, Any]]:
    """What the working processes last said they were doing."""
    found = []
    for path in (store.root / "running").glob("[!.]*.json"):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue  # that process has just ended
        if time.time() - document["time"] < LEASE_SECONDS:
            found += document["runs"]
    return found
