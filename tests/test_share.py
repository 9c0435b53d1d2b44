"""Several processes work on one study directory, one of them is killed, and the results are those of one alone."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from rankscope import pipeline
from rankscope.cli import DONE, UNDECIDED
from rankscope.plan import Layout, Plan
from rankscope.study_file import load_study
from studies import COMMAND, assert_same_results, run, write_study


@pytest.mark.slow
def test_four_processes_share_a_study_and_one_is_killed(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    alone, out = tmp_path / "alone", tmp_path / "out"
    layout = ["--set", "execute.num_workers=1"]
    assert run(study, alone, *layout).returncode in {DONE, UNDECIDED}
    command = [*COMMAND, "run", str(study), "--out", str(out), "--share", *layout]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    while not any(len(path.read_text().splitlines()) >= 2 for path in out.glob("runs/*/train/steps.jsonl")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    trainers = [path.name for path in out.glob("leases/train-*.json")]
    assert trainers
    processes[0].send_signal(signal.SIGKILL)
    said = [process.communicate(timeout=500)[0] for process in processes][1:]
    for process, text in zip(processes[1:], said, strict=True):
        assert process.returncode in {DONE, UNDECIDED}, text
    assert_same_results(alone, out)
    trained = [line for text in said for line in text.splitlines() if line.startswith("trained smallworld")]
    assert len(trained) == len(set(trained)), "two processes trained the same run"
    assert not list((out / "leases").glob("train-*.json"))


class Planned(Exception):
    """Stops a study where its plan is shown."""


class Stopping(pipeline.Silent):
    """A display that shows nothing and goes no further than the plan."""

    def planned(self, plan: Plan, remarks: list[str]) -> None:
        said = [text for text in remarks if "packs" in text]
        assert not (said and plan.layout.pack_words), "packs are shown and denied at once"
        raise Planned(*said)


@pytest.mark.parametrize(
    ("backend", "share", "pack_size", "is_said"),
    [
        ("local", True, 2, True),
        ("ray", False, 2, True),
        ("local", False, 2, False),
        ("local", True, "auto", False),
        ("ray", False, 1, False),
    ],
)
def test_packs_that_are_not_made_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, share: bool, pack_size: int | str, is_said: bool
) -> None:
    cluster = Layout(device="cpu", num_workers=1, threads_per_worker=1)
    monkeypatch.setattr(pipeline, "cluster_layout", lambda _: cluster)
    execute = [f"execute.backend={backend}", f"execute.pack_size={pack_size}"]
    study = load_study(write_study(tmp_path), execute)
    with pytest.raises(Planned) as caught:
        pipeline.run_study(study, tmp_path / "out", Stopping(), share=share)
    said = "LoRA runs go one at a time here: packs (of 2) are made without --share and on one machine only"
    assert caught.value.args == ((said,) if is_said else ())


def test_packs_that_a_measurement_chose_and_that_are_not_made_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_study: object, plan: Plan, *_: object) -> Plan:
        return plan.model_copy(update={"layout": plan.layout.model_copy(update={"pack_size": 4})})

    monkeypatch.setattr(pipeline, "_with_measured_layout", measured)
    study = load_study(write_study(tmp_path), ["execute.measure=true"])
    for share, number in ((True, 1), (False, 0)):
        with pytest.raises(Planned) as caught:
            pipeline.run_study(study, tmp_path / str(share), Stopping(), share=share)
        assert len(caught.value.args) == number and all("packs (of 4)" in text for text in caught.value.args)
