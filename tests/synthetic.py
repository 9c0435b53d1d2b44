"""Study directories with chosen truth, written through the Store without training anything.

`tests/conftest.py` puts this folder on the path, so any test may say `from synthetic import write_study`. What a study
should show is said by `Arm.shift`: the true difference of each task from the base, higher always better (accuracy, or
nats per token saved). Everything else (items, losses, validation scores, the rate chosen) is drawn around it from one
seeded generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import polars as pl

from rankscope.expansion import expand_runs
from rankscope.plan import Estimate, Layout, Plan, validation_task
from rankscope.records import EvaluateRecord, Failure, Subject, TrainRecord, ValidationPoint
from rankscope.runs import BaseSettings, RunSettings, TaskSettings, TrainingData
from rankscope.spec import Study
from rankscope.store import Store, write_parquet, write_record, write_text
from rankscope.study_file import dump_study

STARTED = "2026-01-01T00:00:00+00:00"
ITEM_COLUMNS = {
    "item_id": pl.String,
    "category": pl.String,
    "is_correct": pl.Boolean,
    "prediction": pl.String,
    "target": pl.String,
    "is_invalid": pl.Boolean,
    "option_log_likelihoods": pl.List(pl.Float64),
    "num_scored_tokens": pl.Int64,
    "nll_nats": pl.Float64,
}


@dataclass(frozen=True)
class Task:
    """One task of a synthetic study; `level` is the base's accuracy, or its nats per token where scoring is loss."""

    name: str
    relation: Literal["in_domain", "out_of_domain", "retention"]
    scoring: Literal["multiple_choice", "generate", "loss"] = "multiple_choice"
    num_items: int = 300
    level: float = 0.6
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One arm with its truth.

    Attributes:
        shift: By task, the true difference from the base, higher better; 0 where a task is not named.
        seed_sd: How much the truth moves with the seed.
        best: Index of the rate that validation favours.
        diverged: Rates whose runs diverge; `failed`: rates whose runs fail.
        failed_seeds: Seeds whose run at the best rate fails.
    """

    method: Literal["full", "lora"]
    rank: int | None = None
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    num_trainable: int = 1000
    shift: Mapping[str, float] = field(default_factory=dict)
    seed_sd: float = 0.01
    best: int = 1
    diverged: tuple[float, ...] = ()
    failed: tuple[float, ...] = ()
    failed_seeds: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        return self.method if self.rank is None else f"{self.method}-r{self.rank}"


@dataclass(frozen=True)
class Synthetic:
    """What `write_study` wrote."""

    store: Store
    study: Study
    plan: Plan

    def runs(self, arm: str, seed: int | None = None) -> list[RunSettings]:
        """The plan's runs of an arm, all rates."""
        return [run for run in self.plan.runs if run.arm.label == arm and seed in (None, run.seed)]


TASKS = (
    Task("taught", "in_domain", level=0.3),
    Task("legal", "out_of_domain", level=0.6),
    Task("general", "retention", level=0.8, categories=("people", "towns", "work")),
    Task("text", "retention", scoring="loss", num_items=120, level=1.0),
)
# Rank 4 learns too little, rank 16 is the answer, rank 64 and full learn as much and forget more than the budget.
ARMS = (
    Arm("lora", 4, num_trainable=4_000, shift={"taught": 0.15, "general": -0.002, "text": -0.002}),
    Arm("lora", 16, num_trainable=16_000, shift={"taught": 0.45, "general": -0.004, "text": -0.005}),
    Arm("lora", 64, num_trainable=64_000, shift={"taught": 0.45, "general": -0.15, "text": -0.10}),
    Arm("full", None, (1e-5, 3e-5), 900_000, {"taught": 0.46, "general": -0.2, "text": -0.3}, best=0),
)


