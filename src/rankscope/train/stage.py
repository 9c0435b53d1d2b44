"""The training stage: runs of a pack from their examples to saved weights and a record each."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

import polars as pl
import torch

from rankscope.data.examples import TokenisedExample, examples_from_frame
from rankscope.data.order import batches
from rankscope.models.methods.pack import ADAPTER, MODEL, TrainablePack
from rankscope.plan import Pack, Plan
from rankscope.provenance import peak_memory_bytes, provenance
from rankscope.records import UNFINISHED, Status, TrainRecord
from rankscope.runs import RunSettings
from rankscope.store import CHECKPOINT, EXAMPLES, STEPS, Store, write_parquet, write_record, write_text
from rankscope.train.batches import num_scored
from rankscope.train.checkpoint import read_checkpoint, write_checkpoint
from rankscope.train.loop import RunState, StepLog, start_run, train

_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


@runtime_checkable  # the tests check types at run time
class Models(Protocol):
    """What this stage needs of the process's models."""

    def trainable(self, runs: tuple[RunSettings, ...]) -> AbstractContextManager[TrainablePack]:
        """Runs of one base and method, ready to be trained together."""


@runtime_checkable  # the tests check types at run time
class Watcher(Protocol):
    """Who is told how far a run is, and who may ask the stage to stop."""

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        """A run has made some of its steps."""

    def wants_stop(self) -> bool:
        """The stage is to checkpoint and return."""


def run(pack: Pack, plan: Plan, store: Store, models: Models, watcher: Watcher) -> None:
    """Train the runs of a pack that have no complete record yet, or only as far as the pack says.

    A stopped run leaves a checkpoint and a record that says `interrupted`; the next call goes on from there. One that
    has come as far as a round of the search asks leaves its weights too, and a record that says `paused`.
    Of processes that hold a model in parts all call this; the first reports and writes.
    """
    until = int(pack.names[0]) if pack.names else None
    runs = tuple(settings for name in pack.run_ids if not _is_finished(store, settings := plan.run(name), until))
    if not runs:
        return
    started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
    with models.trainable(runs) as trainable:
        states = [_start(store, trainable, index, until) for index in range(len(runs))]
        observer = _Observer(store, trainable, watcher, plan.checkpoint_seconds, started)
        is_saving = plan.gradient_checkpointing
        train(trainable, states, plan.max_tokens_per_batch, observer, gradient_checkpointing=is_saving)
        for state in states:
            observer.close(state)
            _finish(store, trainable, state, started_at, observer.seconds(state))


def _is_finished(store: Store, settings: RunSettings, until: int | None) -> bool:
    record = store.read_train(settings.run_id)
    if record is None or record.weights_deleted:
        return False
    is_there = record.status == "paused" and until is not None and record.num_steps >= until
    return is_there or record.status in {"complete", "diverged"}


def _start(store: Store, pack: TrainablePack, index: int, until: int | None) -> RunState:
    """Write what the run is about to do, then bring it to its last checkpoint, if any."""
    settings = pack.runs[index]
    data = pl.read_parquet(store.training_data(settings.base.name, settings.training_set.name) / EXAMPLES)
    examples = examples_from_frame(data.filter(pl.col("split") == "train"))
    validation = examples_from_frame(data.filter(pl.col("split") == "validation"))
    order = batches(len(examples), settings.optimization.batch_size, settings.num_steps, settings.seed)
    state = start_run(pack, index, examples, validation, order)
    state.stop_at = until or settings.num_steps
    if pack.group.is_first:
        _write_start(store, state)
    read_checkpoint(store.train(settings.run_id) / CHECKPOINT, pack, state)
    if pack.group.is_first:
        write_text(store.train(settings.run_id) / STEPS, "".join(_line(log) for log in state.logs))
    return state


def _write_start(store: Store, state: RunState) -> None:
    """Put away what an earlier call left of the run's weights, and write what it is about to do."""
    settings = state.run
    record = store.read_train(settings.run_id)
    if record is not None and record.status == "paused":
        # The record first: it vouches for weights that are about to go.
        write_record(store.train(settings.run_id), record.model_copy(update={"status": "interrupted", "files": {}}))
    for name in (ADAPTER, MODEL):
        shutil.rmtree(store.train(settings.run_id) / name, ignore_errors=True)  # what was half saved, or is damaged
    write_text(store.run(settings.run_id) / "run.json", settings.model_dump_json(indent=1) + "\n")
    write_parquet(store.run(settings.run_id) / "order.parquet", _order_frame(state.examples, state.order))


