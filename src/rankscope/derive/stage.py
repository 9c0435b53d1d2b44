"""The derive stage: from trained weights to models made of them without training, scored on the run's own items."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import polars as pl
from transformers import PreTrainedModel

from rankscope.data.examples import items_from_frame
from rankscope.data.tokens import Tokenizer
from rankscope.data.user_cache import user_cache
from rankscope.derive.changes import Changed, changed_adapter, changed_update
from rankscope.errors import NotAvailable
from rankscope.models.decompositions import Decompositions
from rankscope.models.derived import replace_updates, write_lora
from rankscope.models.opening import read_config
from rankscope.models.weights import iter_updates, trained_folder
from rankscope.plan import Pack, Plan
from rankscope.provenance import peak_memory_bytes, provenance
from rankscope.records import NOT_AVAILABLE, DeriveRecord
from rankscope.runs import BaseSettings, DerivedPoint, RunSettings
from rankscope.scoring.likelihoods import OptionTrees
from rankscope.scoring.tasks import score_task
from rankscope.store import ITEMS, PROMPTS, Store, write_parquet, write_record


@runtime_checkable  # the tests check types at run time
class Models(Protocol):
    """What this stage needs of the process's models."""

    def base_folder(self, settings: BaseSettings) -> Path:
        """The folder that a base is read from."""

    def tokenizer(self, settings: BaseSettings) -> Tokenizer:
        """The base's tokenizer."""

    def tuned(self, run: RunSettings, folder: Path | None = None) -> AbstractContextManager[PreTrainedModel]:
        """A trained run's model, or the run's with the weights of another folder."""


@runtime_checkable  # the tests check types at run time
class Watcher(Protocol):
    """Who may ask the stage to stop."""

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        """So many of a pack's tasks have been scored, each once a derived model."""

    def wants_stop(self) -> bool:
        """The stage is to return; what has no record is done next time."""


def run(pack: Pack, plan: Plan, store: Store, models: Models, watcher: Watcher) -> None:
    """Make and score the derived models of a pack that have no complete record yet."""
    stage = _Stage(pack, plan, store, models, watcher, Decompositions(user_cache()))
    for run_id in pack.run_ids:
        for number, name in enumerate(pack.names):
            if watcher.wants_stop():
                return
            if not stage.is_done(run_id, name):
                stage.derive(plan.run(run_id), plan.derived_point(run_id, name), number)


@dataclass
class _Stage:
    pack: Pack
    plan: Plan
    store: Store
    models: Models
    watcher: Watcher
    decompositions: Decompositions
    trees: OptionTrees | None = None

    def is_done(self, run_id: str, name: str) -> bool:
        """Whether the scores are there, of the run and items that the plan means."""
        record = self.store.read_derive(self.store.derived(run_id, name))
        expected = self.plan.derive_hash(run_id, name)
        return record is not None and record.status == "complete" and record.settings_hash == expected

    def derive(self, settings: RunSettings, point: DerivedPoint, num_before: int) -> None:
        """Make one model, score it, and write its items, then its record; `num_before` points come before it."""
        started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
        folder = self.store.derived(settings.run_id, point.name)
        changed, scores, files, notes = Changed(), {}, [], ()
        tasks = self.plan.derive_tasks(settings.run_id)
        try:
            with self._model(settings, point, folder, changed) as model:
                for task in tasks:
                    scores[task] = self._score(model, settings, task, folder)
                    files.append(f"{task}/{ITEMS}")
                    done = num_before * len(tasks) + len(files)
                    self.watcher.progress(settings.run_id, done, len(self.pack.names) * len(tasks), None)
        except NotAvailable as why:
            scores, files, notes = {}, [], (NOT_AVAILABLE + str(why),)
        record = DeriveRecord(
            status="complete",
            settings_hash=self.plan.derive_hash(settings.run_id, point.name),
            provenance=provenance(),
            started_at=started_at,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
            subject=self.plan.subject(settings.base.name, settings.run_id),
            point=point,
            scores=scores,
            notes=notes,
            **({} if notes else self._found(settings, changed)),
        )
        write_record(folder, record, [*files, *(changed.files if not notes else ())])

    def _found(self, settings: RunSettings, changed: Changed) -> dict[str, Any]:
        granted = settings.arm.rank
        return {
            "summary": {"update_norm": changed.norm},
            "rank": changed.rank,
            "added_rank": None if changed.rank is None or granted is None else max(0, changed.rank - granted),
            "num_intruders": changed.num_intruders,
        }

    @contextmanager
    def _model(
        self, settings: RunSettings, point: DerivedPoint, folder: Path, changed: Changed
    ) -> Iterator[PreTrainedModel]:
        """The derived model in memory; `changed` is told what was done."""
        base_folder, train = self.models.base_folder(settings.base), self.store.train(settings.run_id)
        config = read_config(base_folder, settings.base.opening)
        updates = iter_updates(base_folder, trained_folder(train), settings.base.opening)
        how = {"point": point, "config": config, "decomposition_of": self.decompositions.of, "changed": changed}
        if settings.arm.capabilities.saves == "adapter":
            factors = {update.name: changed_adapter(update, **how) for update in updates}
            changed.files, changed.rank = write_lora(folder, train, factors, settings.base.source)
            with self.models.tuned(settings, folder) as model:
                yield model
            return
        with self.models.tuned(settings) as model:
            replace_updates(model, updates, partial(changed_update, **how))
            yield model

    def _score(self, model: PreTrainedModel, settings: RunSettings, task: str, folder: Path) -> dict[str, float]:
        """Score one task on the items that the base and the run were scored on."""
        base = settings.base
        items = items_from_frame(pl.read_parquet(self.store.base_task(base.name, task) / PROMPTS))
        scored = score_task(
            model,
            self.models.tokenizer(base),
            items,
            self.plan.task(base.name, settings.run_id, task),
            self.plan.max_tokens_per_batch,
            self.trees,
        )
        self.trees = scored.trees
        write_parquet(folder / task / ITEMS, scored.items)
        return scored.values
