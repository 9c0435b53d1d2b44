"""Worker processes: each with its device, replaced when it dies, its work done again."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from rankscope.execute.events import Event, Failed, Finished, Progress
from rankscope.execute.local import LocalExecutor
from rankscope.execute.surroundings import worker_environment
from rankscope.layout import num_cores
from rankscope.pipeline import run_study
from rankscope.plan import Layout, Pack, Plan
from rankscope.planning import make_plan
from rankscope.start import write_start
from rankscope.store import Store
from rankscope.study_file import load_study
from studies import write_study


@pytest.mark.parametrize(
    ("visible", "slot", "own"), [(None, 0, "0"), (None, 3, "3"), ("2,5", 1, "5"), ("GPU-a, GPU-b", 0, "GPU-a")]
)
def test_each_worker_has_a_gpu_of_its_own(
    visible: str | None, slot: int, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = worker_environment(Layout(device="cuda", num_workers=4, threads_per_worker=2), slot)
    assert found["CUDA_VISIBLE_DEVICES"] == own and found["OMP_NUM_THREADS"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(
        Layout(device="cpu", num_workers=4, threads_per_worker=1), slot
    )


def test_each_process_of_a_model_in_parts_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(device="cuda", num_workers=2, threads_per_worker=1, shard=2)
    for visible, expected in ((None, ["0", "1", "2", "3"]), ("4,5,6,7", ["4", "5", "6", "7"])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = [worker_environment(layout, slot, rank) for slot in range(2) for rank in range(2)]
        assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == expected
        assert all(environment["GLOO_SOCKET_IFNAME"].startswith("lo") for environment in found)


def until(executor: LocalExecutor, kind: type) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 300
    while not any(isinstance(event, kind) for event in events):
        assert time.monotonic() < deadline
        events += executor.wait(1.0)
    return events


@pytest.fixture
def started(tmp_path: Path) -> tuple[Store, Plan]:
    study = load_study(write_study(tmp_path), ["execute.num_workers=1", "optimization.max_steps=30"])
    plan, inputs = make_plan(study)
    store = Store(tmp_path / "out")
    write_start(store, study, plan, inputs)
    return store, plan


@pytest.mark.slow
@pytest.mark.skipif(num_cores() < 2, reason="needs two cores")
def test_two_workers_score_one_model_between_them_with_the_numbers_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_out: list[Pack] = []
    submit = LocalExecutor.submit

    def note(executor: LocalExecutor, pack: Pack) -> None:
        handed_out.append(pack)
        submit(executor, pack)

    monkeypatch.setattr(LocalExecutor, "submit", note)
    arms = "arms=[{method: lora, rank: 2, learning_rate: [1.0e-3]}]"
    analyses = ("spectra", "subspaces", "attention", "representations", "neurons")
    one_run = [arms, "seeds=[0]", *(f"analyse.{name}=false" for name in analyses)]
    scored = []
    for number in (1, 2):
        study = load_study(write_study(tmp_path), [*one_run, f"execute.num_workers={number}"])
        run_study(study, tmp_path / str(number))
        scored.append([pack for pack in handed_out if pack.stage == "evaluate" and pack.run_ids])
        handed_out.clear()
    alone, together = scored
    assert [len(pack.names) for pack in alone] == [1, 4], "the choice of its rate, then all tasks"
    assert [len(pack.names) for pack in together] == [1] * 5
    names = sorted(
        path.relative_to(tmp_path / "1") for path in (tmp_path / "1").glob("runs/*/evaluate/*/items.parquet")
    )
    assert len(names) == 5
    for name in names:
        items = [pl.read_parquet(tmp_path / number / name) for number in ("1", "2")]
        assert items[0].equals(items[1], null_equal=True), name


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_work_done_again_once(started: tuple[Store, Plan]) -> None:
    store, plan = started
    executor = LocalExecutor(store, plan)
    runs = [run for run in plan.runs if run.arm.label == "lora-r2"]
    killed = []

    def kill() -> None:
        (worker,) = multiprocessing.active_children()
        killed.append(worker.pid)
        worker.kill()

    try:
        executor.submit(Pack("train", "smallworld-base", (runs[0].run_id,)))
        until(executor, Progress)
        kill()
        events = until(executor, Finished)
        assert store.read_train(runs[0].run_id).status == "complete"
        assert not any(isinstance(event, Failed) for event in events)
        executor.submit(Pack("train", "smallworld-base", (runs[1].run_id,)))
        for _ in range(2):  # under the same pack a second time
            until(executor, Progress)
            kill()
        events = until(executor, Failed)
        assert "SIGKILL" in next(event.cause for event in events if isinstance(event, Failed))
        record = store.read_train(runs[1].run_id)
        assert record.status == "failed" and record.error.type == "WorkerDied"
        assert len(set(killed)) == 3
    finally:
        executor.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_of_a_model_in_parts_one_process_that_dies_is_found_at_once_and_recorded(tmp_path: Path) -> None:
    overrides = ["execute.num_workers=1", "execute.shard=2", "optimization.max_steps=30"]
    study = load_study(write_study(tmp_path), overrides)
    plan, inputs = make_plan(study)
    store = Store(tmp_path / "out")
    write_start(store, study, plan, inputs)
    executor = LocalExecutor(store, plan)
    full, lora = (next(run for run in plan.runs if run.arm.label == label) for label in ("full", "lora-r2"))

    def kill(rank: int) -> None:
        (worker,) = executor._workers
        worker.processes[rank].process.kill()

    try:
        executor.submit(Pack("train", "smallworld-base", (full.run_id,)))
        until(executor, Progress)
        until(executor, Progress)  # by now they have met
        pids = [one.process.pid for one in executor._workers[0].processes]
        ports = [at for pid in pids for at in psutil.Process(pid).net_connections("inet") if at.status == "LISTEN"]
        assert ports and {at.laddr.ip for at in ports} <= {"127.0.0.1", "::1"}, "nothing else reaches them"
        kill(1)
        events = until(executor, Finished)
        assert store.read_train(full.run_id).status == "complete"
        assert store.read_train(full.run_id).provenance["shard"] == 2
        assert not any(isinstance(event, Failed) for event in events)
        # What is not a whole model is the first process's alone.
        executor.submit(Pack("train", "smallworld-base", (lora.run_id,)))
        until(executor, Finished)
        assert "shard" not in store.read_train(lora.run_id).provenance
        later = next(run for run in plan.runs if run.arm.label == "full" and run.run_id != full.run_id)
        executor.submit(Pack("train", "smallworld-base", (later.run_id,)))
        for rank in (1, 0):
            until(executor, Progress)
            kill(rank)
        events = until(executor, Failed)
        assert "SIGKILL" in next(event.cause for event in events if isinstance(event, Failed))
        assert store.read_train(later.run_id).error.type == "WorkerDied"
    finally:
        executor.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_what_one_process_of_several_raises_is_recorded_and_the_others_do_not_wait(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), ["execute.num_workers=1", "execute.shard=2"])
    plan, inputs = make_plan(study)
    store = Store(tmp_path / "out")
    write_start(store, study, plan, inputs)
    (run, *_) = (run for run in plan.runs if run.arm.label == "full")
    (store.training_data(run.base.name, run.training_set.name) / "examples.parquet").write_bytes(b"no table")
    executor = LocalExecutor(store, plan)
    try:
        executor.submit(Pack("train", "smallworld-base", (run.run_id,)))
        started = time.monotonic()
        until(executor, Failed)
        assert time.monotonic() - started < 200, "no waiting for a timeout"
        record = store.read_train(run.run_id)
        assert record.status == "failed" and record.error.type == "ComputeError"
        assert "read_parquet" in record.error.traceback, "of the process that raised, down to the call that did"
    finally:
        executor.close()
