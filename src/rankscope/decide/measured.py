"""What a verdict rests on, read from a study directory: the choices, and every score of base and chosen runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from rankscope.decide.comparison import MIN_CATEGORY_ITEMS
from rankscope.decide.differences import TaskScores
from rankscope.decide.standing import BASE
from rankscope.plan import Plan
from rankscope.records import EvaluateRecord, RateChoice
from rankscope.runs import RunSettings
from rankscope.store import ITEMS, PROMPTS, RECORD, Store, check_files, checksum

# Categories that belong together, by the name of their group.
Groups = Mapping[str, Sequence[str]]
CLUSTER = "cluster"


@dataclass
class Measured:
    """What was read for one base and training set.

    Attributes:
        choices: By arm; an arm whose rate is not chosen yet is missing.
        num_trainable: By arm, from any of its runs.
        seconds: By arm, of each chosen run with its scores.
        scoring_seconds: By task, of scoring all chosen runs.
        lost_seeds: By arm, what became of its seeds at the chosen rate that gave no number.
        unfinished: By task and arm (the base too), how many of how many generated answers nothing ended but their
            limit, over all seeds.
        sums: Checksum of every file that was read.
    """

    base: str
    training_set: str
    choices: Mapping[str, RateChoice]
    tasks: list[TaskScores] = field(default_factory=list)
    num_trainable: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    scoring_seconds: dict[str, float] = field(default_factory=dict)
    lost_seeds: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unfinished: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)


def read_measured(
    store: Store, plan: Plan, base: str, training_set: str, groups: Mapping[str, Groups] | None = None
) -> Measured:
    """Everything that the verdict of one base and training set rests on.

    Args:
        store: The study directory.
        plan: Its plan.
        base: The base.
        training_set: The training set.
        groups: By task, categories that belong together, by the name of their group.

    Raises:
        DamagedFile: Scores differ from what was written.
    """
    made = store.read_rates().choices
    choices = {item.arm: item for item in made if (item.base, item.training_set) == (base, training_set)}
    measured = Measured(base, training_set, choices)
    for name, settings in plan.tasks[base].items():
        unit = "nats" if settings.scoring == "loss" else "accuracy"
        frame = _items(store, measured, store.base_task(base, name))
        if frame is None or not np.isfinite(_values(frame, unit)).all():
            measured.warnings.append(f"{name}: the base has no usable scores, so the task is left out")
            continue
        _count_unfinished(measured, BASE, name, store.read_evaluate(store.base_task(base, name)))
        measured.tasks.append(
            TaskScores(
                task=name,
                relation=plan.relations[training_set][name],
                unit=unit,
                base=_values(frame, unit),
                num_tokens=frame["num_scored_tokens"].cast(pl.Float64).to_numpy() if unit == "nats" else None,
                categories=_categories(frame, (groups or {}).get(name, {})),
                clusters=_clusters(store, measured, name, frame),
            )
        )
    for settings in plan.runs:
        if (settings.base.name, settings.training_set.name) == (base, training_set):
            _read_run(store, measured, settings)
    measured.warnings += [*_single_rate_warnings(choices), *_edge_warnings(choices)]
    return measured


# Rates are chosen by what is learned.
_BEYOND = {
    "highest": "one beyond may learn more, and may forget more",
    "lowest": "one below may do better",
}


def _single_rate_warnings(choices: Mapping[str, RateChoice]) -> list[str]:
    """One sentence for all arms that were tried at a single rate, so that none was chosen."""
    known = {arm: item for arm, item in choices.items() if item.learning_rate is not None and len(item.scores) == 1}
    if not known:
        return []
    arms = ", ".join(f"{arm} ({item.learning_rate:g})" for arm, item in known.items())
    more = "each might do better at another, and the order of the arms might change"
    return [f"only one learning rate was tried of {arms}: {more}"]


def _edge_warnings(choices: Mapping[str, RateChoice]) -> list[str]:
    """One sentence for all arms whose rate is the highest of those tried, and one for the lowest."""
    warnings = []
    for edge in ("highest", "lowest"):
        arms = [f"{arm} ({item.learning_rate:g})" for arm, item in choices.items() if item.at_edge == edge]
        if arms:
            text = f"the chosen rate is the {edge} of those tried: {_BEYOND[edge]}: "
            warnings.append(text + ", ".join(arms))
    return warnings


def _read_run(store: Store, measured: Measured, settings: RunSettings) -> None:
    """Add one run's scores, if its rate is the chosen one."""
    arm, train = settings.arm.label, store.read_train(settings.run_id)
    if train is not None and train.num_trainable is not None:
        measured.num_trainable.setdefault(arm, train.num_trainable)
    choice = measured.choices.get(arm)
    if choice is None or choice.learning_rate != settings.learning_rate:
        return
    if train is None or train.status != "complete":
        status = "has not run" if train is None else f"{train.status} at the chosen rate"
        if train is not None:
            measured.lost_seeds.setdefault(arm, []).append(f"seed {settings.seed} {train.status}")
        measured.warnings.append(f"{arm} seed {settings.seed}: {status}; its numbers are those of its other seeds")
        return
    seconds = train.seconds
    for task in measured.tasks:
        folder = store.task(settings.run_id, task.task)
        values = _run_values(store, measured, folder, task)
        if values is None:
            measured.warnings.append(f"{arm} seed {settings.seed}: no usable scores of {task.task}; left out there")
            continue
        task.tuned.setdefault(arm, {})[settings.seed] = values
        record = store.read_evaluate(folder)
        _count_unfinished(measured, arm, task.task, record)
        taken = record.seconds if record else 0.0
        measured.scoring_seconds[task.task] = measured.scoring_seconds.get(task.task, 0.0) + taken
        seconds += taken
    measured.seconds.setdefault(arm, []).append(seconds)


