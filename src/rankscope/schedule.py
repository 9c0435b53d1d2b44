"""What is ready: from a plan, what is done and which rates are chosen, to the packs that could start now."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rankscope.errors import DamagedFile
from rankscope.plan import VALIDATION, Pack, Plan, piece_key, validation_task
from rankscope.records import Rates, Record, Status, TrainRecord
from rankscope.runs import OF_WEIGHTS, RunSettings
from rankscope.store import RECORD, Store, check_files

# A piece of work: its stage, its run (None: the base itself), and the task or analysis ("" when training).
Work = tuple[str, str, str | None, str]
# What decides which modules of the base an arm adapts: runs of one pack adapt the same.
_TARGET_OPTIONS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_ENDED = ("complete", "failed", "diverged")
_UNFINISHED = ("interrupted", "paused")


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
    if stage == "train" and name and isinstance(record, TrainRecord) and record.status in {"paused", "interrupted"}:
        return "complete" if record.num_steps >= int(name) else "interrupted"
    return record.status


def all_work(plan: Plan) -> Iterator[Work]:
    """Every piece of work that the plan may come to, chosen or not."""
    for base in plan.bases:
        for name in base_tasks(plan, base):
            yield "evaluate", base, None, name
        for analysis in _base_analyses(plan):
            yield "analyse", base, None, analysis
    for run in plan.runs:
        yield "train", run.base.name, run.run_id, ""
        for step in plan.round_steps(run) if run.seed in plan.search_seeds else ():
            yield round_work(run, step)
        for name in (VALIDATION, *plan.tasks[run.base.name]):
            yield "evaluate", run.base.name, run.run_id, name
        for analysis in plan.analyses:
            yield "analyse", run.base.name, run.run_id, analysis
        for point in plan.derived.get(run.arm.label, ()):
            yield "derive", run.base.name, run.run_id, point.name


def needed_work(plan: Plan, rates: Rates) -> Iterator[Work]:
    """What is needed as far as is known: the search, and everything of the chosen runs."""
    for base in plan.bases:
        for name in base_tasks(plan, base):
            yield "evaluate", base, None, name
        for analysis in _base_analyses(plan):
            yield "analyse", base, None, analysis
    chosen, settled = chosen_run_ids(plan, rates), settled_arms(rates)
    for run in plan.runs:
        base, run_id = run.base.name, run.run_id
        step = asked_step(plan, rates, run)
        if step is not None and step < run.num_steps and run_id not in chosen:
            yield round_work(run, step)
        elif step is not None or run_id in chosen:
            yield "train", base, run_id, ""
            if run.seed in plan.search_seeds:
                yield "evaluate", base, run_id, VALIDATION
        # No test item is scored before the arm's rate is chosen; a rate that halving stopped is not trained to its end.
        is_searched = step == run.num_steps and arm_of(run) in settled
        if run_id in chosen or (plan.scores_all_candidates and is_searched):
            yield from (("evaluate", base, run_id, name) for name in plan.tasks[base])
            yield from (("analyse", base, run_id, analysis) for analysis in plan.analyses)
        if run_id in chosen:
            yield from (("derive", base, run_id, point.name) for point in plan.derived.get(run.arm.label, ()))


def asked_step(plan: Plan, rates: Rates, run: RunSettings) -> int | None:
    """To which step the search asks a run to be trained, as far as is known; None: it does not ask for it."""
    if run.seed not in plan.search_seeds:
        return None
    key = (run.base.name, run.training_set.name, run.arm.label)
    search = next((item for item in rates.searches if (item.base, item.training_set, item.arm) == key), None)
    if search is not None:
        return next((item.step for item in search.asked if item.learning_rate == run.learning_rate), None)
    return None if plan.is_beyond(run) else next(iter(plan.round_steps(run)), run.num_steps)


def round_work(run: RunSettings, step: int) -> Work:
    """A run is trained up to a round's step; its validation loss there is all that the round asks for."""
    return "train", run.base.name, run.run_id, str(step)


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
        busy: Work that is being done: what else is to be done of the same model in the same stage waits for it.
        pack_size: The most runs that are trained together.
    """
    packs: dict[tuple[int, str, str, str | None], list[str]] = {}
    taken = {work[:3] for work in busy}
    needed = list(needed_work(plan, rates))
    again = trained_again(board, needed)
    for stage, base, run_id, name in needed:
        is_again = run_id in again
        if board.has_ended((stage, base, run_id, name)) and not (stage == "train" and is_again):
            continue
        if (stage, base, run_id) in taken:
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


def chosen_run_ids(plan: Plan, rates: Rates) -> set[str]:
    """The runs at the chosen rates, all seeds."""
    chosen = {(c.base, c.training_set, c.arm): c.learning_rate for c in rates.choices}
    return {
        run.run_id
        for run in plan.runs
        if chosen.get((run.base.name, run.training_set.name, run.arm.label)) == run.learning_rate
    }


def settled_arms(rates: Rates) -> set[tuple[str, str, str]]:
    """The base, training set and label of every arm whose rate was chosen, or found to be none."""
    return {(choice.base, choice.training_set, choice.arm) for choice in rates.choices}


def arm_of(run: RunSettings) -> tuple[str, str, str]:
    """The base, training set and label of a run's arm."""
    return run.base.name, run.training_set.name, run.arm.label


