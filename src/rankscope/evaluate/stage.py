"""The evaluation stage: from a model and a task's prompts to one row an item, a folder and a record each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl
from transformers import PreTrainedModel

from rankscope.data.examples import Item, items_from_frame
from rankscope.data.tokens import Tokenizer
from rankscope.models.methods.pack import TrainablePack
from rankscope.plan import VALIDATION, Pack, Plan, validation_task
from rankscope.provenance import peak_memory_bytes, provenance
from rankscope.records import EvaluateRecord
from rankscope.runs import BaseSettings, RunSettings
from rankscope.scoring.likelihoods import OptionTrees
from rankscope.scoring.tasks import ScoredTask, score_task, score_together
from rankscope.store import ITEMS, PROMPTS, Store, write_parquet, write_record


@runtime_checkable  # the tests check types at run time
class Models(Protocol):
    """What this stage needs of the process's models."""

    def base(self, settings: BaseSettings) -> PreTrainedModel:
        """The base itself."""

    def tuned(self, run: RunSettings) -> AbstractContextManager[PreTrainedModel]:
        """A trained run's model; the base may be changed while it is in use."""

    def tuned_together(self, runs: tuple[RunSettings, ...]) -> AbstractContextManager[TrainablePack]:
        """Trained runs that share one base and its forward passes."""

    def tokenizer(self, settings: BaseSettings) -> Tokenizer:
        """The base's tokenizer."""


@runtime_checkable  # the tests check types at run time
class Watcher(Protocol):
    """Who may ask the stage to stop."""

    def wants_stop(self) -> bool:
        """The stage is to return; what has no record is done next time."""


def run(pack: Pack, plan: Plan, store: Store, models: Models, watcher: Watcher) -> None:
    """Score the tasks of a pack that have no complete record yet: of its runs, or of the base where it has none.

    Several runs generate side by side. All else is scored run by run, with the run's update in the base's weights.
    """
    stage = _Stage(pack.base, plan, store, models)
    if len(pack.run_ids) > 1 and all(plan.run(run_id).packs for run_id in pack.run_ids):
        stage.generate_together(pack, watcher)
    trees = None
    for run_id in pack.run_ids or (None,):
        names = [name for name in pack.names if not stage.is_done(run_id, name)]
        if not names:
            continue
        own_rows = plan.run(run_id).arm.capabilities.own_rows if run_id is not None else None
        with stage.model(run_id) as model:
            for name in names:
                if watcher.wants_stop():
                    return
                if own_rows:
                    stage.score(model, run_id, name, OptionTrees(own_rows))
                else:
                    trees = stage.score(model, run_id, name, trees)


@dataclass(frozen=True)
class _Stage:
    base: str
    plan: Plan
    store: Store
    models: Models

    def folder(self, run_id: str | None, name: str) -> Path:
        """Where a model's scores of a task lie."""
        return self.store.base_task(self.base, name) if run_id is None else self.store.task(run_id, name)

    def is_done(self, run_id: str | None, name: str) -> bool:
        """Whether the scores are there, and of the model and items that the plan means."""
        record = self.store.read_evaluate(self.folder(run_id, name))
        expected = self.plan.evaluation_hash(self.base, run_id, name)
        return record is not None and record.status == "complete" and record.settings_hash == expected

    @contextmanager
    def model(self, run_id: str | None) -> Iterator[PreTrainedModel]:
        """The run's model, or the base."""
        if run_id is None:
            yield self.models.base(self.plan.bases[self.base])
        else:
            with self.models.tuned(self.plan.run(run_id)) as model:
                yield model

    def generate_together(self, pack: Pack, watcher: Watcher) -> None:
        """Score the tasks of a pack of runs whose answers are generated."""
        names = [name for name in pack.names if self.plan.task(self.base, pack.run_ids[0], name).is_generated]
        left = {name: [i for i, run_id in enumerate(pack.run_ids) if not self.is_done(run_id, name)] for name in names}
        if not any(len(members) > 1 for members in left.values()):
            return
        tokenizer = self.models.tokenizer(self.plan.bases[self.base])
        with self.models.tuned_together(tuple(self.plan.run(run_id) for run_id in pack.run_ids)) as tuned:
            for name, members in left.items():
                if watcher.wants_stop():
                    return
                if not members:
                    continue
                started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
                settings, items = self.plan.task(self.base, pack.run_ids[0], name), self._items(pack.run_ids[0], name)
                scores = score_together(tuned, members, tokenizer, items, settings, self.plan.max_tokens_per_batch)
                seconds = (time.perf_counter() - started) / len(members)
                for member, scored in zip(members, scores, strict=True):
                    self._write(scored, pack.run_ids[member], name, started_at, seconds)

    def score(
        self, model: PreTrainedModel, run_id: str | None, name: str, trees: OptionTrees | None
    ) -> OptionTrees | None:
        """Score one task and write its items, then its record; returns what is known of option trees by now."""
        started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
        settings = self.plan.task(self.base, run_id, name)
        tokenizer = self.models.tokenizer(self.plan.bases[self.base])
        scored = score_task(
            model, tokenizer, self._items(run_id, name), settings, self.plan.max_tokens_per_batch, trees
        )
        self._write(scored, run_id, name, started_at, time.perf_counter() - started)
        return scored.trees

    def _write(self, scored: ScoredTask, run_id: str | None, name: str, started_at: str, seconds: float) -> None:
        """The items, then the record."""
        folder, settings = self.folder(run_id, name), self.plan.task(self.base, run_id, name)
        write_parquet(folder / ITEMS, scored.items)
        record = EvaluateRecord(
            status="complete",
            settings_hash=self.plan.evaluation_hash(self.base, run_id, name),
            provenance=provenance(),
            started_at=started_at,
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
            subject=self.plan.subject(self.base, run_id),
            task=name,
            data=settings.data,
            scoring=settings.scoring,
            num_items=len(scored.items),
            num_truncated=scored.num_truncated,
            num_unfinished=scored.num_unfinished,
            scored_by=scored.scored_by,
            note=scored.note,
            values=scored.values,
            lm_eval=scored.lm_eval,
        )
        # prompts.parquet lies beside the base's items, written before by whoever made the plan.
        write_record(folder, record, (ITEMS, PROMPTS) if run_id is None else (ITEMS,))

    def _items(self, run_id: str | None, name: str) -> list[Item]:
        """The task's items as every model of the base is scored on them."""
        if run_id is not None and name.startswith(VALIDATION):
            name = validation_task(self.plan.run(run_id).training_set.name)
        return items_from_frame(pl.read_parquet(self.store.base_task(self.base, name) / PROMPTS))
