"""rankscope's side of a part: the package's own plan, workers and stages, with nothing switched off."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import psutil

from rankscope.board import Board
from rankscope.execute.events import Failed, Halted
from rankscope.execute.local import LocalExecutor
from rankscope.plan import Pack, Plan
from rankscope.records import Rates
from rankscope.schedule import ready_packs, shared_out
from rankscope.store import Store, read_model

STAGES = {"training": ("train",), "scoring": ("evaluate",), "text": ("evaluate",), "spectra": ("analyse",)}


def main() -> None:
    """Do one part of the work and write how long it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[*STAGES])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    trained = arguments.folder / "trained"
    if arguments.part == "training":
        shutil.rmtree(trained, ignore_errors=True)
        shutil.copytree(arguments.folder / "study", trained)
    store = Store(trained)
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise FileNotFoundError(store.plan_file)
    for stage in ("evaluate", "analyse"):
        if stage in STAGES[arguments.part]:
            _forget(store, plan, stage)
    executor = LocalExecutor(store, plan)
    (base,) = plan.bases
    # The other stack's libraries are imported before its clock starts, too.
    _carry_out(executor, plan, [Pack("evaluate", base, (), ())] * plan.layout.num_workers)
    packs = _packs(plan, base, arguments.part)
    started, processor_started = time.perf_counter(), _processor_seconds()
    _carry_out(executor, plan, packs)
    seconds, processor = time.perf_counter() - started, _processor_seconds() - processor_started
    executor.close()
    arguments.out.write_text(json.dumps({"seconds": seconds, "processor_seconds": processor}))


def _processor_seconds() -> float:
    """What this process and its workers have used of the processors so far."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _packs(plan: Plan, base: str, part: str) -> list[Pack]:
    if part == "training":
        ready = ready_packs(plan, Board(), Rates(), pack_size=plan.layout.pack_size)
        packs = [pack for pack in ready if pack.stage == "train"]
        # The other stack trains every run once; a run that waits for something would be work that only it does.
        if sorted(run_id for pack in packs for run_id in pack.run_ids) != sorted(run.run_id for run in plan.runs):
            raise RuntimeError("the packs that are ready do not hold every run of the plan once")
        return packs
    run_ids = [run.run_id for run in sorted(plan.runs, key=lambda run: run.arm.method != "full")]
    if part == "spectra":
        return [Pack("analyse", base, (run_id,), ("spectra", "subspaces")) for run_id in run_ids]
    is_text = part == "text"
    names = tuple(name for name, task in plan.tasks[base].items() if (task.scoring == "loss") == is_text)
    return [Pack("evaluate", base, run, names) for run in ((), *((run_id,) for run_id in run_ids))]


def _carry_out(executor: LocalExecutor, plan: Plan, packs: list[Pack]) -> None:
    waiting = list(packs)
    while waiting or executor.in_flight:
        while waiting and executor.num_idle:
            waiting = shared_out(plan, waiting)
            executor.submit(waiting.pop(0))
        for event in executor.wait(1.0):
            if isinstance(event, (Failed, Halted)):
                raise RuntimeError(event.cause)


def _forget(store: Store, plan: Plan, stage: str) -> None:
    """Remove what an earlier repetition scored or analysed."""
    for run in plan.runs:
        shutil.rmtree(store.run(run.run_id) / stage, ignore_errors=True)
    for base in plan.bases:
        for record in (store.base(base) / stage).rglob("record.json"):
            record.unlink()
        for name in ("spectra", "subspaces"):
            shutil.rmtree(store.base_analysis(base, name), ignore_errors=True)


if __name__ == "__main__":
    main()
