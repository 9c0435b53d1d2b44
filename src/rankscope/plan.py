"""What a study will do, known before a model is loaded: runs, tasks, data, layout, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Literal

from pydantic import Field

from rankscope.data.contamination import Overlap
from rankscope.data.summaries import DataSummary
from rankscope.records import FORMAT_VERSION, Analysis, Frozen, Subject
from rankscope.runs import (
    BaseSettings,
    DerivedPoint,
    RunSettings,
    TaskSettings,
    analysis_hash,
    derive_hash,
    evaluation_hash,
)

UNREAD = "unread"  # in the place of a hash of what is not on this machine
MIN_HALVED = 3  # rates; halving two would save a fifth
# Shares of a run's steps after which halving compares rates. A quarter and a half chose worse (docs/log.md).
EARLY_ROUND, LAST_ROUND = 0.15, 0.7
PIECE_STAGES = ("train", "evaluate", "analyse", "derive")  # what workers do, piece by piece
VALIDATION = "validation"  # the folder of a run's scores on its training set's validation items


def validation_task(training_set: str) -> str:
    """The name of the folder with the base's scores on a training set's validation items."""
    return f"{VALIDATION}-{training_set}"


def round_steps(num_rates: int, num_steps: int) -> tuple[int, ...]:
    """After which steps a search by halving compares an arm's rates; empty where it trains all of them in full.

    The last two rates are told apart late, where most of the schedule is behind them; those before early, for little.
    Four rates cost half of what they would in full.
    """
    if num_rates < MIN_HALVED:
        return ()
    num_early = math.ceil(math.log2(num_rates)) - 1
    shares = [*(EARLY_ROUND / 2**count for count in reversed(range(num_early))), LAST_ROUND]
    steps = [max(1, int(share * num_steps)) for share in shares]
    return tuple(dict.fromkeys(step for step in steps if step < num_steps))


def halved_search(num_rates: int, num_steps: int) -> tuple[int, int]:
    """How many steps a search by halving trains in all, and how many of the rates it trains to their end."""
    steps, alive, done = 0, num_rates, 0
    for step in round_steps(num_rates, num_steps):
        steps += alive * (step - done)
        alive, done = math.ceil(alive / 2), step
    return steps + alive * (num_steps - done), alive


class Trial(Frozen):
    """How fast one way of dividing the machine trained for some seconds: optimizer steps of runs, all runs together."""

    num_workers: int
    threads_per_worker: int
    pack_size: int
    steps_per_second: float


def pack_words(size: int) -> str:
    """How many runs share a forward, to stand behind what else is said of a layout; empty where each goes alone."""
    return f", LoRA runs in packs of up to {size}" if size > 1 else ""


class Layout(Frozen):
    """Where work runs; replayed from plan.json, so that a study repeats bit for bit.

    Attributes:
        pack_size: The most runs that are trained in one forward and backward over one copy of the base.
        gpu: The model of the GPU, as its driver names it.
        trials: What was measured to choose it; empty where it follows from the model's size or the study file.
        shard: Devices that full fine-tuning divides a model among; each worker has so many.
        cpu_offload: What full fine-tuning keeps of a model lies in the host's memory.
    """

    device: str
    num_workers: int
    threads_per_worker: int
    pack_size: int = 1
    gpu: str | None = None
    trials: tuple[Trial, ...] = ()
    shard: int = 1
    cpu_offload: bool = False

    @property
    def is_sharded(self) -> bool:
        """Full fine-tuning takes its model apart."""
        return self.shard > 1 or self.cpu_offload

    @property
    def pack_words(self) -> str:
        """How many runs share a forward at the most, in words."""
        return pack_words(self.pack_size)

    def tried_speed(self, trials: Sequence[Trial]) -> float | None:
        """The steps a second that trials of this division of the machine made; None where none did."""
        mine = (self.num_workers, self.threads_per_worker, self.pack_size)
        speeds = (
            trial.steps_per_second
            for trial in trials
            if (trial.num_workers, trial.threads_per_worker, trial.pack_size) == mine
        )
        return next(speeds, None)


class Estimate(Frozen):
    """What the study will cost, before it starts; None where it cannot be said.

    Attributes:
        seconds: From start to report, with all workers of the layout.
        seconds_by_stage: Of one worker, all pieces of a stage added up; `start`, `decide` and `report` are there once.
        seconds_by_piece: Of one worker, by `piece_key`.
        memory_bytes: The most that one process (on a GPU: one device) holds.
        memory_bytes_by_arm: The same by arm while it trains, and `scoring`.
        disk_bytes: The most at one time.
        disk_bytes_by_use: `weights` that stay, `unchosen` ones that go, `checkpoints`, `caches`, `records`.
        device: What the times are of.
        device_memory_bytes: What one device has; None for a processor.
        host_memory_bytes: The most that one worker on GPUs, with all its processes, takes of its machine's own memory.
        is_estimate: Token counts are estimates too: a tokenizer or data is not on this machine.
    """

    trained_tokens: int
    scored_tokens: int
    arithmetic: float
    seconds: float | None
    seconds_by_stage: dict[str, float] = Field(default_factory=dict)
    seconds_by_piece: dict[str, float] = Field(default_factory=dict)
    memory_bytes: int | None
    memory_bytes_by_arm: dict[str, int] = Field(default_factory=dict)
    disk_bytes: int
    disk_bytes_by_use: dict[str, int] = Field(default_factory=dict)
    device: str = "cpu"
    device_memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    is_estimate: bool = False

    def in_layout(self, before: Layout, after: Layout) -> Estimate:
        """The same study in another layout, by what both did when they were tried; unchanged where one was not."""
        old, new = (layout.tried_speed(after.trials) for layout in (before, after))
        if old is None or new is None or self.seconds is None:
            return self
        # Of one worker, which has a part of the machine; what is done once, by one process, stays.
        longer = (old / before.num_workers) / (new / after.num_workers)
        stages = {
            stage: seconds * (longer if stage in PIECE_STAGES else 1.0)
            for stage, seconds in self.seconds_by_stage.items()
        }
        once = sum(seconds for stage, seconds in self.seconds_by_stage.items() if stage not in PIECE_STAGES)
        return self.model_copy(
            update={
                "seconds": once + (self.seconds - once) * old / new,
                "seconds_by_stage": stages,
                "seconds_by_piece": {key: longer * seconds for key, seconds in self.seconds_by_piece.items()},
            }
        )


def piece_key(stage: str, base: str, run: RunSettings | None, name: str) -> str:
    """The name under which an estimate keeps the cost of a piece of work: runs that differ in rate or seed share one.

    Args:
        stage: train, evaluate or analyse.
        base: The base.
        run: None for the base itself.
        name: The task or analysis; empty when training.
    """
    of_run = () if run is None else (run.training_set.name, run.arm.label)
    return "/".join((stage, base, *of_run, name))


class Grid(Frozen):
    """The learning rates of one arm.

    Attributes:
        rates: Those of the study file, lowest first.
        below, above: Those that may be added where the best lies at that edge, nearest first.
    """

    rates: tuple[float, ...]
    below: tuple[float, ...] = ()
    above: tuple[float, ...] = ()


class Plan(Frozen):
    """plan.json: everything that the stages and the report need to know of a study.

    Attributes:
        tasks: By base, the tasks of the study file in its order.
        validation: By base and then training set, the task on which its rates are chosen.
        relations: By training set and then task: in_domain, out_of_domain or retention.
        runs: All candidates with all seeds; which of the later seeds run is decided by rates.json.
        search_seeds: The seeds on which rates are chosen.
        grids: By arm, its learning rates.
        is_halving: Grids of three or more rates are searched in rounds.
        data: What was understood of every training set and task.
        overlaps: How much of every task is in every training set.
        derived: By arm, the derived models of each of its runs at the chosen rate.
        scores_all_candidates: Candidates that were not chosen are scored and analysed too, after the choice.
        probes_fingerprint: By base, a hash of the probe texts' tokens.
        today: The date that chat templates write, fixed once for the study; None: none was fixed.
    """

    format_version: int = FORMAT_VERSION
    study: str
    bases: dict[str, BaseSettings]
    arms: tuple[str, ...]
    tasks: dict[str, dict[str, TaskSettings]]
    validation: dict[str, dict[str, TaskSettings]]
    relations: dict[str, dict[str, Literal["in_domain", "out_of_domain", "retention"]]]
    runs: tuple[RunSettings, ...]
    search_seeds: tuple[int, ...]
    grids: dict[str, Grid] = Field(default_factory=dict)
    is_halving: bool = False
    layout: Layout
    dtype: str
    max_tokens_per_batch: int
    gradient_checkpointing: bool = False
    checkpoint_seconds: float
    probes_fingerprint: dict[str, str]
    analyses: tuple[Analysis, ...]
    estimate: Estimate
    derived: dict[str, tuple[DerivedPoint, ...]] = Field(default_factory=dict)
    scores_all_candidates: bool = False
    data: tuple[DataSummary, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    warnings: tuple[str, ...] = ()
    smallest_difference: dict[str, float] = Field(default_factory=dict)
    today: date | None = None

    def is_in_parts(self, pack: Pack) -> bool:
        """Whether all processes of a worker carry out a pack together: whole models are trained in it, in parts."""
        if pack.stage != "train" or not self.layout.is_sharded:
            return False
        return all(self.run(run_id).arm.capabilities.saves == "model" for run_id in pack.run_ids)

    def run(self, run_id: str) -> RunSettings:
        """The run of that name.

        Raises:
            KeyError: The plan has no such run.
        """
        return self._by_id[run_id]

    @property
    def is_mixed(self) -> bool:
        """Runs are trained in mixed precision: products in bfloat16, weights in float32."""
        return any(run.optimization.bf16 is True for run in self.runs)

    @property
    def num_runs(self) -> tuple[int, int]:
        """How many runs search for rates, and how many more are made at the chosen ones: one for each later seed."""
        arms = {run.arm_key for run in self.runs}
        num_seeds = len({run.seed for run in self.runs})
        first = sum(run.seed in self.search_seeds and not self.is_beyond(run) for run in self.runs)
        return first, len(arms) * (num_seeds - len(self.search_seeds))

    def subject(self, base: str, run_id: str | None) -> Subject:
        """Whom a record about a run (None: about the base itself) is about."""
        if run_id is None:
            return Subject(base=base)
        run = self.run(run_id)
        return Subject(
            base=base,
            training_set=run.training_set.name,
            arm=run.arm.label,
            learning_rate=run.learning_rate,
            seed=run.seed,
            run_id=run_id,
        )

    def evaluation_hash(self, base: str, run_id: str | None, task: str) -> str:
        """What the scores of a run (None: of the base) on a task depend on."""
        return evaluation_hash(self.task(base, run_id, task), self._model_hash(base, run_id))

    def analysis_hash(self, base: str, run_id: str | None, analysis: str) -> str:
        """What an analysis of a run (None: of the base) depends on."""
        return analysis_hash(analysis, self.probes_fingerprint[base], self._model_hash(base, run_id))

    def derive_tasks(self, run_id: str) -> list[str]:
        """What a run's derived models are scored on: its training set's domain, and what the base could do before."""
        run = self.run(run_id)
        relations = self.relations[run.training_set.name]
        return [name for name in self.tasks[run.base.name] if relations[name] in {"in_domain", "retention"}]

    def derived_point(self, run_id: str, name: str) -> DerivedPoint:
        """How a run's derived model of that name is made.

        Raises:
            KeyError: The plan has none of that name.
        """
        return {point.name: point for point in self.derived[self.run(run_id).arm.label]}[name]

    def derive_hash(self, run_id: str, name: str) -> str:
        """What a derived model's scores depend on."""
        run = self.run(run_id)
        tasks = [self.evaluation_hash(run.base.name, run_id, task) for task in self.derive_tasks(run_id)]
        return derive_hash(self.derived_point(run_id, name), run.settings_hash, tasks)

    def task(self, base: str, run_id: str | None, name: str) -> TaskSettings:
        """The settings of a task, or of the validation items that a run (or the base) is scored on.

        Raises:
            KeyError: The plan has no such task.
        """
        if run_id is not None and name == VALIDATION:
            return self.validation[base][self.run(run_id).training_set.name]
        if run_id is None and name.startswith(f"{VALIDATION}-"):
            return self.validation[base][name.removeprefix(f"{VALIDATION}-")]
        return self.tasks[base][name]

    def round_steps(self, run: RunSettings) -> tuple[int, ...]:
        """After which steps the search compares the run's arm's rates; empty where it trains all of them in full."""
        grid = self.grids.get(run.arm.label)
        return round_steps(len(grid.rates), run.num_steps) if self.is_halving and grid is not None else ()

    def is_beyond(self, run: RunSettings) -> bool:
        """Whether a run is at a rate beyond the study file's grid, which is trained only if a search asks for it."""
        grid = self.grids.get(run.arm.label)
        return grid is not None and run.learning_rate not in grid.rates

    @cached_property
    def _by_id(self) -> dict[str, RunSettings]:
        return {run.run_id: run for run in self.runs}

    def _model_hash(self, base: str, run_id: str | None) -> str:
        return self.bases[base].model_hash if run_id is None else self.run(run_id).settings_hash


@dataclass(frozen=True)
class Pack:
    """Work of one stage for runs that share a base, handed to one worker; no runs means the base itself.

    Attributes:
        names: The tasks to score, or the analyses to make; when training, the step to train to, or empty for all.
    """

    stage: Literal["train", "evaluate", "analyse", "derive"]
    base: str
    run_ids: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """A process's place among those that train one model together.

    Attributes:
        rank: From 0; the first decides and writes.
        size: How many there are.
        meeting: The file by which they find each other.
    """

    rank: int
    size: int
    meeting: str
