"""The analysis stage: from trained weights and probe texts to what changed inside, a folder and a record each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rankscope.analyse.heads import base_heads, beside_base, head_means, tuned_heads
from rankscope.analyse.matrices import spectra
from rankscope.analyse.neurons import (
    Activity,
    activity_of,
    change_frame,
    most_changed,
    neuron_frame,
    neuron_summary,
    thresholds_of,
)
from rankscope.analyse.norms import NormCache
from rankscope.analyse.probes import TaskBatch, task_batches
from rankscope.analyse.streams import keep_streams, stream_frame, stream_summary
from rankscope.analyse.subspaces import subspaces
from rankscope.data.user_cache import user_cache
from rankscope.errors import NotAvailable
from rankscope.internals.patterns import Batch, batches
from rankscope.models.decompositions import Decompositions
from rankscope.models.fused import Part, iter_parts
from rankscope.models.layer_cache import LayerCache, write_tensors
from rankscope.models.merged import CannotMerge
from rankscope.models.opening import read_config
from rankscope.models.weights import Update, iter_updates, trained_folder
from rankscope.plan import Pack, Plan
from rankscope.provenance import peak_memory_bytes, provenance
from rankscope.records import NOT_AVAILABLE, AnalyseRecord
from rankscope.runs import OF_WEIGHTS, BaseSettings, RunSettings
from rankscope.store import Store, write_parquet, write_record

MATRICES, OTHERS, SINGULAR_VALUES = "matrices.parquet", "other_tensors.parquet", "singular_values.safetensors"
SUBSPACES, HEADS = "subspaces.parquet", "heads.parquet"
REPRESENTATIONS, STREAMS = "representations.parquet", "streams"
NEURONS, CHANGES, MOST_CHANGED = "neurons.parquet", "changes.parquet", "most_changed.parquet"
ACTIVITY = "activity.safetensors"
# A layer's pattern of one batch has at most heads x longest text x this many numbers.
_TOKENS_PER_BATCH = 2048


@runtime_checkable  # the tests check types at run time
class Models(Protocol):
    """What this stage needs of the process's models."""

    def base(self, settings: BaseSettings) -> PreTrainedModel:
        """The base itself."""

    def base_folder(self, settings: BaseSettings) -> Path:
        """The folder that a base is read from."""

    def tuned(self, run: RunSettings) -> AbstractContextManager[PreTrainedModel]:
        """A trained run's model; the base may be changed while it is in use."""


@runtime_checkable  # the tests check types at run time
class Watcher(Protocol):
    """Who may ask the stage to stop."""

    def wants_stop(self) -> bool:
        """The stage is to return; what has no record is done next time."""


def run(pack: Pack, plan: Plan, store: Store, models: Models, watcher: Watcher) -> None:
    """Make the analyses of a pack that have no complete record yet: of its runs, or of the base where it has none."""
    stage = _Stage(plan, store, models)
    for run_id in pack.run_ids or (None,):
        for name in pack.names:
            if watcher.wants_stop():
                return
            stage.analyse(pack.base, run_id, name)


