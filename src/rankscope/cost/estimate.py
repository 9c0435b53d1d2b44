"""The cost of a whole study: its pieces of work, laid out on the devices that it has."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from rankscope.cost.devices import Device, gpu_name, named_device, this_processor
from rankscope.cost.disk import disk_bytes
from rankscope.cost.loads import Loads
from rankscope.cost.memory import host_bytes, scoring_bytes, training_bytes
from rankscope.cost.model_shapes import ModelShape
from rankscope.cost.pieces import (
    Piece,
    adapted,
    analyse_piece,
    decomposition_seconds,
    evaluate_piece,
    shape_seconds,
    train_piece,
)
from rankscope.expansion import derived_points, expand_arms
from rankscope.plan import PIECE_STAGES, VALIDATION, Estimate, Layout, halved_search, piece_key, validation_task
from rankscope.records import Analysis
from rankscope.runs import OF_WEIGHTS, DerivedPoint, RunSettings
from rankscope.spec import Study

# Seconds of a processor: Python with torch and its like once a worker, the data once, verdicts, the report and its
# figures (docs/log.md).
START_SECONDS, PLAN_SECONDS, DECIDE_SECONDS = 9.0, 2.5, 1.0
REPORT_SECONDS, REPORT_SECONDS_PER_ARM = 4.0, 0.5
_SIZES = ("memory_bytes", "memory_bytes_by_arm", "host_memory_bytes", "disk_bytes", "disk_bytes_by_use")


@dataclass(frozen=True)
class Outline:
    """What the cost of a study is computed from.

    Attributes:
        runs: All candidates with all seeds.
        loads: By base.
        shapes: By base.
        is_estimate: Some token counts are estimates, since a tokenizer or data is not on this machine.
    """

    study: Study
    runs: Sequence[RunSettings]
    loads: Mapping[str, Loads]
    shapes: Mapping[str, ModelShape]
    layout: Layout
    is_estimate: bool = False

    def split(self) -> tuple[list[RunSettings], list[RunSettings]]:
        """The runs of the search, and one rate of each arm on the other seeds: which one it will be is not known."""
        search = set(self.study.seeds[: self.study.search.seeds])
        candidates, later, seen = [], [], set()
        grids = {settings.label: arm.learning_rate for settings, arm in expand_arms(self.study)}
        for run in self.runs:
            if run.learning_rate not in grids[run.arm.label]:
                continue  # whether a search will go beyond its grid is not known
            key = (*run.arm_key, run.seed)
            if run.seed in search:
                candidates.append(run)
            elif key not in seen:
                later.append(run)
            seen.add(key)
        return candidates, later


def find_device(layout: Layout, dtype: str) -> Device:
    """The device of a layout: this machine's processor, its GPU where the table has it, or else a middling one."""
    if layout.device == "cpu":
        return this_processor(layout.threads_per_worker, dtype)
    return named_device(gpu_name(layout.gpu or ""), dtype)


def estimate(outline: Outline, device: Device, factors: Mapping[str, float] | None = None) -> Estimate:
    """The cost of a study in which every arm's rate is found; a forecast, and named so wherever it is shown.

    Args:
        outline: The study.
        device: What it runs on.
        factors: Measured over forecast seconds, of `full` and `adapter` training and of `evaluate`; 1 where not given.
    """
    pieces = all_pieces(outline, device)
    if factors:
        is_model = {run.arm.label: run.arm.capabilities.saves == "model" for run in outline.runs}
        full = {piece_key("train", run.base.name, run, "") for run in outline.runs if is_model[run.arm.label]}
        pieces = {key: _scaled(piece, key, key in full, factors) for key, piece in pieces.items()}
    candidates, later = outline.split()
    waves = [_search_keys(outline, candidates), Counter(_later_keys(outline, candidates, later))]
    totals = _totals(pieces, waves[0] + waves[1])
    workers = outline.layout.num_workers
    fixed = _fixed_seconds(outline, device)
    seconds = sum(_makespan(pieces, wave, workers) for wave in waves) + sum(fixed.values())
    disk = disk_bytes(outline.study, candidates, later, dict(outline.loads), dict(outline.shapes), workers)
    by_arm, scoring = _memory(outline, device)
    return Estimate(
        trained_tokens=int(totals["train"].tokens),
        scored_tokens=int(totals["evaluate"].tokens),
        arithmetic=sum(total.arithmetic for total in totals.values()),
        seconds=seconds,
        seconds_by_stage={stage: total.seconds for stage, total in totals.items()} | fixed,
        seconds_by_piece={key: piece.seconds for key, piece in pieces.items()},
        memory_bytes=max(scoring, *by_arm.values()),
        memory_bytes_by_arm=by_arm | {"scoring": scoring},
        disk_bytes=sum(disk.values()),
        disk_bytes_by_use=disk,
        device=device.name,
        device_memory_bytes=device.memory_bytes,
        host_memory_bytes=_host_memory(outline) if device.memory_bytes is not None else None,
        is_estimate=outline.is_estimate,
    )


