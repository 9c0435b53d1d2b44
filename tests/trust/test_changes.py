"""A changed study file keeps what is still valid, redoes only what changed, and says which."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED
from rankscope.store import Store
from studies import run, write_study

pytestmark = pytest.mark.slow
STAGES = ("train", "evaluate", "analyse")
ON_TEXTS = ("attention", "representations", "neurons")


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def records(out: Path) -> dict[str, int]:
    """When each record of a stage was written."""
    paths = [path for stage in STAGES for path in out.glob(f"*/*/{stage}/**/record.json")]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in paths}


def changed(study: Path, out: Path, *overrides: str) -> tuple[set[str], str]:
    """The records that a call with other settings wrote, and what it said, on one line."""
    before = records(out)
    done = run(study, out, *[word for override in overrides for word in ("--set", override)])
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    after = records(out)
    assert before.keys() <= after.keys()
    return {name for name, time in after.items() if before.get(name) != time}, " ".join(done.stdout.split())


def parts(names: set[str]) -> set[str]:
    """`runs/<run>/evaluate/recall/record.json` as `evaluate/recall`."""
    return {"/".join(name.split("/")[2:-1]) for name in names}


def test_a_new_task_and_a_changed_task_are_all_that_is_scored(out: Path, tmp_path: Path) -> None:
    new = "evaluate.more={source: smallworld:medical_new, split: test, max_examples: 4}"
    redone, said = changed(write_study(tmp_path), out, new, "evaluate.recall.max_examples=8", "decide.margin=0.03")
    # What is measured on texts drawn from all tasks is measured again: other tasks are other texts.
    on_texts = {f"analyse/{name}" for name in ON_TEXTS}
    assert parts(redone) == {"evaluate/more", "evaluate/recall", *on_texts}
    assert len(redone) == 5 * (1 + 4)  # of the base, and of two arms on two seeds
    again = re.search(r"made with other settings, and done again: (.*?); what is measured on texts", said)
    assert again is not None
    assert set(again[1].split(", ")) == {f"{name.replace('/', ' ')} (5)" for name in ("evaluate/recall", *on_texts)}
    assert "kept from before: 5 trained runs" in said
    record = Store(out).read_decide()
    assert record is not None and "3 points" in record.verdicts[0].rule


def test_another_margin_only_decides_again(out: Path, tmp_path: Path) -> None:
    redone, said = changed(write_study(tmp_path), out, "decide.margin=0.5")
    assert "the study has changed since the last call: decide.margin: 0.02 -> 0.5 " in f"{said} "
    assert redone == set()
    assert "kept from before: 5 trained runs, 24 scores, 23 analyses" in said  # 3 of the base, 5 of each of 4 runs
    record = Store(out).read_decide()
    assert record is not None and "50 points" in record.verdicts[0].rule


def test_changed_training_data_is_trained_on(out: Path, tmp_path: Path) -> None:
    old = {path.name for path in (out / "runs").iterdir()}
    redone, said = changed(write_study(tmp_path), out, "train.facts.max_examples=24")
    assert {name.split("/")[1] for name in redone if name.startswith("runs/")}.isdisjoint(old)
    assert len([name for name in redone if parts({name}) == {"train"}]) == 5
    assert not [name for name in redone if name.startswith("base/")]  # the base's scores are what they were
    assert "examples.parquet: is not what the data are now; it is written again" in said
    assert "no longer part of the study" in said and all(name in said.replace(" ", "") for name in old)


def test_deleted_weights_that_a_new_task_needs_are_trained_again(out: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    weights = {str(path.relative_to(out)): path.read_bytes() for path in out.glob("runs/*/train/*/*.safetensors")}
    assert len(weights) == 5
    redone, _ = changed(study, out, "keep=records")
    assert parts(redone) == {"train"} and not list(out.glob("runs/*/train/*/*.safetensors"))
    new = "evaluate.more={source: smallworld:medical_new, split: test, max_examples: 4}"
    redone, said = changed(study, out, new, *(f"analyse.{name}=false" for name in ON_TEXTS))
    trained = [name.split("/")[1] for name in redone if parts({name}) == {"train"}]
    assert len(trained) == 4 and parts(redone) == {"train", "evaluate/more"}  # a rate not chosen is not needed
    for run_id in trained:
        assert f"{run_id}: its deleted weights are needed, so it is trained again" in said
    for path in out.glob("runs/*/train/*/*.safetensors"):
        assert path.read_bytes() == weights[str(path.relative_to(out))]


def test_a_directory_of_a_newer_version_is_refused(out: Path, tmp_path: Path) -> None:
    path = out / "plan.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99', 1))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    done = run(write_study(tmp_path), out)
    assert done.returncode == 2
    assert "newer rankscope" in done.stderr and "mend: update rankscope" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
