"""One finished study with weights beside its records, made once for all tests of the export."""

from __future__ import annotations

import polars as pl
import pytest

from rankscope.plan import Plan
from rankscope.records import DeriveRecord
from rankscope.runs import DerivedPoint
from rankscope.store import Store, write_parquet, write_record, write_text
from report_study import finished_study
from synthetic import STARTED, Synthetic

CUT = DerivedPoint(kind="truncate", amount=4.0)


@pytest.fixture(scope="session")
def exported_study(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Rank 16 is recommended; every completed run has weights, and rank 16's first runs a cut adapter too."""
    limits = {"margin": 0.15, "forgetting_budget": 0.08, "forgetting_budget_nats": 0.06}
    study = finished_study(tmp_path_factory.mktemp("exported") / "study", decide=limits, training_sets=("new",))
    analyses = ("spectra", "attention", "representations", "neurons")
    plan = study.plan.model_copy(update={"derived": {"lora-r16": (CUT,)}, "analyses": analyses})
    write_text(study.store.plan_file, plan.model_dump_json())
    for run in plan.runs:
        record = study.store.read_train(run.run_id)
        if record is None or record.status != "complete":
            continue
        write_weights(study.store, run.run_id, "adapter" if run.arm.method == "lora" else "model")
        if run.arm.label == "lora-r16" and study.store.read_evaluate(study.store.task(run.run_id, "taught")):
            write_derived(study.store, plan, run.run_id)
    return Synthetic(study.store, study.study, plan)


def write_weights(store: Store, run_id: str, kind: str) -> None:
    """Files that stand for weights, vouched for by the run's record."""
    folder, record = store.train(run_id), store.read_train(run_id)
    names = [name.format(kind) for name in ("{}_config.json", "{}_model.safetensors")]
    for name in names:
        write_text(folder / kind / name, f"{name} of {run_id}")
    write_record(folder, record, ["steps.jsonl", *(f"{kind}/{name}" for name in names)])


def write_derived(store: Store, plan: Plan, run_id: str) -> None:
    """A cut adapter with the run's own items as its own, so that its numbers are those of the run."""
    folder = store.derived(run_id, CUT.name)
    files = []
    for task in plan.derive_tasks(run_id):
        write_parquet(folder / task / "items.parquet", pl.read_parquet(store.task(run_id, task) / "items.parquet"))
        files.append(f"{task}/items.parquet")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        write_text(folder / "adapter" / name, f"cut {name}")
        files.append(f"adapter/{name}")
    run = plan.run(run_id)
    record = DeriveRecord(
        status="complete", settings_hash="0" * 64, provenance={}, started_at=STARTED, seconds=1.0,
        subject=plan.subject(run.base.name, run_id), point=CUT, scores={"taught": {"accuracy": 0.5}}, rank=4,
    )  # fmt: skip
    write_record(folder, record, files)