def write_study(
    root: Path,
    *,
    tasks: Sequence[Task] = TASKS,
    arms: Sequence[Arm] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    decide: Mapping[str, Any] | None = None,
    search_seeds: int = 1,
    bases: Sequence[str] = ("small",),
    training_sets: Sequence[str] = ("new",),
    validation_scoring: Literal["multiple_choice", "loss"] = "multiple_choice",
    draw: int = 0,
) -> Synthetic:
    """Write study.yaml, plan.json, the base's scores and every run that a finished study would hold.

    All that comes before `decide` is there: candidates on the search seeds with their validation scores, and the best
    rate on all seeds with its scores of every task. `decide/` is left to what is tested.
    """
    rng = np.random.default_rng(draw)
    study = _study(tasks, arms, seeds, decide or {}, search_seeds, bases, training_sets)
    plan = _plan(study, tasks, bases, training_sets, validation_scoring)
    store = Store(root)
    write_text(store.study_file, dump_study(study))
    write_text(store.plan_file, plan.model_dump_json(indent=1))
    world = {(base, task.name): _draw_base(rng, task) for base in bases for task in tasks}
    validation = Task("validation", "in_domain", scoring=validation_scoring, num_items=200, level=0.3)
    for base in bases:
        for task in tasks:
            folder = store.base_task(base, task.name)
            write_scores(folder, world[base, task.name], Subject(base=base), task)
            write_prompts(folder, world[base, task.name])
        for training_set in training_sets:
            frame = world[base, f"validation-{training_set}"] = _draw_base(rng, validation)
            write_scores(store.base_task(base, validation_task(training_set)), frame, Subject(base=base), validation)
    by_label = {arm.label: arm for arm in arms}
    for run in plan.runs:
        arm = by_label[run.arm.label]
        is_best = run.learning_rate == arm.rates[arm.best]
        if run.seed not in plan.search_seeds and not is_best:
            continue
        write_text(store.run(run.run_id) / "run.json", run.model_dump_json(indent=1))
        if not write_training(store, run, arm):
            continue
        seed_effect = _seed_effect(run, arm)
        if run.seed in plan.search_seeds:
            shift = max(arm.shift.values(), default=0.0) - (0.0 if is_best else 0.1) + seed_effect
            frame = _draw_run(rng, validation, world[run.base.name, f"validation-{run.training_set.name}"], shift)
            write_scores(store.task(run.run_id, "validation"), frame, _subject(run), validation)
        if is_best:
            for task in tasks:
                shift = arm.shift.get(task.name, 0.0) + (0.1 if task.scoring == "loss" else 1.0) * seed_effect
                frame = _draw_run(rng, task, world[run.base.name, task.name], shift)
                write_scores(store.task(run.run_id, task.name), frame, _subject(run), task)
    return Synthetic(store, study, plan)


def write_training(store: Store, run: RunSettings, arm: Arm) -> bool:
    """A run's training record and steps; whether it completed."""
    status: Literal["complete", "diverged", "failed"] = "complete"
    if run.learning_rate in arm.diverged:
        status = "diverged"
    elif run.learning_rate in arm.failed or (run.seed in arm.failed_seeds and run.learning_rate == arm.rates[arm.best]):
        status = "failed"
    steps = pl.DataFrame(
        {
            "step": list(range(1, run.num_steps + 1)),
            "loss_nats_per_token": [2.0 / (1 + 0.1 * step) for step in range(1, run.num_steps + 1)],
            "learning_rate": [run.learning_rate] * run.num_steps,
            "grad_norm": [1.0] * run.num_steps,
            "num_tokens": [512] * run.num_steps,
            "seconds": [0.1] * run.num_steps,
        }
    )
    folder = store.train(run.run_id)
    write_text(folder / "steps.jsonl", steps.write_ndjson())
    best = run.learning_rate == arm.rates[arm.best]
    record = TrainRecord(
        status=status,
        error=Failure(type="RuntimeError", message="out of memory", traceback="") if status == "failed" else None,
        settings_hash=run.settings_hash,
        provenance={},
        started_at=STARTED,
        seconds=2.0,
        run=run,
        num_trainable=arm.num_trainable,
        num_parameters=1_000_000,
        num_steps=run.num_steps,
        num_tokens=512 * run.num_steps,
        num_scored_tokens=256 * run.num_steps,
        final_loss_nats_per_token=0.5,
        validations=(ValidationPoint(step=run.num_steps, loss_nats_per_token=0.6 if best else 0.8),),
        diverged_at_step=3 if status == "diverged" else None,
        divergence="loss_too_high" if status == "diverged" else None,
    )
    write_record(folder, record, ["steps.jsonl"])
    return status == "complete"


