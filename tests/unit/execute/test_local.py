"""Worker processes: each with its device, replaced when it dies, its work done again."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rankscope.execute.events import Event, Failed, Finished, Progress
from rankscope.execute.local import _SHARED_MODULES, LocalExecutor, can_share_imports, worker_environment
from rankscope.pipeline import _write_start
from rankscope.plan import Layout, Pack, Plan
from rankscope.planning import make_plan
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


@pytest.mark.parametrize(
    ("device", "num_workers", "is_shared"), [("cpu", 2, True), ("cpu", 1, False), ("cuda", 2, False), ("mps", 1, False)]
)
def test_several_workers_on_a_processor_are_forked_from_one(device: str, num_workers: int, is_shared: bool) -> None:
    layout = Layout(device=device, num_workers=num_workers, threads_per_worker=1)
    assert can_share_imports(layout) is (is_shared and sys.platform == "linux")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_what_workers_are_forked_from_has_no_threads() -> None:
    """A fork of a process with threads can hang in a lock that nobody will release."""
    code = f"""
        import importlib, threading
        from pathlib import Path
        for name in {_SHARED_MODULES!r}:
            importlib.import_module(name)
        print(len(list(Path("/proc/self/task").iterdir())))
    """
    environment = os.environ | worker_environment(Layout(device="cpu", num_workers=2, threads_per_worker=1), 0)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.split()[-1] == "1"


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
    _write_start(store, study, plan, inputs)
    return store, plan


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
