"""The disk that a study takes: the most while it runs, most of it weights."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.cost.loads import Loads
from rankscope.cost.model_shapes import ModelShape
from rankscope.cost.pieces import adapted
from rankscope.runs import RunSettings
from rankscope.spec import Study

# Bytes that everything else takes, read off finished studies: a record with its folder, an item, a step, the report.
_RECORD, _ITEM, _STEP, _REPORT = 12_000, 40, 150, 3_000_000
_REPORT_PER_ARM = 200_000


def disk_bytes(
    study: Study,
    candidates: Sequence[RunSettings],
    later: Sequence[RunSettings],
    loads: dict[str, Loads],
    shapes: dict[str, ModelShape],
    num_workers: int,
) -> dict[str, int]:
    """By what takes it: `weights`, `unchosen`, `checkpoints`, `caches`, `records`; their sum is the most at one time.

    Args:
        study: The study.
        candidates: The runs of the search.
        later: The runs of the other seeds.
        loads: By base.
        shapes: By base.
        num_workers: Each may have a run in training, with its last two checkpoints.
    """
    width = 8 if study.optimization.dtype == "float64" else 4
    arms = {(run.base.name, run.arm.label): run.arm for run in (*candidates, *later)}
    trained = {key: adapted(arm, shapes[key[0]]).num_trainable for key, arm in arms.items()}
    sizes = {run.run_id: width * trained[run.base.name, run.arm.label] for run in (*candidates, *later)}
    kept, unchosen = 0, 0
    seen: set[tuple[str, str, str, int]] = set()
    for run in (*candidates, *later):
        key = (*run.arm_key, run.seed)
        is_unchosen = key in seen and run.arm.capabilities.saves == "model" and study.keep != "all"
        unchosen += sizes[run.run_id] if is_unchosen else 0
        kept += 0 if is_unchosen else sizes[run.run_id]
        seen.add(key)
    if study.keep == "records":
        kept, unchosen = 0, kept + unchosen  # they are deleted after the verdict
    # A checkpoint has the weights and two values of AdamW's for each.
    checkpoints = sum(sorted((2 * 3 * size for size in sizes.values()), reverse=True)[:num_workers])
    return {
        "weights": kept,
        "unchosen": unchosen,
        "checkpoints": checkpoints,
        "caches": sum(_caches(study, loads[name], shape) for name, shape in shapes.items()),
        "records": _records(study, len(candidates), len(later), loads),
    }


def _caches(study: Study, loads: Loads, shape: ModelShape) -> int:
    """What is kept of the base for its runs to be compared with, and its decompositions, shared by studies."""
    visible = sum(length * (length + 1) // 2 for length in loads.probe_lengths)
    patterns = 4 * visible * shape.num_heads * shape.num_layers
    streams = 4 * sum(loads.probe_lengths) * shape.d_model * shape.num_layers
    decompositions = sum(4 * min(pair) * sum(pair) for pair in shape.matrices)
    analyse = study.analyse
    return analyse.attention * patterns + 2 * analyse.representations * streams + analyse.subspaces * decompositions


def _records(study: Study, num_candidates: int, num_later: int, loads: dict[str, Loads]) -> int:
    num_tasks, num_runs = len(study.evaluate), num_candidates + num_later
    chosen = num_runs - num_candidates * (1 - 1 / max(1, _rates(study)))
    records = num_runs + num_candidates + chosen * (num_tasks + 2) + len(loads) * (num_tasks + len(study.train))
    items = max(sum(task.num_items for task in load.tasks.values()) for load in loads.values())
    examples = sum(training.num_examples for load in loads.values() for training in load.training.values())
    steps = 200 * num_runs
    whole = _RECORD * records + _ITEM * items * chosen + 300 * items + 400 * examples + _STEP * steps
    return int(whole) + _REPORT + _REPORT_PER_ARM * len(study.arms) * len(study.train) * len(study.model)


def _rates(study: Study) -> float:
    return sum(len(arm.learning_rate) for arm in study.arms) / len(study.arms)
