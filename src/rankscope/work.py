"""What there is to do in a study: its pieces of work, which of them are needed, and where the record of each lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rankscope.plan import VALIDATION, Pack, Plan, validation_task
from rankscope.records import Rates, Record
from rankscope.runs import OF_WEIGHTS, ArmKey, RunSettings
from rankscope.store import Store

# A piece of work: its stage, its run (None: the base itself), and the task or analysis ("" when training).
Work = tuple[str, str, str | None, str]


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
        is_searched = step == run.num_steps and run.arm_key in settled
        if run_id in chosen or (plan.scores_all_candidates and is_searched):
            yield from (("evaluate", base, run_id, name) for name in plan.tasks[base])
            yield from (("analyse", base, run_id, analysis) for analysis in plan.analyses)
        if run_id in chosen:
            yield from (("derive", base, run_id, point.name) for point in plan.derived.get(run.arm.label, ()))


def asked_step(plan: Plan, rates: Rates, run: RunSettings) -> int | None:
    """To which step the search asks a run to be trained, as far as is known; None: it does not ask for it."""
    if run.seed not in plan.search_seeds:
        return None
    search = next((item for item in rates.searches if item.arm_key == run.arm_key), None)
    if search is not None:
        return next((item.step for item in search.asked if item.learning_rate == run.learning_rate), None)
    return None if plan.is_beyond(run) else next(iter(plan.round_steps(run)), run.num_steps)


def round_work(run: RunSettings, step: int) -> Work:
    """A run is trained up to a round's step; its validation loss there is all that the round asks for."""
    return "train", run.base.name, run.run_id, str(step)


def chosen_run_ids(plan: Plan, rates: Rates) -> set[str]:
    """The runs at the chosen rates, all seeds."""
    chosen = {c.arm_key: c.learning_rate for c in rates.choices}
    return {run.run_id for run in plan.runs if chosen.get(run.arm_key) == run.learning_rate}


def settled_arms(rates: Rates) -> set[ArmKey]:
    """The base, training set and label of every arm whose rate was chosen, or found to be none."""
    return {choice.arm_key for choice in rates.choices}


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


def _base_analyses(plan: Plan) -> list[str]:
    """What is analysed of the base itself; spectra and subspaces are of updates, and a base has none."""
    return [analysis for analysis in plan.analyses if analysis not in OF_WEIGHTS]