def all_pieces(outline: Outline, device: Device) -> dict[str, Piece]:
    """Every kind of piece of work by its key (see `plan.piece_key`); runs that differ in seed or rate share one."""
    pieces: dict[str, Piece] = {}
    max_tokens = outline.study.execute.max_tokens_per_batch
    for run in outline.runs:
        base, training_set = run.base.name, run.training_set.name
        shape, loads = outline.shapes[base], outline.loads[base]
        key = piece_key("train", base, run, "")
        if key in pieces:
            continue
        pieces[key] = train_piece(run, loads.training[training_set], shape, device, outline.study.execute)
        part = adapted(run.arm, shape)
        # A model that was trained whole is read from disk, and the base afterwards; both are spread over the tasks.
        opened = 2 * shape_seconds(shape) / len(loads.tasks) if part.is_full else 0.0
        tasks = loads.tasks | {VALIDATION: loads.validation[training_set]}
        in_trees = run.arm.capabilities.own_rows is None
        for name, task in tasks.items():
            key, load = piece_key("evaluate", base, run, name), loads.scored(task, in_trees=in_trees)
            pieces[key] = evaluate_piece(load, shape, device, max_tokens, part).longer_by(opened)
        for name in _analyses(outline.study):
            pieces[piece_key("analyse", base, run, name)] = analyse_piece(
                name, loads.probe_lengths, shape, device, part
            )
        for point in _points(outline, run):
            scored = (
                evaluate_piece(loads.scored(loads.tasks[name], in_trees=in_trees), shape, device, max_tokens, part)
                for name in _derive_tasks(outline.study, training_set)
            )
            whole = functools.reduce(Piece.__add__, scored).longer_by(2 * opened * len(loads.tasks))
            pieces[piece_key("derive", base, run, point.name)] = whole
    for base, loads in outline.loads.items():
        validation = {validation_task(name): task for name, task in loads.validation.items()}
        for name, task in (loads.tasks | validation).items():
            pieces[piece_key("evaluate", base, None, name)] = evaluate_piece(
                loads.scored(task), outline.shapes[base], device, max_tokens
            )
        for name in _base_analyses(outline.study):
            piece = analyse_piece(name, loads.probe_lengths, outline.shapes[base], device, None)
            pieces[piece_key("analyse", base, None, name)] = piece
    return pieces


def _scaled(piece: Piece, key: str, is_full: bool, factors: Mapping[str, float]) -> Piece:
    stage = key.partition("/")[0]
    kind = stage if stage != "train" else "full" if is_full else "adapter"
    return replace(piece, seconds=piece.seconds * factors.get(kind, 1.0))


def _search_keys(outline: Outline, candidates: Sequence[RunSettings]) -> Counter[str]:
    """What is done before every rate is known, and how often: the search, and the base meanwhile.

    Of a search by halving the runs count by the share of their steps that it trains, and of them that it scores.
    """
    rates: dict[str, set[float]] = {}
    for run in candidates:
        rates.setdefault(run.arm.label, set()).add(run.learning_rate)
    counts: Counter[str] = Counter()
    for run in candidates:
        number, trained, scored = len(rates[run.arm.label]), 1.0, 1.0
        if outline.study.search.halving:
            steps, whole = halved_search(number, run.num_steps)
            trained, scored = steps / (number * run.num_steps), whole / number
        counts[piece_key("train", run.base.name, run, "")] += trained
        counts[piece_key("evaluate", run.base.name, run, VALIDATION)] += scored
    keys = []
    for base, loads in outline.loads.items():
        names = [*loads.tasks, *(validation_task(name) for name in loads.validation)]
        keys += [piece_key("evaluate", base, None, name) for name in names]
        keys += [piece_key("analyse", base, None, name) for name in _base_analyses(outline.study)]
    return counts + Counter(keys)


def _later_keys(outline: Outline, candidates: Sequence[RunSettings], later: Sequence[RunSettings]) -> list[str]:
    """What is done at the chosen rates: the other seeds, and every task and analysis."""
    keys = [piece_key("train", run.base.name, run, "") for run in later]
    chosen = {(*run.arm_key, run.seed): run for run in (*candidates, *later)}
    for run in chosen.values():
        keys += [piece_key("derive", run.base.name, run, point.name) for point in _points(outline, run)]
    is_all = outline.study.search.evaluate == "all"
    for run in (*candidates, *later) if is_all else chosen.values():
        base = run.base.name
        keys += [piece_key("evaluate", base, run, name) for name in outline.loads[base].tasks]
        keys += [piece_key("analyse", base, run, name) for name in _analyses(outline.study)]
    return keys


