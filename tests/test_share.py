"""Several processes work on one study directory, one of them is killed, and the results are those of one alone."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED
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