@dataclass(frozen=True)
class _Found:
    """What an analysis has to record: its one-line numbers, remarks, and the files it wrote."""

    summary: dict[str, float]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Stage:
    plan: Plan
    store: Store
    models: Models

    def analyse(self, base: str, run_id: str | None, name: str) -> None:
        """Make one analysis of one model, unless it is there."""
        folder = self.store.base_analysis(base, name) if run_id is None else self.store.analysis(run_id, name)
        expected = self.plan.analysis_hash(base, run_id, name)
        record = self.store.read_analyse(folder)
        if record is not None and record.status == "complete" and record.settings_hash == expected:
            return
        if run_id is None and name in OF_WEIGHTS:
            raise ValueError(f"{name} are of updates, and a base has none")
        started_at, started = datetime.now(UTC).isoformat(), time.perf_counter()
        try:
            found = self._of_base(base, name, folder) if run_id is None else self._of_run(run_id, name, folder)
        except (NotAvailable, CannotMerge) as why:
            found = _Found({}, (), (NOT_AVAILABLE + str(why),))
        record = AnalyseRecord(
            status="complete",
            settings_hash=expected,
            provenance=provenance(),
            started_at=started_at,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
            subject=self.plan.subject(base, run_id),
            analysis=name,
            summary=found.summary,
            notes=found.notes,
        )
        write_record(folder, record, found.files)

    def _of_base(self, base: str, name: str, folder: Path) -> _Found:
        of = {
            "attention": self._base_attention,
            "representations": self._base_representations,
            "neurons": self._base_neurons,
        }
        return of[name](base, folder)

    def _of_run(self, run_id: str, name: str, folder: Path) -> _Found:
        settings = self.plan.run(run_id)
        if why := settings.arm.capabilities.not_available.get(name):
            raise NotAvailable(why)
        of = {
            "spectra": self._spectra,
            "subspaces": self._subspaces,
            "attention": self._attention,
            "representations": self._representations,
            "neurons": self._neurons,
        }
        return of[name](settings, folder)

    # Weights ---------------------------------------------------------------------------------------------------------

    def _spectra(self, settings: RunSettings, folder: Path) -> _Found:
        """Every update's spectrum; `Spectra.summary` says how one number comes of many."""
        file = f"norms-{settings.base.model_hash[:16]}.json"
        norms = NormCache(self.store.base_analysis(settings.base.name, "spectra") / file)
        found = spectra(self._parts(settings), norms.of)
        norms.write()
        write_parquet(folder / MATRICES, found.matrices)
        write_parquet(folder / OTHERS, found.others)
        write_tensors(folder / SINGULAR_VALUES, found.singular_values)
        notes = (*found.notes(), *_conversion(settings), *_held(settings))
        return _Found(found.summary(), (MATRICES, OTHERS, SINGULAR_VALUES), notes)

    def _subspaces(self, settings: RunSettings, folder: Path) -> _Found:
        """How each tuned matrix's singular vectors lie to the base's."""
        found = subspaces(self._parts(settings), Decompositions(user_cache()).of)
        write_parquet(folder / SUBSPACES, found.matrices)
        return _Found(found.summary(), (SUBSPACES,), (*found.notes(), *_held(settings)))

    def _parts(self, settings: RunSettings) -> Iterator[Update | Part]:
        """What a run changed, tensor by tensor, with fused matrices taken apart."""
        base_folder = self.models.base_folder(settings.base)
        config = read_config(base_folder, settings.base.opening)
        updates = iter_updates(base_folder, trained_folder(self.store.train(settings.run_id)), settings.base.opening)
        return iter_parts(updates, config)

    # Attention -------------------------------------------------------------------------------------------------------

    def _base_attention(self, base: str, folder: Path) -> _Found:
        """The base's heads on the probe texts; its patterns are kept for the runs' divergence."""
        cache = self._cache(base, "attention")
        model = self.models.base(self.plan.bases[base])
        with cache.anew() as write:
            heads = base_heads(model, self._probes(base), write)
        write_parquet(folder / HEADS, heads)
        return _Found(head_means(heads), (HEADS,))

    def _attention(self, settings: RunSettings, folder: Path) -> _Found:
        """The tuned model's heads beside the base's (columns in `_base`), and how far each has moved.

        The summary has the tuned model's measures and the divergence, each the mean over layers and heads.
        """
        base = settings.base.name
        base_folder, cache = self.store.base_analysis(base, "attention"), self._cache(base, "attention")
        if not cache.is_whole():
            # Before the tuned model is asked for: it may be made of the base.
            self._base_attention(base, base_folder)
        with self.models.tuned(settings) as model:
            heads = tuned_heads(model, self._probes(base), cache.read)
        write_parquet(folder / HEADS, beside_base(heads, pl.read_parquet(base_folder / HEADS)))
        return _Found(head_means(heads), (HEADS,))

    # Representations -------------------------------------------------------------------------------------------------

    def _base_representations(self, base: str, _folder: Path) -> _Found:
        """The base's residual streams are kept for the runs; of the base alone there is nothing to say."""
        with self._cache(base, "representations").anew() as write:
            keep_streams(self.models.base(self.plan.bases[base]), self._task_probes(base), write)
        return _Found({}, ())

    def _representations(self, settings: RunSettings, folder: Path) -> _Found:
        """Each layer's residual stream against the base's, task by task.

        The tuned model's streams are kept on disk as well, so that the sums of one layer are in memory at a time.
        """
        base = settings.base.name
        before = self._cache(base, "representations")
        after = LayerCache(folder / STREAMS, self.plan.analysis_hash(base, settings.run_id, "representations"))
        if not before.is_whole():
            self._base_representations(base, self.store.base_analysis(base, "representations"))
        with after.anew() as write, self.models.tuned(settings) as model:
            layers = keep_streams(model, self._task_probes(base), write)
        frame = stream_frame(layers, self._task_probes(base), before.read, after.read)
        after.remove()
        write_parquet(folder / REPRESENTATIONS, frame)
        return _Found(stream_summary(frame), (REPRESENTATIONS,))

    # Neurons ---------------------------------------------------------------------------------------------------------

    def _base_neurons(self, base: str, folder: Path) -> _Found:
        """What the base's neurons do, and from which activation on each layer's count as active."""
        model = self.models.base(self.plan.bases[base])
        thresholds = thresholds_of(model, self._task_probes(base))
        activity = activity_of(model, self._task_probes(base), thresholds)
        values = {f"{layer}/threshold": torch.tensor([value]) for layer, value in thresholds.items()}
        write_tensors(folder / ACTIVITY, {**activity.tensors(), **values})
        frame = neuron_frame(activity)
        write_parquet(folder / NEURONS, frame)
        return _Found(neuron_summary(frame, None), (NEURONS, ACTIVITY))

    def _neurons(self, settings: RunSettings, folder: Path) -> _Found:
        """What the tuned model's neurons do beside the base's, and which changed most."""
        base = settings.base.name
        base_folder = self.store.base_analysis(base, "neurons")
        if not (base_folder / ACTIVITY).is_file():
            self._base_neurons(base, base_folder)
        tensors = load_file(base_folder / ACTIVITY)
        thresholds = {int(key.split("/")[0]): float(tensors[key]) for key in tensors if key.endswith("/threshold")}
        before = Activity.from_tensors(tensors, [name for probe in self._task_probes(base) for name in probe.probe_ids])
        with self.models.tuned(settings) as model:
            after = activity_of(model, self._task_probes(base), thresholds)
        keys = ["layer", "neuron", "task"]
        frame = neuron_frame(after).join(
            neuron_frame(before), on=keys, how="left", suffix="_base", maintain_order="left"
        )
        changes = change_frame(before, after)
        write_parquet(folder / NEURONS, frame)
        write_parquet(folder / CHANGES, changes)
        write_parquet(folder / MOST_CHANGED, most_changed(changes, before, after))
        return _Found(neuron_summary(frame, changes), (NEURONS, CHANGES, MOST_CHANGED))

    # Probe texts -----------------------------------------------------------------------------------------------------

    def _cache(self, base: str, analysis: str) -> LayerCache:
        """What the base showed, for its runs."""
        return LayerCache(self.store.base_cache(base, analysis), self.plan.analysis_hash(base, None, analysis))

    def _probes(self, base: str) -> list[Batch]:
        """The probe texts in batches that are the same for every model of the base, so that rounding is too."""
        return batches(self._texts(base)["input_ids"].to_list(), _TOKENS_PER_BATCH)

    def _task_probes(self, base: str) -> list[TaskBatch]:
        """The same, each batch of one task."""
        return task_batches(self._texts(base), _TOKENS_PER_BATCH)

    def _texts(self, base: str) -> pl.DataFrame:
        return pl.read_parquet(self.store.base(base) / "probes.parquet")


def _held(settings: RunSettings) -> list[str]:
    """What a reader of weights should know of a base that is not held as its files have it."""
    bits = settings.base.opening.quantization_config
    if bits is None:
        return []
    inputs = "; what the inputs lose in 8 bits is in no weight" if bits.load_in_8bit else ""
    notes = [
        f"the base is held in {bits.label}: its matrices are what these bits stand for, not those of its files{inputs}"
    ]
    if settings.arm.options.get("init_lora_weights") == "loftq":
        notes.append("the update began as what the bits had lost of each matrix: that part of it was not learned")
    return notes


def _conversion(settings: RunSettings) -> list[str]:
    """What a reader of ranks should know of an initialisation that altered the base."""
    arm = settings.arm
    if not arm.capabilities.alters_base or arm.rank is None:
        return []
    start = arm.options["init_lora_weights"]
    text = f"{start} took a part out of the base; PEFT's conversion adds its opposite, which doubles the rank"
    return [f"{text}: {arm.rank} was trained, and the update beside the true base may have {2 * arm.rank}"]
