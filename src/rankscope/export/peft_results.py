"""A run as a result of PEFT's method comparison: its fields by its names, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import polars as pl

from rankscope.decide.defaults import adapter_config
from rankscope.plan import VALIDATION, Plan
from rankscope.records import EvaluateRecord, TaskComparison, TrainRecord, Verdict
from rankscope.runs import DataOrigin, RunSettings

# Their statuses are three. A rate that diverged is a result for us, and for them a run without a score.
_STATUSES = {
    "complete": "success", "failed": "failed", "diverged": "failed", "interrupted": "canceled", "paused": "canceled",
}  # fmt: skip
# The packages whose versions they keep; what is not installed or not recorded is null.
_PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
# What they keep of each validation and nobody here measures.
_UNMEASURED = ("eval time", "mem allocated avg", "mem reserved avg", "elapsed time")


@dataclass(frozen=True)
class RunResult:
    """What the study directory holds of one run.

    Attributes:
        scores: By task, validation among them, the run's own records.
        base_scores: By task, the base's.
        steps: The lines of its steps.jsonl.
        seconds: Of all stages of the run.
        weights_bytes: Of its adapter or model on disk; None where it was deleted.
        comparisons: Of its arm at its rate, over all seeds; empty where the rate was not chosen.
    """

    train: TrainRecord
    scores: Mapping[str, EvaluateRecord]
    base_scores: Mapping[str, EvaluateRecord]
    steps: pl.DataFrame
    seconds: float
    weights_bytes: int | None
    comparisons: Sequence[TaskComparison]
    verdict: Verdict | None


def result_document(plan: Plan, result: RunResult) -> dict[str, Any]:
    """The run's document: `run_info`, `train_info` and `meta_info` as PEFT's method comparison has them, and ours.

    What was not measured is null, never a stand-in: their average and 99th percentile of reserved memory among it.
    """
    run = result.train.run
    return {
        "run_info": _run_info(plan, result),
        "train_info": _train_info(plan, result),
        "meta_info": _meta_info(plan, result),
        "rankscope": {
            "study": plan.study,
            "run_id": run.run_id,
            "run": run.model_dump(mode="json"),
            "status": result.train.status,
            "divergence": result.train.divergence,
            "scores": {task: record.values for task, record in result.scores.items()},
            "base_scores": {task: record.values for task, record in result.base_scores.items()},
            "relations": plan.relations[run.training_set.name],
            "comparisons": [one.model_dump(mode="json") for one in result.comparisons],
            "decision": None if result.verdict is None else result.verdict.decision,
            "recommended": None if result.verdict is None else result.verdict.arm,
        },
    }


def _run_info(plan: Plan, result: RunResult) -> dict[str, Any]:
    record = result.train
    run = record.run
    return {
        "created_at": record.started_at,
        "total_time": result.seconds,
        "experiment_name": f"{run.arm.method}/{run.run_id}",
        "peft_branch": "release",
        "peft_worktree_is_dirty": None,
        "train_config": _train_config(plan, run),
        "peft_config": adapter_config(run),
        "error_msg": "" if record.error is None else f"{record.error.type}: {record.error.message}",
    }


def _train_config(plan: Plan, run: RunSettings) -> dict[str, Any]:
    settings = run.optimization
    generated = [task for task in plan.tasks[run.base.name].values() if task.scoring == "generate"]
    longest = max((task.max_new_tokens for task in generated), default=None)
    return {
        "model_id": run.base.source,
        "dtype": settings.dtype,
        "max_seq_length": settings.max_length,
        "batch_size": settings.batch_size,
        "batch_size_eval": None,
        "max_steps": run.num_steps,
        "eval_steps": max(1, run.num_steps // settings.num_validations),
        "compile": False,
        "use_gc": plan.gradient_checkpointing,
        "query_template": None,
        "seed": run.seed,
        "grad_norm_clip": settings.max_grad_norm or 0,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {
            "lr": run.learning_rate,
            "weight_decay": settings.weight_decay,
            "betas": [settings.adam_beta1, settings.adam_beta2],
            "eps": settings.adam_epsilon,
        },
        "lr_scheduler": settings.lr_scheduler,
        "use_amp": settings.bf16 is True,
        "autocast_adapter_dtype": None,
        "generation_kwargs": {} if longest is None else {"max_new_tokens": longest},
        "attn_implementation": None,
        "init_kv_cache_prefix": None,
    }


def _train_info(plan: Plan, result: RunResult) -> dict[str, Any]:
    record = result.train
    return {
        "accelerator_memory_reserved_avg": None,
        "accelerator_memory_max": record.peak_memory_bytes,
        "accelerator_memory_reserved_99th": None,
        "train_time": record.seconds,
        "file_size": result.weights_bytes,
        "num_trainable_params": record.num_trainable,
        "num_total_params": record.num_parameters,
        "status": _STATUSES[record.status],
        "metrics": [*_validations(result), _final(plan, result)],
    }


def _validations(result: RunResult) -> list[dict[str, Any]]:
    """A row for each validation; accuracy on validation items is measured once, after the last step."""
    rows, begun = [], 0
    last = result.train.validations[-1].step if result.train.validations else None
    score = result.scores.get(VALIDATION)
    for point in result.train.validations:
        part = result.steps.filter(pl.col("step").is_between(begun + 1, point.step))
        accuracy = score.values.get("accuracy") if score is not None and point.step == last else None
        rows.append(
            {
                "step": point.step,
                "valid accuracy": accuracy,
                "valid loss": point.loss_nats_per_token,
                "train loss": _mean(part),
                "train samples": point.step * result.train.run.optimization.batch_size,
                "train time": float(part["seconds"].sum()) if part.height else None,
                "tokens / sec": _speed(part),
                **dict.fromkeys(_UNMEASURED),
            }
        )
        begun = point.step
    return rows


def _final(plan: Plan, result: RunResult) -> dict[str, Any]:
    record = result.train
    losses = result.steps.tail(max(1, record.num_steps // record.run.optimization.num_validations))
    return {
        "step": record.num_steps,
        "test accuracy": _mean_score(plan, result, "in_domain"),
        "train loss": _mean(losses),
        "train samples": record.num_steps * record.run.optimization.batch_size,
        "train total tokens": record.num_tokens,
        "forgetting": _forgetting(plan, result),
    }


def _mean(steps: pl.DataFrame) -> float | None:
    return float(steps["loss_nats_per_token"].mean()) if steps.height else None


def _speed(steps: pl.DataFrame) -> float | None:
    seconds = float(steps["seconds"].sum()) if steps.height else 0.0
    return float(steps["num_tokens"].sum()) / seconds if seconds > 0 else None


def _mean_score(plan: Plan, result: RunResult, relation: str) -> float | None:
    """The run's mean accuracy over the tasks of that relation that have right answers."""
    relations = plan.relations[result.train.run.training_set.name]
    values = [
        record.values["accuracy"]
        for task, record in result.scores.items()
        if relations.get(task) == relation and "accuracy" in record.values
    ]
    return fmean(values) if values else None