def write_scores(folder: Path, frame: pl.DataFrame, subject: Subject, task: Task, *, seconds: float = 1.0) -> None:
    """One task's items.parquet and record for one model."""
    write_parquet(folder / "items.parquet", frame)
    values: dict[str, float] = {}
    if task.scoring == "loss":
        values["loss_nats_per_token"] = float(frame["nll_nats"].sum() / frame["num_scored_tokens"].sum())
    else:
        values["accuracy"] = float(frame["is_correct"].mean())
    record = EvaluateRecord(
        status="complete",
        settings_hash="0" * 64,
        provenance={},
        started_at=STARTED,
        seconds=seconds,
        subject=subject,
        task=task.name,
        scoring=task.scoring,
        num_items=frame.height,
        scored_by="separate_rows",
        values=values,
    )
    write_record(folder, record, ["items.parquet"])


def write_prompts(folder: Path, frame: pl.DataFrame) -> None:
    """A prompts.parquet that fits the items."""
    prompts = frame.select(
        "item_id",
        "category",
        pl.format("Question {}? Answer:", "item_id").alias("prompt"),
        pl.lit([" a", " b", " c", " d"]).alias("options"),
        pl.col("target"),
        pl.lit(0, dtype=pl.Int32).alias("target_index"),
    )
    write_parquet(folder / "prompts.parquet", prompts)


def items_frame(task: Task, is_correct: np.ndarray | None, nll: np.ndarray, tokens: np.ndarray) -> pl.DataFrame:
    """Rows of items.parquet: correctness for accuracy tasks, None for losses."""
    count = len(nll)
    categories = [task.categories[i % len(task.categories)] if task.categories else None for i in range(count)]
    answered = is_correct is not None
    return pl.DataFrame(
        {
            "item_id": [f"{task.name}-{i:05d}" for i in range(count)],
            "category": categories,
            "is_correct": [bool(value) for value in is_correct] if answered else [None] * count,
            "prediction": [" a" if value else " b" for value in is_correct] if answered else [None] * count,
            "target": [" a"] * count,
            "is_invalid": [False] * count if task.scoring == "generate" else [None] * count,
            "option_log_likelihoods": [None] * count,
            "num_scored_tokens": tokens,
            "nll_nats": nll,
        },
        schema=ITEM_COLUMNS,
    )


def _draw_base(rng: np.random.Generator, task: Task) -> pl.DataFrame:
    tokens = rng.integers(5, 40, task.num_items)
    if task.scoring == "loss":
        return items_frame(task, None, tokens * task.level * rng.lognormal(0, 0.2, task.num_items), tokens)
    is_correct = rng.permutation(task.num_items) < round(task.level * task.num_items)
    return items_frame(task, is_correct, tokens * rng.lognormal(0, 0.2, task.num_items), tokens)


def _draw_run(rng: np.random.Generator, task: Task, base: pl.DataFrame, shift: float) -> pl.DataFrame:
    """The base's items with answers flipped so that the expected difference is `shift`; items act alike in all runs."""
    tokens = base["num_scored_tokens"].to_numpy()
    nll = base["nll_nats"].to_numpy() - tokens * (shift + 0.03 * rng.normal(size=task.num_items))
    if task.scoring == "loss":
        return items_frame(task, None, nll, tokens)
    right = base["is_correct"].to_numpy()
    level = max(right.mean(), 1e-9)
    churn = max(0.06, abs(shift))
    lost, gained = (churn - shift) / 2 / level, (churn + shift) / 2 / max(1 - level, 1e-9)
    own = np.random.default_rng(len(task.name)).normal(size=task.num_items)  # what the item itself does, in every run
    score = np.sqrt(0.5) * own + np.sqrt(0.5) * rng.normal(size=task.num_items)
    flip = score < np.where(right, _quantile(lost), _quantile(gained))
    return items_frame(task, right ^ flip, nll, tokens)


