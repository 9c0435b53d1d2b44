"""What a study deletes of its own: weights that nothing will need, caches, and what a killed process left."""

from __future__ import annotations

import shutil
from pathlib import Path

from rankscope.board import Board
from rankscope.plan import Plan
from rankscope.records import Rates
from rankscope.runs import RunSettings
from rankscope.schedule import possible_work
from rankscope.spec import Study
from rankscope.store import CACHES, CHECKPOINT, Store, write_record
from rankscope.work import chosen_run_ids, settled_arms

ADAPTER = "adapter"  # the folder of an adapter, also of a derived one


def delete_unchosen(study: Study, plan: Plan, store: Store, board: Board, rates: Rates) -> None:
    """Delete the full models of arms whose rate is chosen, but for the chosen ones: nothing will need them.

    Of an adapter that halving stopped, the checkpoint goes; what it had learned by then is small and stays.
    """
    if study.keep == "all":
        return
    chosen, settled = chosen_run_ids(plan, rates), settled_arms(rates)
    # With `search.evaluate: all` they are scored first.
    wanted = {work[2] for work in possible_work(plan, board, rates) if not board.has_ended(work)}
    for run in plan.runs:
        is_over = run.arm_key in settled and run.run_id not in chosen | wanted
        if is_over and run.arm.capabilities.saves == "model":
            delete_weights(store, board, run.run_id)
        elif is_over and plan.round_steps(run):
            shutil.rmtree(store.train(run.run_id) / CHECKPOINT, ignore_errors=True)


def delete_weights(store: Store, board: Board, run_id: str) -> None:
    """Delete what a run has trained; its record stays, and says so."""
    record = None if run_id in board.without_weights else store.read_train(run_id)
    if record is None or record.status not in {"complete", "paused"}:
        return
    folder = store.train(run_id)
    kept = [name for name in record.files if "/" not in name]
    # The record first: weights without a record are rubbish, a record of missing weights is damage.
    write_record(folder, record.model_copy(update={"weights_deleted": True}), kept)
    _remove_folders(folder)
    board.without_weights.add(run_id)


def delete_derived(store: Store, plan: Plan, settings: RunSettings) -> None:
    """Delete the adapters of a run's derived models; their scores stay."""
    for point in plan.derived.get(settings.arm.label, ()):
        folder = store.derived(settings.run_id, point.name)
        record = store.read_derive(folder)
        if record is not None and any(name.startswith(f"{ADAPTER}/") for name in record.files):
            write_record(folder, record, [name for name in record.files if not name.startswith(f"{ADAPTER}/")])
            shutil.rmtree(folder / ADAPTER, ignore_errors=True)


def remove_rubbish(store: Store, board: Board) -> None:
    """Remove what a process left that was killed between a record and the deletion that it announces."""
    for stage, _, run_id, name in [work for work in board.status if board.has_ended(work)]:
        if stage != "train" or run_id is None or name:  # a run that has only come as far as a round may go on
            continue
        shutil.rmtree(store.train(run_id) / CHECKPOINT, ignore_errors=True)
        if run_id in board.without_weights:
            _remove_folders(store.train(run_id))


def remove_caches(store: Store, plan: Plan) -> None:
    """Remove what was kept of bases for their runs to be compared with; a later run makes it again."""
    for base in plan.bases:
        for analysis in CACHES:
            shutil.rmtree(store.base_cache(base, analysis), ignore_errors=True)  # others may be at it too


def _remove_folders(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)  # another process that shares the study may be at it
