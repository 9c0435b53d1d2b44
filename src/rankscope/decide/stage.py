"""The verdicts of a study: reads the scores of the base and of the chosen runs, writes decide/record.json."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

from rankscope.data.sources import preset_of
from rankscope.decide.comparison import compare_tasks
from rankscope.decide.defaults import default_files
from rankscope.decide.differences import TaskScores
from rankscope.decide.estimates import arm_pairs, by_measure, measure
from rankscope.decide.measured import Measured, read_measured
from rankscope.decide.rule import judge
from rankscope.decide.standing import BASE, Question, Standing
from rankscope.plan import Plan
from rankscope.provenance import provenance
from rankscope.records import DecideRecord, TaskComparison, Verdict
from rankscope.runs import RunSettings, TaskSettings, settings_hash
from rankscope.spec import Study, Task
from rankscope.store import Store, write_parquet, write_record, write_text

COMPARISONS = "comparisons.parquet"
DEFAULTS = "defaults"


def run(store: Store, study: Study, plan: Plan) -> DecideRecord:
    """Compare every arm with the base, apply the rule for each base and training set, and write the record.

    Raises:
        DamagedFile: Scores differ from what was written.
    """
    started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
    verdicts: list[Verdict] = []
    comparisons: list[TaskComparison] = []
    tables: list[pl.DataFrame] = []
    sums: dict[str, str] = {}
    groups = {name: _groups(task) for name, task in study.evaluate.items()}
    for base in plan.bases:
        for training_set in plan.relations:
            measured = read_measured(store, plan, base, training_set, groups)
            rows, table = _comparisons(measured, study)
            pairs = arm_pairs(measured.tasks, list(measured.choices), study.decide.confidence)
            verdicts.append(verdict(measured, study, plan).model_copy(update={"pairs": pairs}))
            comparisons += rows
            tables.append(table)
            sums |= measured.sums
    write_parquet(store.decide / COMPARISONS, pl.concat(tables))
    shutil.rmtree(store.decide / DEFAULTS, ignore_errors=True)  # those of an earlier verdict
    verdicts = [_with_defaults(store, plan, verdict) for verdict in verdicts]
    record = DecideRecord(
        status="complete",
        settings_hash=settings_hash({"decide": study.decide.model_dump(mode="json"), "files": sums}),
        provenance=provenance(),
        started_at=started_at,
        seconds=time.perf_counter() - started,
        verdicts=tuple(verdicts),
        comparisons=tuple(comparisons),
    )
    write_record(store.decide, record, [COMPARISONS, *(name for verdict in verdicts for name in verdict.defaults)])
    written = store.read_decide()
    assert written is not None, "the record was just written"
    return written


def _groups(task: Task) -> Mapping[str, Sequence[str]]:
    """How the data set groups its categories, where its preset says so."""
    preset = preset_of(task) if task.source else None
    return preset.groups if preset is not None else {}


def _comparisons(measured: Measured, study: Study) -> tuple[list[TaskComparison], pl.DataFrame]:
    rates = {arm: item.learning_rate for arm, item in measured.choices.items() if item.learning_rate is not None}
    names = (measured.base, measured.training_set)
    return compare_tasks(measured.tasks, rates, study.decide.confidence, names)


def verdict(measured: Measured, study: Study, plan: Plan) -> Verdict:
    """The verdict on one base and training set, from what was measured of its arms."""
    groups = by_measure(measured.tasks)
    score = "gain" if groups["gain"] or not groups["gain_nats"] else "gain_nats"
    arms = [
        Standing(
            arm=arm,
            method=settings.arm.method,
            rank=settings.arm.rank,
            learning_rate=measured.choices[arm].learning_rate if arm in measured.choices else None,
            num_trainable=measured.num_trainable.get(arm),
            lost_seeds=tuple(measured.lost_seeds.get(arm, ())),
            reason=_why_not_judged(measured, arm),
        )
        for arm, settings in _first_runs(plan, measured.training_set).items()
    ]
    question = Question(
        base=measured.base,
        training_set=measured.training_set,
        decide=study.decide,
        score=score,
        tasks={
            "score": _names(groups[score]),
            # A budget applies though none of its tasks could be scored: what is forgotten is then unknown, not nothing.
            **{key: _names(groups[key]) or _planned(plan, measured, key) for key in ("forgetting", "forgetting_nats")},
        },
        seeds=study.seeds,
        seconds_per_seed=sum(sum(each) / len(each) for each in measured.seconds.values()) or None,
        scoring_seconds=measured.scoring_seconds,
        cut=_cut_tasks(study, plan.tasks[measured.base]),
    )
    standings, between = measure(measured.tasks, arms, question)
    found = judge(standings, between, question, [*measured.warnings, *_overlap_warnings(measured, plan)])
    unfinished = _unfinished_warnings(measured, plan, found.arm or found.safe_arm)
    return found.model_copy(update={"warnings": (*found.warnings, *unfinished)})


def _cut_tasks(study: Study, tasks: Mapping[str, TaskSettings]) -> list[str]:
    """Those of which as many items are scored as `max_examples` lets through, so that there may be more."""
    most = {name: task.max_examples for name, task in study.evaluate.items()}
    return [name for name, task in tasks.items() if (limit := most[name]) is not None and task.num_items >= limit]


# An arm is warned of where so many more of a task's answers have no end than of the base's, which may have none either.
_UNFINISHED_FRACTION = 0.1


def _unfinished_warnings(measured: Measured, plan: Plan, arm: str | None) -> list[str]:
    """Tasks on which the arm that is named does not stop writing, as its base does."""
    warnings = []
    for task, by_arm in measured.unfinished.items():
        if arm not in by_arm or BASE not in by_arm:
            continue
        (count, number), (base_count, base_number) = by_arm[arm], by_arm[BASE]
        if count / number - base_count / base_number > _UNFINISHED_FRACTION:
            settings = plan.tasks[measured.base][task]
            limit = f"evaluate.{task}.max_new_tokens" if settings.harness is None else "max_gen_toks of the task's file"
            warnings.append(
                f"{task}: {count:,} of {number:,} answers of {arm} have no end, of the base's {base_count:,} of "
                f"{base_number:,}: they were cut at the longest that is generated, and the model may not stop in use "
                f"either; read some, and raise {limit} where they are cut too early"
            )
    return warnings


def _overlap_warnings(measured: Measured, plan: Plan) -> list[str]:
    """Test items that stand in the training data: a gain on them may be memory."""
    mine = (measured.base, measured.training_set)
    return [
        overlap.warning
        for overlap in plan.overlaps
        if (overlap.base, overlap.training_set) == mine and overlap.warning is not None
    ]


def _with_defaults(store: Store, plan: Plan, verdict: Verdict) -> Verdict:
    """A verdict with the files that others start from, written; without any where no arm is recommended."""
    runs = (
        run
        for run in plan.runs
        if (run.base.name, run.training_set.name) == (verdict.base, verdict.training_set)
        and (run.arm.label, run.learning_rate) == (verdict.arm, verdict.learning_rate)
    )
    run = next(runs, None)
    names = []
    for name, text in default_files(run).items() if run is not None else ():
        names.append(f"{DEFAULTS}/{verdict.base}/{verdict.training_set}/{name}")
        write_text(store.decide / names[-1], text)
    return verdict.model_copy(update={"defaults": tuple(names)})


def _planned(plan: Plan, measured: Measured, key: str) -> list[str]:
    """The retention tasks of the study that `forgetting` (accuracy) or `forgetting_nats` would be measured on."""
    relations = plan.relations[measured.training_set]
    return [
        name
        for name, task in plan.tasks[measured.base].items()
        if relations[name] == "retention" and (task.scoring == "loss") == (key == "forgetting_nats")
    ]


def _names(tasks: Sequence[TaskScores]) -> list[str]:
    return [task.task for task in tasks]


def _first_runs(plan: Plan, training_set: str) -> dict[str, RunSettings]:
    """One run of each arm that is trained on a set, for the arm's own settings."""
    first: dict[str, RunSettings] = {}
    for item in plan.runs:
        if item.training_set.name == training_set:
            first.setdefault(item.arm.label, item)
    return {arm: first[arm] for arm in plan.arms if arm in first}


def _why_not_judged(measured: Measured, arm: str) -> str:
    if arm not in measured.choices:
        return "its learning rate is not chosen yet"
    choice = measured.choices[arm]
    return choice.reason if choice.learning_rate is None else "no seed has been scored on all tasks in domain"