def _count_unfinished(measured: Measured, arm: str, task: str, record: EvaluateRecord | None) -> None:
    if record is not None and record.num_unfinished is not None:
        by_arm = measured.unfinished.setdefault(task, {})
        unfinished, items = by_arm.get(arm, (0, 0))
        by_arm[arm] = (unfinished + record.num_unfinished, items + record.num_items)


def _run_values(store: Store, measured: Measured, folder: Path, task: TaskScores) -> np.ndarray | None:
    """A run's values in the base's order of items; None where they are missing, not finite or of other items."""
    frame = _items(store, measured, folder)
    if frame is None:
        return None
    base = pl.read_parquet(store.base_task(measured.base, task.task) / ITEMS, columns=["item_id"])
    joined = base.join(frame, on="item_id", how="left", maintain_order="left")
    values = _values(joined, task.unit)
    return values if joined.height == base.height == frame.height and np.isfinite(values).all() else None


def _items(store: Store, measured: Measured, folder: Path) -> pl.DataFrame | None:
    record = store.read_evaluate(folder)
    if record is None or record.status != "complete":
        return None
    check_files(folder, record)
    measured.sums |= {str((folder / name).relative_to(store.root)): value for name, value in record.files.items()}
    measured.sums.setdefault(str((folder / RECORD).relative_to(store.root)), record.settings_hash)
    return pl.read_parquet(folder / ITEMS)


def _values(frame: pl.DataFrame, unit: str) -> np.ndarray:
    """Right and wrong as 1 and 0, or nats; what is missing becomes NaN."""
    column = "is_correct" if unit == "accuracy" else "nll_nats"
    return frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _clusters(store: Store, measured: Measured, task: str, frame: pl.DataFrame) -> np.ndarray | None:
    """Which of a task's items belong together, in the order of its scores; None where all stand alone."""
    path = store.base_task(measured.base, task) / PROMPTS
    if not path.is_file() or CLUSTER not in pl.read_parquet_schema(path):
        return None  # of a directory from before items had clusters
    measured.sums[str(path.relative_to(store.root))] = checksum(path)
    names = frame.select("item_id").join(pl.read_parquet(path, columns=["item_id", CLUSTER]), on="item_id", how="left")
    if names[CLUSTER].null_count() == names.height:
        return None
    own = pl.concat_str(pl.lit("\0"), pl.col("item_id"))
    return names.select(pl.coalesce(CLUSTER, own).rank("dense"))[CLUSTER].to_numpy().astype(np.int64)


def _categories(frame: pl.DataFrame, groups: Groups) -> np.ndarray | None:
    """Each item's category; its group, where most categories have too few items to look at."""
    column = frame["category"]
    if column.null_count() == frame.height:
        return None
    sizes = frame["category"].drop_nulls().value_counts()["count"]
    if groups and 2 * (sizes >= MIN_CATEGORY_ITEMS).sum() < len(sizes):
        group_of = {category: group for group, members in groups.items() for category in members}
        column = column.replace_strict(group_of, default=column)
    return column.to_numpy().astype(object)