def _forgetting(plan: Plan, result: RunResult) -> float | None:
    """How much more the retention texts surprise the tuned model, in nats per token, as they have it for WikiText."""
    relations = plan.relations[result.train.run.training_set.name]
    losses = [
        record.values["loss_nats_per_token"] - base.values["loss_nats_per_token"]
        for task, record in result.scores.items()
        if relations.get(task) == "retention" and record.scoring == "loss"
        and (base := result.base_scores.get(task)) is not None
    ]  # fmt: skip
    return fmean(losses) if losses else None


def _meta_info(plan: Plan, result: RunResult) -> dict[str, Any]:
    provenance, run = result.train.provenance, result.train.run
    packages = provenance.get("packages", {})
    versions = {f"{name}-version": packages.get(name) for name in _PACKAGES}
    commits = {f"{name}-commit-hash": None for name in _PACKAGES}
    data = {run.training_set.name: run.training_set.data}
    data |= {task: record.data for task, record in result.base_scores.items() if record.data is not None}
    return {
        "model_info": {"sha": run.base.commit, "created_at": None},
        "dataset_info": {name: _data(origin) for name, origin in data.items()},
        "package_info": {**versions, **commits, **{f"{name}-version": value for name, value in packages.items()}},
        "system_info": {
            **dict.fromkeys(("system", "release", "version", "machine", "processor")),
            "platform": provenance.get("platform"),
            "accelerator": plan.layout.gpu or provenance.get("device"),
        },
        "pytorch_info": f"torch {packages['torch']}" if "torch" in packages else None,
    }


def _data(origin: DataOrigin | None) -> dict[str, Any]:
    if origin is None:
        return {"sha": None, "created_at": None}
    return {"sha": origin.commit, "created_at": None, **origin.model_dump(exclude={"commit"})}
