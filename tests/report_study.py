"""A finished synthetic study with everything that the report can show: rates, verdicts, spectra, attention, texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from rankscope.decide import stage as decide
from rankscope.decide.rates import update_rates
from rankscope.records import AnalyseRecord, Analysis, Subject
from rankscope.store import Store, write_parquet, write_record
from synthetic import ARMS, STARTED, Synthetic, write_study

NUM_LAYERS, NUM_HEADS = 3, 2
MODULES = ("q_proj", "o_proj", "up_proj")
EVIL = "<script>window.pwned = 1</script></script><!-- ]]> & \"quotes\" 'too' {{ braces }}"


def finished_study(root: Path, **options: Any) -> Synthetic:
    """A study on two training sets after `decide`, with a diverged rate, a failed seed, and the inside of its models.

    Args:
        root: Where it is written.
        **options: Passed on to `write_study`.
    """
    low, *rest = options.pop("arms", ARMS)
    broken = replace(low, diverged=(1e-3,) if len(low.rates) > 1 else (), failed_seeds=(2,))
    study = write_study(root, **{"arms": (broken, *rest), "training_sets": ("new", "other"), **options})
    update_rates(study.store, study.plan)
    decide.run(study.store, study.study, study.plan)
    for base in study.plan.bases:
        write_heads(study.store.base_analysis(base, "attention"), Subject(base=base), 0.0)
    for run in study.plan.runs:
        record = study.store.read_train(run.run_id)
        if record is not None and record.status == "complete":
            subject = Subject(
                base=run.base.name, training_set=run.training_set.name, arm=run.arm.label,
                learning_rate=run.learning_rate, seed=run.seed, run_id=run.run_id,
            )  # fmt: skip
            write_matrices(study.store.analysis(run.run_id, "spectra"), subject, float(run.seed))
            write_heads(study.store.analysis(run.run_id, "attention"), subject, 0.01 * (run.seed + 1))
            write_representations(study.store.analysis(run.run_id, "representations"), subject, run.seed)
            write_neurons(study.store.analysis(run.run_id, "neurons"), subject)
    return study


def write_matrices(folder: Path, subject: Subject, offset: float) -> None:
    """Spectra whose values a reader can work out: layer + 10 * module index + the seed."""
    rows = [
        {
            "name": f"model.layers.{layer}.{module}",
            "layer": layer,
            "module": module,
            "d_out": 8,
            "d_in": 8,
            "update_norm_relative": layer + 10.0 * index + offset,
            "stable_rank": 1.0 + offset,
            "effective_rank": 2.0 + offset,
            "energy_rank_90": 3,
        }
        for layer in range(NUM_LAYERS)
        for index, module in enumerate(MODULES)
    ]
    _write(folder, "matrices.parquet", rows, subject, "spectra")


def write_heads(folder: Path, subject: Subject, divergence: float) -> None:
    """Attention whose entropy is 0.1 * layer + 0.01 * head in every model."""
    rows = [
        {
            "layer": layer,
            "head": head,
            "attention_entropy": 0.1 * layer + 0.01 * head,
            **({"attention_divergence": divergence * layer} if divergence else {}),
        }
        for layer in range(NUM_LAYERS)
        for head in range(NUM_HEADS)
    ]
    _write(folder, "heads.parquet", rows, subject, "attention")


def write_representations(folder: Path, subject: Subject, seed: int) -> None:
    """A CKA of 1 - 0.1 * layer - 0.02 * seed on one task, and 0.02 less on the other."""
    rows = [
        {
            "layer": layer,
            "task": task,
            "num_positions": 10 + 10 * index,
            "cka": 1 - 0.1 * layer - 0.02 * seed - 0.02 * index,
            "residual_cosine": 0.9,
            "procrustes_residual": 0.05 * layer,
        }
        for layer in range(NUM_LAYERS)
        for index, task in enumerate(("taught", "general"))
    ]
    _write(folder, "representations.parquet", rows, subject, "representations")


def write_neurons(folder: Path, subject: Subject) -> None:
    """Four neurons a layer whose shifts have a mean size of layer + 0.5; as many as the layer's number fell silent."""
    rows = [
        {
            "layer": layer,
            "neuron": neuron,
            "neuron_shift": (-1.0 if neuron == 0 else 1.0) * (layer + 0.5),
            "is_newly_dead": neuron < layer,
            "is_newly_active": False,
        }
        for layer in range(NUM_LAYERS)
        for neuron in range(4)
    ]
    changed = [
        {"layer": 2, "neuron": neuron, "neuron_shift": shift, "model": model, "probe_id": probe, "position": 3,
         "activation": activation}
        for neuron, shift in ((0, -2.5), (1, 2.5))
        for model, probe, activation in (("base", "text/text-00000", 0.5), ("tuned", "general/general-00001", -7.25))
    ]  # fmt: skip
    write_parquet(folder / "most_changed.parquet", pl.DataFrame(changed))
    _write(folder, "changes.parquet", rows, subject, "neurons")


def poison(store: Store, base: str, task: str) -> None:
    """Put markup into every text of a task: prompts, options, categories, targets."""
    path = store.base_task(base, task) / "prompts.parquet"
    frame = pl.read_parquet(path)
    texts = [pl.lit(EVIL).alias(name) for name in ("prompt", "target", "category")]
    write_parquet(path, frame.with_columns(*texts, pl.lit([EVIL, "b"]).alias("options")))


def _write(folder: Path, name: str, rows: list[Mapping[str, Any]], subject: Subject, analysis: Analysis) -> None:
    write_parquet(folder / name, pl.DataFrame(rows))
    record = AnalyseRecord(
        status="complete", settings_hash="0" * 64, provenance={}, started_at=STARTED, seconds=1.0, subject=subject,
        analysis=analysis,
    )  # fmt: skip
    write_record(folder, record, [path.name for path in folder.glob("*.parquet")])


def with_losses_of(tables: Mapping[str, pl.DataFrame], training_set: str) -> dict[str, pl.DataFrame]:
    """A report's tables as if one training set had no right answers: what was learned of it is a loss."""
    is_loss = (pl.col("training_set") == training_set) & (pl.col("measure") == "gain")
    measure = pl.when(is_loss).then(pl.lit("gain_nats")).otherwise(pl.col("measure"))
    return {**tables, "arms": tables["arms"].with_columns(measure.alias("measure"))}