def _order_frame(examples: Sequence[TokenisedExample], order: Sequence[Sequence[int]]) -> pl.DataFrame:
    rows = [(step + 1, examples[index].example_id) for step, batch in enumerate(order) for index in batch]
    return pl.DataFrame(rows, schema={"step": pl.Int32, "example_id": pl.String}, orient="row")


def _line(log: StepLog) -> str:
    # JSON has no word for what is not finite: it is written as text, as in records.
    values = {name: _NOT_FINITE.get(str(value), value) for name, value in asdict(log).items()}
    return json.dumps(values, allow_nan=False) + "\n"


class _Observer:
    """Writes steps.jsonl and checkpoints while the loop runs; of several processes the first."""

    def __init__(
        self, store: Store, pack: TrainablePack, watcher: Watcher, checkpoint_seconds: float, started: float
    ) -> None:
        self._store = store
        self._pack = pack
        self._watcher = watcher
        self._checkpoint_seconds = checkpoint_seconds
        self._started = started
        self._written = dict.fromkeys(range(len(pack.runs)), time.monotonic())
        self._streams = {
            index: (store.train(settings.run_id) / STEPS).open("a", encoding="utf-8")
            for index, settings in enumerate(pack.runs)
            if pack.group.is_first
        }

    def after_step(self, state: RunState) -> None:
        log = state.logs[-1]
        if (stream := self._streams.get(state.index)) is not None:
            stream.write(_line(log))
            stream.flush()
        self._watcher.progress(state.run.run_id, state.step, state.run.num_steps, log.loss_nats_per_token)
        is_due = time.monotonic() - self._written[state.index] > self._checkpoint_seconds
        if not state.is_done and self._pack.group.agree(is_due):
            folder = self._store.train(state.run.run_id) / CHECKPOINT
            write_checkpoint(folder, self._pack, state, self.seconds(state))
            self._written[state.index] = time.monotonic()

    def wants_stop(self) -> bool:
        return self._watcher.wants_stop()

    def seconds(self, state: RunState) -> float:
        """What a run has taken: its equal part of this call, and what came before its checkpoint."""
        return state.earlier_seconds + (time.perf_counter() - self._started) / len(self._pack.runs)

    def close(self, state: RunState) -> None:
        if (stream := self._streams.get(state.index)) is not None:
            stream.close()


def _finish(store: Store, pack: TrainablePack, state: RunState, started_at: str, seconds: float) -> None:
    """Save what the run has become, and say so in its record, last of all."""
    folder = store.train(state.run.run_id)
    status: Status = "complete"
    files = [STEPS]
    if state.diverged_at_step is not None:
        status = "diverged"
    elif not state.is_done:
        status = "interrupted"
        write_checkpoint(folder / CHECKPOINT, pack, state, seconds)
    else:
        if state.step < state.run.num_steps:
            status = "paused"
            write_checkpoint(folder / CHECKPOINT, pack, state, seconds)
        files += pack.save(state.index, folder)
    record = _record(pack, state, status, started_at, seconds)
    if not pack.group.is_first:
        return
    write_record(folder, record, files)
    if status not in UNFINISHED:
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)


def _record(pack: TrainablePack, state: RunState, status: Status, started_at: str, seconds: float) -> TrainRecord:
    scored = [sum(num_scored(state.examples[i]) for i in batch) for batch in state.order[: state.step]]
    return TrainRecord(
        status=status,
        settings_hash=state.run.settings_hash,
        provenance=provenance() | _machine(pack),
        started_at=started_at,
        seconds=seconds,
        peak_memory_bytes=pack.group.most(_peak_memory(pack)),
        run=state.run,
        pack=tuple(run.run_id for run in pack.runs) if len(pack.runs) > 1 else (),
        num_trainable=sum(p.numel() for group in pack.parameter_groups(state.index) for p in group["params"]),
        num_parameters=pack.num_base_parameters,
        num_steps=state.step,
        num_tokens=sum(log.num_tokens for log in state.logs),
        num_scored_tokens=sum(scored),
        final_loss_nats_per_token=state.logs[-1].loss_nats_per_token if state.logs else None,
        validations=tuple(state.validations),
        diverged_at_step=state.diverged_at_step,
        divergence=state.divergence,
        memory_shortages=tuple(state.shortages),
    )


def _machine(pack: TrainablePack) -> dict[str, str | int]:
    """What the numbers' last digits depend on."""
    device = pack.group.device or pack.model.device
    shard = {"shard": pack.group.size} if pack.group.device is not None else {}
    return {"device": str(device), "num_threads": torch.get_num_threads(), **shard}


def _peak_memory(pack: TrainablePack) -> int:
    """The most memory so far: the device's where there is one, else the process's."""
    device = pack.group.device or pack.model.device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
