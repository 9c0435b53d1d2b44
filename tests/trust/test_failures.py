"""What fails is recorded with its cause, shown and not repeated; what diverges is a result; the rest goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rankscope.cli import DONE, SOME_FAILED, UNDECIDED
from rankscope.records import DecideRecord
from rankscope.store import Store
from studies import STUDY, run, status, status_text, write_study

RAISES, DIES, DIVERGES = 3e-3, 2e-3, 1e8
ARMS = f"""\
arms:
  - {{method: full, learning_rate: [1.0e-3, {DIVERGES}]}}
  - {{method: lora, rank: 2, learning_rate: [1.0e-3, {RAISES}]}}
  - {{method: lora, rank: 4, learning_rate: [{DIES}]}}
  - {{method: lora, rank: 1, learning_rate: [{DIVERGES}, 2.0e+8]}}
"""
BROKEN = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "breaking"), os.environ.get("PYTHONPATH", "")]),
    "RAISE_AT": str(RAISES),
    "DIE_AT": str(DIES),
    "NOISE": "1",
    "PYTHONUNBUFFERED": "",  # as it is for most people: what is printed waits for its flush
}


def study_text() -> str:
    before, _, rest = STUDY.partition("arms:\n")
    _, _, after = rest.partition("optimization:")
    text = f"{before}{ARMS}optimization:{after}"
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("problems:")]
    return "\n".join(lines).replace("num_probe_texts: 6", "spectra: false, attention: false") + "\n"


def row(out: Path, arm: str, rate: float, seed: int = 0) -> dict:
    (found,) = [
        row for row in status(out)["runs"] if (row["arm"], row["learning_rate"], row["seed"]) == (arm, rate, seed)
    ]
    return found


def decided(out: Path) -> DecideRecord:
    record = Store(out).read_decide()
    assert record is not None
    return record


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A study of which one run raised and one was killed, twice; and what it said."""
    folder = tmp_path_factory.mktemp("broken")
    study = write_study(folder, study_text())
    done = run(study, folder / "out", environment=BROKEN)
    assert done.returncode == SOME_FAILED, done.stdout + done.stderr
    return study, folder / "out", done.stdout + done.stderr


@pytest.mark.slow
def test_failures_are_recorded_shown_and_not_repeated(broken: tuple[Path, Path, str]) -> None:
    study, out, said = broken
    raised, died = row(out, "lora-r2", RAISES), row(out, "lora-r4", DIES)
    assert (raised["state"], raised["stage"]) == (died["state"], died["stage"]) == ("failed", "train")
    assert raised["error"] == "ArithmeticError: planted: this rate is cursed"
    assert "SIGKILL" in died["error"] and died["error"].startswith("WorkerDied")
    record = Store(out).read_train(raised["run"])
    assert record is not None and record.error is not None
    assert "in _broken" in record.error.traceback  # where it was raised
    text, page = status_text(out), (out / "report" / "index.html").read_text(encoding="utf-8")
    for shown in (said, text, page):
        assert "this rate is cursed" in shown and "SIGKILL" in shown
    # The rest went on, on both seeds.
    for arm in ("full", "lora-r2"):
        assert [row(out, arm, 1e-3, seed)["state"] for seed in (0, 1)] == ["done", "done"]
    # An arm whose only rate failed has no score, and says why.
    (standing,) = [arm for arm in decided(out).verdicts[0].arms if arm.arm == "lora-r4"]
    assert standing.gain is None and "0.002 failed" in standing.reason
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("record.json")}
    again = run(study, out)  # nothing is broken any more, but nobody asked
    assert again.returncode == SOME_FAILED
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("record.json")} == before
    assert "--retry-failed" in again.stdout


@pytest.mark.slow
def test_libraries_write_to_the_log_of_the_run_only(broken: tuple[Path, Path, str]) -> None:
    _, out, said = broken
    assert "planted warning" not in said and "planted log" not in said and "planted print" not in said
    log = (out / "runs" / row(out, "lora-r2", 1e-3)["run"] / "log.txt").read_text()
    for kind in ("warning", "log", "print"):
        assert f"planted {kind}" in log
    assert "this rate is cursed" in (out / "runs" / row(out, "lora-r2", RAISES)["run"] / "log.txt").read_text()


@pytest.mark.slow
def test_what_failed_is_tried_again_when_asked_and_divergence_is_no_failure(broken: tuple[Path, Path, str]) -> None:
    study, out, _ = broken
    done = run(study, out, "--retry-failed")
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    for arm, rate in (("lora-r2", RAISES), ("lora-r4", DIES)):
        assert row(out, arm, rate)["state"] == "done" and row(out, arm, rate)["error"] is None
    # The choice among the rates of lora-r2 was made anew, both being known now.
    (choice,) = [choice for choice in Store(out).read_rates().choices if choice.arm == "lora-r2"]
    assert all(score is not None for score in choice.scores.values())
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "this rate is cursed" not in page
    # Diverged: at one rate of full fine-tuning, and at every rate of one arm.
    assert row(out, "full", DIVERGES)["state"] == "diverged"
    record = Store(out).read_train(row(out, "full", DIVERGES)["run"])
    assert record is not None and record.status == "diverged" and record.diverged_at_step is not None
    (choice,) = [choice for choice in Store(out).read_rates().choices if choice.arm == "full"]
    assert choice.learning_rate == 1e-3
    assert choice.scores[f"{DIVERGES:g}"] is None and choice.losses[f"{DIVERGES:g}"] is None
    (standing,) = [arm for arm in decided(out).verdicts[0].arms if arm.arm == "lora-r1"]
    assert (standing.gain, standing.forgetting, standing.learning_rate) == (None, None, None)
    assert "1e+08 diverged" in standing.reason and "2e+08 diverged" in standing.reason
    assert any("lora-r1" in text and "diverged" in text for text in decided(out).verdicts[0].warnings)
    assert "diverged" in page and "diverged" in status_text(out)
    shown = json.dumps(status(out))
    assert "NaN" not in shown and "Infinity" not in shown