def _analyses(study: Study) -> list[str]:
    return [name for name in get_args(Analysis) if getattr(study.analyse, name)]  # keys are named like analyses


def _points(outline: Outline, run: RunSettings) -> tuple[DerivedPoint, ...]:
    arms = list({other.arm.label: other.arm for other in outline.runs}.values())
    return derived_points(outline.study, run.arm, arms)


def _derive_tasks(study: Study, training_set: str) -> list[str]:
    """What derived models are scored on, as `Plan.derive_tasks` has it."""
    return [name for name, task in study.evaluate.items() if task.role or training_set in task.in_domain_for]


def _base_analyses(study: Study) -> list[str]:
    return [name for name in _analyses(study) if name not in OF_WEIGHTS]


def _totals(pieces: Mapping[str, Piece], keys: Mapping[str, int]) -> dict[str, Piece]:
    totals = {}
    for stage in PIECE_STAGES:
        chosen = [(pieces[key], number) for key, number in keys.items() if key.startswith(f"{stage}/")]
        totals[stage] = Piece(
            sum(piece.tokens * number for piece, number in chosen),
            sum(piece.arithmetic * number for piece, number in chosen),
            sum(piece.seconds * number for piece, number in chosen),
        )
    return totals


def _makespan(pieces: Mapping[str, Piece], keys: Mapping[str, int], num_workers: int) -> float:
    """How long a wave takes with the longest pieces first: an even share, and half of the longest at its end."""
    total = sum(pieces[key].seconds * number for key, number in keys.items())
    longest = max((pieces[key].seconds for key in keys), default=0.0)
    even = total / num_workers
    return even if num_workers == 1 else max(longest, even + longest * (num_workers - 1) / (2 * num_workers))


def in_layout(found: Estimate, outline: Outline, layout: Layout) -> Estimate:
    """A study's cost in another layout than its outline's: time by what both did when they were tried, sizes anew."""
    anew = estimate(replace(outline, layout=layout), find_device(layout, outline.study.optimization.dtype))
    return found.in_layout(outline.layout, layout).model_copy(update={name: getattr(anew, name) for name in _SIZES})


def _fixed_seconds(outline: Outline, device: Device) -> dict[str, float]:
    """What is there once, whatever the study."""
    arms = len({run.arm.label for run in outline.runs}) * len(outline.study.train) * len(outline.shapes)
    largest = max((shape_seconds(shape) for shape in outline.shapes.values()), default=0.0)
    decompositions = {"decompositions": sum(decomposition_seconds(shape, device) for shape in outline.shapes.values())}
    return {
        **(decompositions if outline.study.analyse.subspaces else {}),
        "start": START_SECONDS + PLAN_SECONDS + largest,
        "decide": DECIDE_SECONDS,
        "report": REPORT_SECONDS + REPORT_SECONDS_PER_ARM * arms,
    }


def _memory(outline: Outline, device: Device) -> tuple[dict[str, int], int]:
    """The most memory of one process, by arm while it trains (over bases and training sets), and while scoring."""
    on_gpu, max_tokens = device.memory_bytes is not None, outline.study.execute.max_tokens_per_batch
    by_arm: dict[str, int] = {}
    for run in _kinds(outline):
        load, shape = outline.loads[run.base.name].training[run.training_set.name], outline.shapes[run.base.name]
        needed = training_bytes(
            run, load, shape, outline.study.execute, on_gpu=on_gpu, together=_together(outline, run)
        )
        by_arm[run.arm.label] = max(by_arm.get(run.arm.label, 0), needed)
    reads_full = any(run.arm.capabilities.saves == "model" for run in outline.runs)
    scoring = max(
        scoring_bytes(
            loads, outline.shapes[base], outline.study.optimization, max_tokens, on_gpu=on_gpu, reads_full=reads_full
        )
        for base, loads in outline.loads.items()
    )
    return by_arm, scoring


def _together(outline: Outline, run: RunSettings) -> int:
    """The most runs that share this one's base and forward pass."""
    of_data = (run.base.name, run.training_set.name)
    number = sum(other.packs and (other.base.name, other.training_set.name) == of_data for other in outline.runs)
    return min(outline.layout.pack_size, number) if run.packs else 1


def _host_memory(outline: Outline) -> int:
    """The most memory of its machine that one worker on GPUs takes, over the kinds of runs."""
    execute = outline.study.execute
    return max(host_bytes(run, outline.shapes[run.base.name], execute) for run in _kinds(outline))


def _kinds(outline: Outline) -> list[RunSettings]:
    """One run of each kind that needs memory of its own: rate and seed change nothing."""
    return list({run.arm_key: run for run in outline.runs}.values())