def base_tasks(plan: Plan, base: str) -> list[str]:
    """What the base itself is scored on: every task, and the validation items of every training set."""
    return [*plan.tasks[base], *(validation_task(name) for name in plan.validation[base])]


def work_of(pack: Pack) -> list[Work]:
    """The pieces of work in a pack."""
    run_ids = pack.run_ids or (None,)
    return [(pack.stage, pack.base, run_id, name) for run_id in run_ids for name in pack.names or ("",)]


def read_record(store: Store, work: Work) -> Record | None:
    """The record of a piece of work.

    Raises:
        DamagedFile: It cannot be read.
    """
    stage, _, run_id, _ = work
    folder = folder_of(store, work)
    if stage == "train":
        return store.read_train(run_id or "")
    read = {"evaluate": store.read_evaluate, "analyse": store.read_analyse, "derive": store.read_derive}
    return read[stage](folder)


def folder_of(store: Store, work: Work) -> Path:
    """Where the record of a piece of work lies."""
    stage, base, run_id, name = work
    if stage == "train":
        return store.train(run_id or "")
    if stage == "derive":
        return store.derived(run_id or "", name)
    if stage == "evaluate":
        return store.base_task(base, name) if run_id is None else store.task(run_id, name)
    return store.base_analysis(base, name) if run_id is None else store.analysis(run_id, name)


def expected_hash(plan: Plan, work: Work) -> str:
    """The settings hash that a record of this work has to carry to be still valid."""
    stage, base, run_id, name = work
    if stage == "train":
        return plan.run(run_id or "").settings_hash
    if stage == "derive":
        return plan.derive_hash(run_id or "", name)
    if stage == "evaluate":
        return plan.evaluation_hash(base, run_id, name)
    return plan.analysis_hash(base, run_id, name)


def read_board(plan: Plan, store: Store, *, retry_failed: bool) -> tuple[Board, list[str]]:
    """What is done, from the records on disk, every file checked; and what is kept, and what redone, and why."""
    board, remarks = Board(), []
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
                remarks.append(f"{folder_of(store, work)}: made with other settings; it is done again")
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
        if status_of(work, record) in _UNFINISHED:
            continue
        board.note(work, record)
    return board, [*_kept(board), *remarks, *_left_over(plan, store)]


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
    parts += [f"{len(board.failed())} failures (--retry-failed tries them again)"] if board.failed() else []
    return [f"kept from before: {', '.join(parts)}"] if parts else []


def _left_over(plan: Plan, store: Store) -> list[str]:
    """Runs of settings that the study no longer has."""
    known = {run.run_id for run in plan.runs}
    others = sorted(path.name for path in store.run("").glob("*") if path.is_dir() and path.name not in known)
    if not others:
        return []
    return [f"no longer part of the study, left as they are in {store.run('')}: {', '.join(others)}"]


def _base_analyses(plan: Plan) -> list[str]:
    """What is analysed of the base itself; spectra and subspaces are of updates, and a base has none."""
    return [analysis for analysis in plan.analyses if analysis not in OF_WEIGHTS]


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