def _quantile(probability: float) -> float:
    return NormalDist().inv_cdf(min(max(probability, 1e-9), 1 - 1e-9))


def _seed_effect(run: RunSettings, arm: Arm) -> float:
    """One draw for a run, the same for all its tasks, fixed by the run itself."""
    key = int(run.settings_hash[:8], 16)
    return float(np.random.default_rng(key).normal(scale=arm.seed_sd))


def _subject(run: RunSettings) -> Subject:
    return Subject(
        base=run.base.name,
        training_set=run.training_set.name,
        arm=run.arm.label,
        learning_rate=run.learning_rate,
        seed=run.seed,
        run_id=run.run_id,
    )


def _study(
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    decide: Mapping[str, Any],
    search_seeds: int,
    bases: Sequence[str],
    training_sets: Sequence[str],
) -> Study:
    evaluate: dict[str, Any] = {}
    for task in tasks:
        entry: dict[str, Any] = {"source": f"{task.name}.jsonl", "scoring": task.scoring}
        if task.relation == "in_domain":
            entry["in_domain_for"] = list(training_sets)
        if task.relation == "retention":
            entry["role"] = "retention"
        evaluate[task.name] = entry
    entries = []
    for arm in arms:
        entry = {"method": arm.method, "learning_rate": list(arm.rates)}
        entries.append({**entry, "rank": arm.rank} if arm.rank is not None else entry)
    return Study.model_validate(
        {
            "study": "synthetic",
            "model": {base: {"source": f"models/{base}"} for base in bases},
            "train": {name: {"source": f"{name}.jsonl"} for name in training_sets},
            "arms": entries,
            "optimization": {"max_steps": 5},
            "seeds": list(seeds),
            "evaluate": evaluate,
            "search": {"seeds": search_seeds},
            "decide": dict(decide),
        }
    )


def _plan(
    study: Study, tasks: Sequence[Task], bases: Sequence[str], training_sets: Sequence[str], validation_scoring: str
) -> Plan:
    base_settings = {
        base: BaseSettings(name=base, source=f"models/{base}", revision=None, fingerprint="f" * 64) for base in bases
    }
    training = {
        (base, name): TrainingData(name=name, fingerprint="e" * 64, validation_fingerprint="v", num_examples=200)
        for base in bases
        for name in training_sets
    }
    runs = tuple(expand_runs(study, base_settings, training))
    settings = {task.name: _task_settings(task.name, task.scoring, task.num_items) for task in tasks}
    validation = {name: _task_settings("validation", validation_scoring, 200) for name in training_sets}
    return Plan(
        study=study.study,
        bases=base_settings,
        arms=tuple(dict.fromkeys(run.arm.label for run in runs)),
        tasks=dict.fromkeys(bases, settings),
        validation=dict.fromkeys(bases, validation),
        relations={name: {task.name: task.relation for task in tasks} for name in training_sets},
        runs=runs,
        search_seeds=study.seeds[: study.search.seeds],
        layout=Layout(device="cpu", num_workers=1, threads_per_worker=1),
        dtype="float32",
        max_tokens_per_batch=8192,
        checkpoint_seconds=60.0,
        probes_fingerprint={base: "c" * 64 for base in bases},
        analyses=(),
        estimate=Estimate(
            trained_tokens=1, scored_tokens=1, arithmetic=1.0, seconds=None, memory_bytes=None, disk_bytes=1
        ),
    )


def _task_settings(name: str, scoring: Any, num_items: int) -> TaskSettings:
    kind = "text" if scoring == "loss" else "recall"
    fixed = {"answer": "text", "max_new_tokens": 16, "fingerprint": "d" * 64}
    return TaskSettings(name=name, scoring=scoring, kind=kind, num_items=num_items, **fixed)
