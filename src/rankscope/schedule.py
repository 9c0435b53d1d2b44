"""What is ready: from a plan, what is done and which rates are chosen, to the packs that could start now."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

from rankscope.board import Board
from rankscope.plan import VALIDATION, Pack, Plan, piece_key
from rankscope.records import Rates
from rankscope.runs import OF_WEIGHTS, RunSettings
from rankscope.work import Work, needed_work, work_of

# What decides which modules of the base an arm adapts: runs of one pack adapt the same.
_TARGET_OPTIONS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def possible_work(plan: Plan, board: Board, rates: Rates) -> list[Work]:
    """What is needed and is done or can still be done: a run that failed or diverged is never scored."""
    return [work for work in needed_work(plan, rates) if _is_possible(board, work)]


def _is_possible(board: Board, work: Work) -> bool:
    stage, base, run_id, name = work
    if run_id is None or stage == "train":
        return True
    if board.status.get(("train", base, run_id, "")) in {"failed", "diverged"}:
        return False
    is_alone = stage != "analyse" or name in OF_WEIGHTS
    return is_alone or board.status.get(("analyse", base, None, name)) != "failed"


def ready_packs(plan: Plan, board: Board, rates: Rates, busy: Collection[Work] = (), pack_size: int = 1) -> list[Pack]:
    """The packs whose inputs are complete, most urgent first: what others wait for, then the longest.

    Args:
        plan: The study's plan.
        board: What is done.
        rates: The learning rates chosen so far.
        busy: Work that is being done: what else is to be done of the same model in the same stage waits for it, except
            for other tasks, which `shared_out` may have given to several workers.
        pack_size: The most runs that are trained together.
    """
    packs: dict[tuple[int, str, str, str | None], list[str]] = {}
    taken = {work if work[0] == "evaluate" else work[:3] for work in busy}
    needed = list(needed_work(plan, rates))
    again = trained_again(board, needed)
    for stage, base, run_id, name in needed:
        is_again = run_id in again
        if board.has_ended((stage, base, run_id, name)) and not (stage == "train" and is_again):
            continue
        if not taken.isdisjoint({(stage, base, run_id), (stage, base, run_id, name)}):
            continue
        if stage != "train" and (is_again or not _inputs_complete(board, stage, base, run_id, name)):
            continue
        packs.setdefault((_urgency(plan, stage, run_id, name), stage, base, run_id), []).append(name)
    ready = [
        Pack(stage, base, (run_id,) if run_id else (), tuple(name for name in names if name))
        for (_, stage, base, run_id), names in packs.items()
    ]
    together = _together(plan, ready, busy, _chunks(plan, needed, pack_size)) if pack_size > 1 else ready
    return sorted(together, key=lambda pack: pack_order(plan, pack))


def shared_out(plan: Plan, packs: list[Pack], busy: Collection[Work] = ()) -> list[Pack]:
    """At the end of a study scoring goes out task by task, the longest first, so that workers end at the same time.

    The end is where no more packs than workers are left and nothing more is to come. Before it models stay whole: each
    part has to read its model again.
    """
    num_workers = plan.layout.num_workers
    if num_workers == 1 or len(packs) > num_workers:
        return packs
    pending = [*busy, *(work for pack in packs for work in work_of(pack))]
    if any(work[0] == "train" or _is_of_search(plan, work) for work in pending):
        return packs
    parts = [part for pack in packs for part in _task_by_task(pack)]
    return sorted(parts, key=lambda pack: pack_order(plan, pack))


def _task_by_task(pack: Pack) -> list[Pack]:
    if pack.stage != "evaluate" or len(pack.names) < 2:
        return [pack]
    return [dataclasses.replace(pack, names=(name,)) for name in pack.names]


def pack_order(plan: Plan, pack: Pack) -> tuple[int, float]:
    """Smaller comes first: the more urgent, then the longest, so that none is left over while other workers idle."""
    stage, _, run_id, name = work_of(pack)[0]
    return _urgency(plan, stage, run_id, name), -pack_seconds(plan, pack)


def pack_seconds(plan: Plan, pack: Pack) -> float:
    """How long a pack is expected to take on one worker; 0 where the plan has no estimate for it."""
    return sum(work_seconds(plan, work) for work in work_of(pack))


def work_seconds(plan: Plan, work: Work) -> float:
    """The same for one piece of work; a round of a search takes its part of the whole run."""
    stage, base, run_id, name = work
    run = plan.run(run_id) if run_id else None
    seconds = plan.estimate.seconds_by_piece
    if run is not None and stage == "train" and name:
        return seconds.get(piece_key(stage, base, run, ""), 0.0) * int(name) / run.num_steps
    return seconds.get(piece_key(stage, base, run, name), 0.0)


def _together(plan: Plan, packs: list[Pack], busy: Collection[Work], chunks: Mapping[tuple, tuple]) -> list[Pack]:
    """Packs of runs that are trained in one forward pass, or that generate side by side.

    Who shares a pack depends on the study alone and not on who was ready first, so that a study repeats bit for bit:
    what does not serve the search waits until the search is over.
    """
    pending = [*busy, *(work for pack in packs for work in work_of(pack))]
    is_searching = any(_is_of_search(plan, work) for work in pending)
    groups: dict[tuple, list[Pack]] = {}
    for index, pack in enumerate(packs):
        key = _chunk_of(plan, pack, chunks)
        if key is None or not is_searching or _is_of_search(plan, work_of(pack)[0]):
            groups.setdefault((index,) if key is None else key, []).append(pack)
    return [
        dataclasses.replace(group[0], run_ids=tuple(run_id for pack in group for run_id in pack.run_ids))
        for group in groups.values()
    ]


def _chunks(plan: Plan, needed: Iterable[Work], pack_size: int) -> dict[tuple[str, str], tuple]:
    """By run and how far it is trained: which runs it shares a pack with; small enough that no worker idles."""
    groups: dict[tuple, list[tuple[str, str]]] = {}
    for stage, _, run_id, name in needed:
        if stage == "train" and run_id is not None:
            key = companions(plan, plan.run(run_id), (name,) if name else ())
            groups.setdefault((run_id,) if key is None else key, []).append((run_id, name))
    chunks = {}
    for key, members in groups.items():
        size = min(pack_size, math.ceil(len(members) / plan.layout.num_workers))
        chunks |= {member: (*key, place // size) for place, member in enumerate(members)}
    return chunks


def _chunk_of(plan: Plan, pack: Pack, chunks: Mapping[tuple, tuple]) -> tuple | None:
    """What packs have in common that go together; None for one that goes alone."""
    stage, base, run_id, name = work_of(pack)[0]
    is_generated = stage == "evaluate" and any(plan.task(base, run_id, task).is_generated for task in pack.names)
    if run_id is None or not plan.run(run_id).packs or not (stage == "train" or is_generated):
        return None
    return (stage, pack.names, *chunks[run_id, name if stage == "train" else ""])


def _is_of_search(plan: Plan, work: Work) -> bool:
    """Whether the choice of a rate waits for this."""
    stage, _, run_id, name = work
    is_asked = stage == "train" or (stage == "evaluate" and name == VALIDATION)
    return is_asked and run_id is not None and plan.run(run_id).seed in plan.search_seeds


def companions(plan: Plan, run: RunSettings, names: tuple[str, ...]) -> tuple | None:
    """What runs must have in common to be trained together; None for a run that is trained alone.

    Args:
        plan: The study's plan.
        run: A run.
        names: Of its pack: how far it is to be trained.
    """
    if not run.packs:
        return None
    targets = (repr(run.arm.options.get(name)) for name in _TARGET_OPTIONS)
    is_search = run.seed in plan.search_seeds
    # Where rounds or new rates are asked for arm by arm, each arm goes at its own pace.
    is_paced = is_search and (plan.is_halving or any(grid.below or grid.above for grid in plan.grids.values()))
    arm = (run.training_set.name, run.arm.label) if is_paced else None
    return run.base.name, names, is_search, arm, run.arm.method, *targets


def trained_again(board: Board, needed: Iterable[Work]) -> dict[str, list[str]]:
    """By run, what a new task or a new choice needs of weights that were deleted: they are trained again."""
    again: dict[str, list[str]] = {}
    for work in needed:
        stage, _, run_id, name = work
        if stage != "train" and run_id in board.without_weights and not board.has_ended(work):
            again.setdefault(run_id, []).append(name)
    return again


def _inputs_complete(board: Board, stage: str, base: str, run_id: str | None, name: str) -> bool:
    """Whether the trained weights, and for attention the base's own patterns, are there."""
    if run_id is None:
        return True
    if not board.is_complete(("train", base, run_id, "")):
        return False
    return stage != "analyse" or name in OF_WEIGHTS or board.is_complete(("analyse", base, None, name))


def _urgency(plan: Plan, stage: str, run_id: str | None, name: str) -> int:
    """Smaller comes first: validation unlocks choices, the search unlocks everything else, scoring can wait."""
    run: RunSettings | None = plan.run(run_id) if run_id else None
    if stage == "train" and run is not None:
        return 1 if run.seed in plan.search_seeds else 2
    if name.startswith(VALIDATION):
        return 3 if run is None else 0
    last = {"evaluate": 4, "analyse": 5, "derive": 6}
    return 3 if run is None else last[stage]
