"""How the machine is divided is chosen by speeds that are measured; here they are chosen."""

from __future__ import annotations

import dataclasses
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import polars as pl
import pytest

from rankscope.data.examples import Example, examples_frame
from rankscope.execute import trials
from rankscope.execute.trials import TrialError, TrialWork, measured_layout, steps_per_second
from rankscope.layout import layouts_to_try
from rankscope.plan import Layout, Plan
from rankscope.runs import BaseSettings
from rankscope.spec import Execute
from synthetic import write_study
from tiny import examples, lora_run, save_tiny

EXAMPLES = examples(24)


def frame() -> pl.DataFrame:
    return examples_frame(EXAMPLES, [Example(e.example_id, "", "") for e in EXAMPLES], "train")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made = write_study(tmp_path)
    layout = Layout(device="cpu", num_workers=2, threads_per_worker=1)
    return made.plan.model_copy(update={"layout": layout})


def measured(plan: Plan, speeds: dict[tuple[int, int, int], float | None], **execute: object) -> tuple[Layout, list]:
    study = type("Study", (), {"execute": Execute(**execute)})()
    tried = []

    def try_out(work: TrialWork) -> float | None:
        layout = work.layout
        assert len(work.runs) == len(work.examples) == layout.pack_size
        tried.append((layout.num_workers, layout.threads_per_worker, layout.pack_size))
        return speeds[tried[-1]]

    sets = {(run.base.name, run.training_set.name): frame() for run in plan.runs}
    return measured_layout(plan, sets, layouts_to_try(study, plan.layout), try_out), tried


def test_packs_grow_until_they_do_not_pay_in_each_division(plan: Plan) -> None:
    speeds = {(2, 1, 1): 10.0, (2, 1, 2): 9.0, (1, 2, 1): 8.0, (1, 2, 2): 12.0, (1, 2, 4): 12.1}
    layout, tried = measured(plan, speeds)
    assert tried == list(speeds)
    assert (layout.num_workers, layout.threads_per_worker, layout.pack_size) == (1, 2, 4)
    assert [trial.steps_per_second for trial in layout.trials] == list(speeds.values())
    assert layout.device == "cpu"


def test_what_is_hardly_faster_is_not_worth_a_change(plan: Plan) -> None:
    speeds = {(2, 1, 1): 10.0, (2, 1, 2): 10.3, (1, 2, 1): 10.4, (1, 2, 2): 10.4}
    layout, _ = measured(plan, speeds)
    assert (layout.num_workers, layout.threads_per_worker, layout.pack_size) == (2, 1, 1)
    assert len(layout.trials) == 4


def test_what_does_not_fit_is_not_chosen_and_nothing_larger_is_tried(plan: Plan) -> None:
    speeds = {(2, 1, 1): 10.0, (2, 1, 2): None, (1, 2, 1): None}
    layout, tried = measured(plan, speeds)
    assert tried == list(speeds)
    assert layout.pack_size == 1 and len(layout.trials) == 1


def test_only_what_the_study_leaves_open_is_tried(plan: Plan) -> None:
    _, tried = measured(plan, {(2, 1, 1): 10.0, (2, 1, 2): 9.0}, num_workers=2)
    assert tried == [(2, 1, 1), (2, 1, 2)]
    fixed = plan.model_copy(update={"layout": plan.layout.model_copy(update={"pack_size": 3})})
    _, tried = measured(fixed, {(2, 1, 3): 10.0, (1, 2, 3): 9.0}, pack_size=3)
    assert tried == [(2, 1, 3), (1, 2, 3)]


def work(tmp_path: Path, num_workers: int) -> TrialWork:
    folder = save_tiny(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")  # asked for, not read: examples are tokens already
    base = BaseSettings(name="tiny", source=str(folder), revision=None, fingerprint="f")
    runs = tuple(lora_run(rank, 1e-3, seed=0, num_steps=100_000).model_copy(update={"base": base}) for rank in (2, 4))
    layout = Layout(device="cpu", num_workers=num_workers, threads_per_worker=1, pack_size=2)
    return TrialWork(runs, (tuple(EXAMPLES),) * 2, "float32", layout, 8192, seconds=0.3)


def killed(connection: Connection, barrier: Barrier, work: TrialWork) -> None:
    """In the place of what a process does that is timed."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pack_is_timed_in_processes_of_its_own(tmp_path: Path) -> None:
    speed = steps_per_second(work(tmp_path, num_workers=2))
    assert speed is not None and speed > 0


def test_what_libraries_say_meanwhile_does_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bars of loading and deprecations that libraries mean for one another; the processes have this one's terminal."""
    timed = work(tmp_path, num_workers=1)
    capfd.readouterr()
    assert steps_per_second(timed)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    broken = dataclasses.replace(work(tmp_path, num_workers=2), dtype="float7")
    with pytest.raises(TrialError, match="KeyError: 'float7'"):
        steps_per_second(broken)


def test_a_process_that_is_killed_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system kills without a word who takes too much memory."""
    monkeypatch.setattr(trials, "_train", killed)
    assert steps_per_second(work(tmp_path, num_workers=2)) is None
