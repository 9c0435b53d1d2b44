"""What a study will cost: tokens, arithmetic, time, memory and disk, from shapes and token counts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import polars as pl

from rankscope.data.shapes import layer_matrices, num_parameters
from rankscope.plan import Estimate, validation_task
from rankscope.runs import RunSettings, expand_arms
from rankscope.spec import Study

# Floating-point operations for each parameter and token: a forward is 2, and each of the two backward products 2.
# Frozen weights need no product for their own gradient.
_FORWARD, _TRAIN_FULL, _TRAIN_FROZEN = 2, 6, 4
# The share of the machine's matrix product rate that small models reach here, start-up included; measured on the demo.
_EFFICIENCY = 0.25

Frames = Mapping[tuple[str, str], pl.DataFrame]
Shapes = dict[str, tuple[int, ...]]


def estimate(
    study: Study, runs: Iterable[RunSettings], examples: Frames, prompts: Frames, shapes: Mapping[str, Shapes]
) -> Estimate:
    """The cost of a study in which every arm's rate is found; a forecast, and named so wherever it is shown."""
    trained = scored = arithmetic = 0
    expected = _expected_runs(study, list(runs))
    for run in expected:
        base = run.base.name
        size = _multiplied(shapes[base])
        tokens = _tokens_per_example(examples[base, run.training_set.name]) * run.num_steps
        tokens = int(tokens * run.optimization.batch_size)
        trained += tokens
        arithmetic += tokens * size * (_TRAIN_FULL if run.arm.method == "full" else _TRAIN_FROZEN)
    for base, base_shapes in shapes.items():
        size = _multiplied(base_shapes)
        per_model = sum(_characters(prompts[base, task]) for task in study.evaluate) // 3
        searches = sum(_characters(prompts[base, validation_task(name)]) for name in study.train) // 3
        num_arms = len(expand_arms(study)) * len(study.train)
        rates = sum(len(arm.learning_rate) for _, arm in expand_arms(study)) * study.search.seeds
        tokens = per_model * (1 + num_arms * len(study.seeds)) + searches * (1 + rates)
        scored += tokens
        arithmetic += tokens * size * _FORWARD
    return Estimate(
        trained_tokens=trained,
        scored_tokens=scored,
        arithmetic=float(arithmetic),
        seconds=arithmetic / (_EFFICIENCY * _matrix_product_rate()),
        memory_bytes=None,
        disk_bytes=sum(_weight_bytes(run, shapes[run.base.name]) for run in _kept_runs(study, expected)),
    )


def num_trainable(method: str, rank: int | None, shapes: Shapes) -> int:
    """Trainable parameters of an arm; for LoRA on all matrices of the layers."""
    if method == "full" or rank is None:
        return num_parameters(shapes)
    return sum(rank * (d_out + d_in) for d_out, d_in in layer_matrices(shapes).values())


def _multiplied(shapes: Shapes) -> int:
    """Parameters that every token is multiplied with: those of the layers; the head sees scored positions only."""
    return sum(d_out * d_in for d_out, d_in in layer_matrices(shapes).values())


def _expected_runs(study: Study, runs: list[RunSettings]) -> list[RunSettings]:
    """The search on its seeds, and one rate of each arm on the others."""
    search = set(study.seeds[: study.search.seeds])
    expected, seen = [], set()
    for run in runs:
        key = (run.base.name, run.training_set.name, run.arm.label, run.seed)
        if run.seed in search or key not in seen:
            expected.append(run)
        seen.add(key)
    return expected


def _kept_runs(study: Study, expected: list[RunSettings]) -> list[RunSettings]:
    """The runs whose weights stay: by `keep`, of full fine-tuning one rate of each arm and seed, or nothing at all."""
    if study.keep == "records":
        return []
    kept, seen = [], set()
    for run in expected:
        key = (run.base.name, run.training_set.name, run.arm.label, run.seed)
        if study.keep == "all" or run.arm.method != "full" or key not in seen:
            kept.append(run)
        seen.add(key)
    return kept


def _weight_bytes(run: RunSettings, shapes: Shapes) -> int:
    """The size of a run's weights on disk: a whole model, or an adapter."""
    size = 8 if run.optimization.dtype == "float64" else 4
    return size * num_trainable(run.arm.method, run.arm.rank, shapes)


def _tokens_per_example(frame: pl.DataFrame) -> float:
    mean = frame.filter(pl.col("split") == "train")["input_ids"].list.len().mean()
    return float(mean) if isinstance(mean, (int, float)) else 0.0


def _characters(prompts: pl.DataFrame) -> int:
    """Characters of prompts, options and targets; about three make a token."""
    options = prompts["options"].list.join("").str.len_chars().sum()
    return prompts["prompt"].str.len_chars().sum() + max(options, prompts["target"].str.len_chars().sum())


def _matrix_product_rate() -> float:
    """Floating-point operations a second of this machine's float32 matrix product, all cores together."""
    import numpy as np

    matrix = np.ones((1024, 1024), dtype=np.float32)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(4):
        matrix @ matrix
    return 4 * 2 * 1024**3 / (time.perf_counter() - started)
