"""The analysis stage: from trained weights and probe texts to what changed inside, a folder and a record each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from rankscope.analyse.heads import HeadTable, head_means
from rankscope.analyse.matrices import spectra
from rankscope.analyse.norms import NormCache
from rankscope.analyse.subspaces import subspaces
from rankscope.internals.attention import attention_divergence, pattern_measures
from rankscope.internals.patterns import (
    Batch,
    LayerPattern,
    batches,
    packed_pattern,
    show_patterns,
    unpacked_pattern,
)
from rankscope.models.decompositions import Decompositions, default_cache
from rankscope.models.fused import Part, iter_parts
from rankscope.models.weights import Update, iter_updates, trained_folder
from rankscope.plan import Pack, Plan
from rankscope.provenance import peak_memory_bytes, provenance
from rankscope.records import AnalyseRecord
from rankscope.runs import OF_WEIGHTS, BaseSettings, RunSettings
from rankscope.store import Store, checksum, read_checked, write_checked, write_parquet, write_record

MATRICES, OTHERS, SINGULAR_VALUES = "matrices.parquet", "other_tensors.parquet", "singular_values.safetensors"
SUBSPACES, HEADS = "subspaces.parquet", "heads.parquet"
# The base's patterns on the probe texts: no result but a store of what every run is compared with. They are on no
# record (their checksums are in `done`), may be deleted, and are made again when a run needs them.
PATTERNS, PATTERNS_DONE = "patterns", "done"
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
        found = self._base_attention(base, folder) if run_id is None else self._of_run(run_id, name, folder)
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

    def _of_run(self, run_id: str, name: str, folder: Path) -> _Found:
        settings = self.plan.run(run_id)
        of = {"spectra": self._spectra, "subspaces": self._subspaces, "attention": self._attention}
        return of[name](settings, folder)

    # Weights ---------------------------------------------------------------------------------------------------------

    def _spectra(self, settings: RunSettings, folder: Path) -> _Found:
        """Every update's spectrum; `Spectra.summary` says how one number comes of many."""
        file = f"norms-{settings.base.fingerprint[:16]}.json"
        norms = NormCache(self.store.base_analysis(settings.base.name, "spectra") / file)
        found = spectra(self._parts(settings), norms.of)
        norms.write()
        write_parquet(folder / MATRICES, found.matrices)
        write_parquet(folder / OTHERS, found.others)
        _write_tensors(folder / SINGULAR_VALUES, found.singular_values)
        return _Found(found.summary(), (MATRICES, OTHERS, SINGULAR_VALUES), found.notes())

    def _subspaces(self, settings: RunSettings, folder: Path) -> _Found:
        """How each tuned matrix's singular vectors lie to the base's."""
        found = subspaces(self._parts(settings), Decompositions(default_cache()).of)
        write_parquet(folder / SUBSPACES, found.matrices)
        return _Found(found.summary(), (SUBSPACES,), found.notes())

    def _parts(self, settings: RunSettings) -> Iterator[Update | Part]:
        """What a run changed, tensor by tensor, with fused matrices taken apart."""
        base_folder = self.models.base_folder(settings.base)
        config = AutoConfig.from_pretrained(base_folder, local_files_only=True, trust_remote_code=False)
        updates = iter_updates(base_folder, trained_folder(self.store.train(settings.run_id)))
        return iter_parts(updates, config)

    # Attention -------------------------------------------------------------------------------------------------------

    def _base_attention(self, base: str, folder: Path) -> _Found:
        """The base's heads on the probe texts; its patterns are kept for the runs' divergence."""
        patterns = folder / PATTERNS
        (patterns / PATTERNS_DONE).unlink(missing_ok=True)
        patterns.mkdir(parents=True, exist_ok=True)
        model = self.models.base(self.plan.bases[base])
        table = HeadTable()
        for index, batch in enumerate(self._probes(base)):

            def keep(layer: LayerPattern, index: int = index) -> None:
                table.add(layer.layer, pattern_measures(layer.pattern, layer.visible))
                packed = packed_pattern(layer).cpu().contiguous()
                _write_tensors(patterns / _pattern_file(index, layer.layer), {"pattern": packed})

            show_patterns(model, batch, keep)
        files = {path.name: checksum(path) for path in patterns.glob("batch*.safetensors")}
        made_of = self.plan.analysis_hash(base, None, "attention")
        write_checked(patterns / PATTERNS_DONE, {"of": made_of, "files": files})
        heads = table.frame()
        write_parquet(folder / HEADS, heads)
        return _Found(head_means(heads), (HEADS,))

    def _attention(self, settings: RunSettings, folder: Path) -> _Found:
        """The tuned model's heads beside the base's (columns in `_base`), and how far each has moved.

        The summary has the tuned model's measures and the divergence, each the mean over layers and heads.
        """
        base = settings.base.name
        base_folder = self.store.base_analysis(base, "attention")
        if not self._has_patterns(base, base_folder):
            # Before the tuned model is asked for: it may be made of the base.
            self._base_attention(base, base_folder)
        table = HeadTable()
        with self.models.tuned(settings) as model:
            for index, batch in enumerate(self._probes(base)):

                def compare(layer: LayerPattern, index: int = index) -> None:
                    packed = load_file(base_folder / PATTERNS / _pattern_file(index, layer.layer))["pattern"]
                    before = unpacked_pattern(packed.to(layer.pattern.device), layer.visible)
                    divergence = attention_divergence(before, layer.pattern, layer.visible)
                    measures = pattern_measures(layer.pattern, layer.visible)
                    table.add(layer.layer, {**measures, "attention_divergence": divergence})

                show_patterns(model, batch, compare)
        heads = table.frame()
        before = pl.read_parquet(base_folder / HEADS)
        both = heads.join(before, on=["layer", "head"], how="left", suffix="_base", maintain_order="left")
        write_parquet(folder / HEADS, both)
        return _Found(head_means(heads), (HEADS,))

    def _has_patterns(self, base: str, folder: Path) -> bool:
        """Whether the base's patterns are there, of these probe texts, and as they were written."""
        patterns = folder / PATTERNS
        done = read_checked(patterns / PATTERNS_DONE)
        if done is None or done["of"] != self.plan.analysis_hash(base, None, "attention"):
            return False
        files = {patterns / name: expected for name, expected in done["files"].items()}
        return all(path.is_file() and checksum(path) == expected for path, expected in files.items())

    def _probes(self, base: str) -> list[Batch]:
        """The probe texts in batches that are the same for every model of the base, so that rounding is too."""
        frame = pl.read_parquet(self.store.base(base) / "probes.parquet")
        return batches(frame["input_ids"].to_list(), _TOKENS_PER_BATCH)


def _pattern_file(batch: int, layer: int) -> str:
    return f"batch{batch:04d}-layer{layer:03d}.safetensors"


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors under a temporary name and rename the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)
