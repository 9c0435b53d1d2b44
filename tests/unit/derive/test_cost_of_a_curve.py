"""What a curve of derived models costs, from records with chosen seconds: `benchmarks/derived.py`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rankscope.records import DeriveRecord
from rankscope.runs import DerivedPoint
from rankscope.store import Store, write_record, write_text
from synthetic import Arm, Synthetic, write_study

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
AMOUNTS = (1, 2, 3, 4, 6, 8)
POINTS = (
    *(DerivedPoint(kind="truncate", amount=amount) for amount in AMOUNTS),
    DerivedPoint(kind="rewind", amount=0.5),
)
COMMON = {"provenance": {}, "started_at": "2026-01-01T00:00:00+00:00", "settings_hash": "0" * 64}


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def derived() -> ModuleType:
    return loaded("derived")


def write_point(study: Synthetic, run_id: str, point: DerivedPoint, seconds: float, **said: object) -> None:
    subject = study.plan.subject("small", run_id)
    scores = {task: {"accuracy": 0.5} for task in study.plan.derive_tasks(run_id)}
    record = DeriveRecord(
        **COMMON
        | {"status": "complete", "seconds": seconds, "subject": subject, "point": point, "scores": scores}
        | said
    )
    write_record(study.store.derived(run_id, point.name), record)


@pytest.fixture
def study(tmp_path: Path) -> Synthetic:
    """Two runs of rank 16 that took 2 seconds each (see `write_study`), each task's scoring 1 second."""
    study = write_study(tmp_path, arms=[Arm("lora", 16, (1e-3,), best=0)], seeds=(0, 1))
    plan = study.plan.model_copy(update={"derived": {"lora-r16": POINTS}})
    write_text(study.store.plan_file, plan.model_dump_json())
    study = Synthetic(study.store, study.study, plan)
    for run, seconds in zip(plan.runs, (0.5, 1.5), strict=True):
        for point in POINTS:
            write_point(study, run.run_id, point, seconds)
    return study


def test_a_curve_is_six_mean_points_beside_one_training(derived: ModuleType, study: Synthetic) -> None:
    cut, rewound = derived.curves(study.store)
    assert (cut.base, cut.training_set, cut.arm, cut.kind) == ("small", "new", "lora-r16", "truncate")
    assert (cut.num_runs, cut.num_points, cut.train_seconds, cut.point_seconds) == (2, 6, 2.0, 1.0)
    assert cut.scoring_seconds == len(study.plan.derive_tasks(study.plan.runs[0].run_id)) == 3
    assert cut.share == pytest.approx(6 * 1.0 / 2.0)
    assert (rewound.kind, rewound.num_points, rewound.share) == ("rewind", 1, pytest.approx(3.0))
    assert "6 points 3.00 times the 2.0 s of training" in derived.line_of(cut)


def test_a_curve_with_a_point_that_is_missing_or_could_not_be_made_is_left_out(
    derived: ModuleType, study: Synthetic
) -> None:
    first, second = (run.run_id for run in study.plan.runs)
    (study.store.derived(first, POINTS[0].name) / "record.json").unlink()
    write_point(study, second, POINTS[-1], 9.0, scores={}, notes=("not available: no factors",))
    found = {curve.kind: curve for curve in derived.curves(study.store)}
    cut, rewound = found["truncate"], found["rewind"]
    # Of each kind one run is left.
    assert (cut.num_runs, cut.point_seconds) == (1, 1.5)
    assert (rewound.num_runs, rewound.point_seconds) == (1, 0.5)


def test_a_folder_without_a_study_is_refused(derived: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no study was planned here"):
        derived.curves(Store(tmp_path))


def test_the_table_has_the_curve_in_a_part_of_its_own(derived: ModuleType, study: Synthetic, tmp_path: Path) -> None:
    stack = {"seconds": 1.0, "peak_memory_bytes": 2**20}
    training = {"rankscope": stack, "peer": stack, "ratio": 1.0, "processor_ratio": 1.0}
    curve = vars(derived.curves(study.store)[0])
    results = {"smallworld": {"training": training, "derive": {"curve": curve, "share": 3.0}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    loaded("table").write_table(tmp_path / "results.json", tmp_path / "results.md")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| smallworld")] == ["training", "lora-r16"]
    assert lines[-1] == "| smallworld | lora-r16 | 2.0 s | 1.0 s | 3.0 s | 3.00 |"
