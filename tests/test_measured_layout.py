"""A layout that was measured is the one a study is trained in, and the one that it is trained in again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from rankscope import pipeline
from rankscope.execute.local import LocalExecutor
from rankscope.execute.trials import TrialWork, measured_layout
from rankscope.pipeline import run_study
from rankscope.plan import Layout, Pack, Plan, Trial
from rankscope.store import Store
from rankscope.study_file import load_study
from studies import plan_of, write_study
from synthetic import write_study as write_synthetic

STUDY = """\
study: measured
model: smallworld:base
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 8, validation: {fraction: 0.25}}
arms:
  - {method: full, learning_rate: 1.0e-3}
  - {method: lora, rank: [2, 4], learning_rate: 1.0e-3}
optimization: {max_steps: 3, batch_size: 4, max_length: 64}
seeds: [0]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 4, in_domain_for: [facts]}
analyse: {spectra: false, subspaces: false, attention: false, representations: false, neurons: false}
execute: {num_workers: 1, threads_per_worker: 1, measure: true}
"""
TRIALS = (
    Trial(num_workers=1, threads_per_worker=1, pack_size=1, steps_per_second=10.0),
    Trial(num_workers=1, threads_per_worker=1, pack_size=2, steps_per_second=15.0),
)


def two_are_faster(plan: Plan, examples: Mapping[tuple[str, str], pl.DataFrame], layouts: Iterable[Layout]) -> Layout:
    """What is measured, where speeds are given: no two measurements of this machine would agree."""
    speeds = {trial.pack_size: trial.steps_per_second for trial in TRIALS}

    def try_out(work: TrialWork) -> float:
        assert len(work.runs) == len(work.examples) == work.layout.pack_size
        return speeds[work.layout.pack_size]

    return measured_layout(plan, examples, layouts, try_out)


class MeasuredAgainError(Exception):
    """Something is measured that need not be."""


def measured_again(*_: object) -> Layout:
    raise MeasuredAgainError


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Pack]:
    """What is handed to workers."""
    packs: list[Pack] = []
    submit = LocalExecutor.submit

    def noted(executor: LocalExecutor, pack: Pack) -> None:
        packs.append(pack)
        submit(executor, pack)

    monkeypatch.setattr(LocalExecutor, "submit", noted)
    return packs


def assert_trained_in_one_pack(out: Path, submitted: list[Pack]) -> None:
    """Both LoRA runs went to the worker at once, and the worker trained them at the same time; full alone."""
    plan, store = plan_of(out), Store(out)
    of_lora = [run.run_id for run in plan.runs if run.arm.method == "lora"]
    (of_full,) = [run.run_id for run in plan.runs if run.arm.method == "full"]
    packs = [pack.run_ids for pack in submitted if pack.stage == "train"]
    assert len(of_lora) == 2 and sorted(packs, key=len) == [(of_full,), tuple(of_lora)]
    spans = {}
    for run_id in (*of_lora, of_full):
        record = store.read_train(run_id)
        assert record is not None and record.status == "complete" and record.num_steps == 3
        assert record.pack == (() if run_id == of_full else tuple(of_lora))
        started = datetime.fromisoformat(record.started_at)
        spans[run_id] = started, started + timedelta(seconds=record.seconds)
    (first, first_end), (second, second_end), (alone, alone_end) = spans.values()
    assert max(first, second) < min(first_end, second_end)
    assert alone >= max(first_end, second_end) or alone_end <= min(first, second)


def steps_of(out: Path) -> dict[str, list[dict]]:
    """By run, what is logged of each step but the time it took."""
    found = {}
    for path in out.glob("runs/*/train/steps.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parts[-3]] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return found


def test_a_measured_layout_is_trained_in_and_replayed_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submitted: list[Pack]
) -> None:
    study = load_study(write_study(tmp_path, STUDY))
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(pipeline, "measured_layout", two_are_faster)
    assert run_study(study, first).num_failed == 0
    layout = plan_of(first).layout
    assert layout.pack_size == 2 and layout.trials == TRIALS
    assert_trained_in_one_pack(first, submitted)

    second.mkdir()
    for name in ("study.yaml", "plan.json"):
        shutil.copy(first / name, second / name)
    submitted.clear()
    estimate = plan_of(first).estimate
    monkeypatch.setattr(pipeline, "measured_layout", measured_again)
    assert run_study(study, second).num_failed == 0
    assert plan_of(second).layout == layout and plan_of(second).runs == plan_of(first).runs
    assert plan_of(second).estimate == estimate, "the forecast is that of the measured layout, too"
    assert_trained_in_one_pack(second, submitted)
    steps = steps_of(first)
    assert {len(rows) for rows in steps.values()} == {3} and len(steps) == 3
    assert steps_of(second) == steps
    weights = [path.relative_to(first) for path in sorted(first.glob("runs/*/train/*/*.safetensors"))]
    assert len(weights) == 3
    for name in weights:
        assert (second / name).read_bytes() == (first / name).read_bytes(), name

    # Without its plan nothing is there to replay, and for other processes the measurement does not hold.
    (second / "plan.json").unlink()
    with pytest.raises(MeasuredAgainError):
        run_study(study, second)
    with pytest.raises(MeasuredAgainError):
        run_study(load_study(tmp_path / "study.yaml", ["execute.pack_size=2"]), first)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return write_synthetic(tmp_path_factory.mktemp("synthetic")).plan


LIMIT_SECONDS = 1800.0  # half an hour, beside which a minute of measuring is little
FIXED = ["execute.num_workers=1", "execute.threads_per_worker=1", "execute.pack_size=1"]


@pytest.mark.parametrize(
    ("settings", "seconds", "is_worth_it"),
    [
        ([], LIMIT_SECONDS + 1, True),
        ([], LIMIT_SECONDS, False),
        ([], None, False),
        (FIXED, LIMIT_SECONDS + 1, False),
        (FIXED[:2], LIMIT_SECONDS + 1, True),
        (FIXED[1:], LIMIT_SECONDS + 1, True),
        ([FIXED[0], FIXED[2]], LIMIT_SECONDS + 1, True),
        (["execute.measure=true"], 1.0, True),
        (["execute.measure=true"], None, True),
        (["execute.measure=false"], LIMIT_SECONDS + 1, False),
        (["execute.backend=ray"], LIMIT_SECONDS + 1, False),
        (["execute.backend=ray", "execute.measure=true"], LIMIT_SECONDS + 1, False),
        (["execute.shard=2"], LIMIT_SECONDS + 1, False),
        (["execute.cpu_offload=true"], LIMIT_SECONDS + 1, False),
    ],
    ids=str,
)
def test_a_long_study_with_an_open_layout_is_worth_measuring(
    tmp_path: Path, plan: Plan, settings: list[str], seconds: float | None, is_worth_it: bool
) -> None:
    text = STUDY[: STUDY.index("execute:")]
    study = load_study(write_study(tmp_path, text), settings)
    estimate = plan.estimate.model_copy(update={"seconds": seconds})
    assert pipeline._is_worth_measuring(study, plan.model_copy(update={"estimate": estimate})) is is_worth_it
