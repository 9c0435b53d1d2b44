"""Whatever is damaged is detected, named and made again, with the same results; it is never read as data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED
from rankscope.store import Store
from studies import assert_same_results, plan_of, run, write_study


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def chosen(out: Path, arm: str, seed: int) -> Path:
    """The folder of an arm's run at its chosen rate."""
    rates = {choice.arm: choice.learning_rate for choice in Store(out).read_rates().choices}
    (settings,) = [
        run for run in plan_of(out).runs if (run.arm.label, run.seed, run.learning_rate) == (arm, seed, rates[arm])
    ]
    return Store(out).run(settings.run_id)


def better(path: Path) -> None:
    """Give a task another score than its items say."""
    content = json.loads(path.read_text())
    content["values"]["accuracy"] = 0.99
    path.write_text(json.dumps(content, indent=1))


def damages(out: Path) -> list[tuple[Path, Callable[[Path], None]]]:
    """What is done to which file: weights, scores, inputs, records, plan, choices, caches."""
    base = out / "base" / "smallworld-base"
    lora, full = chosen(out, "lora-r2", 0), chosen(out, "full", 1)
    return [
        (lora / "train" / "adapter" / "adapter_model.safetensors", flip),
        (full / "train" / "model" / "model.safetensors", flip),
        (chosen(out, "full", 0) / "train" / "steps.jsonl", flip),
        (chosen(out, "lora-r2", 1) / "train" / "record.json", cut),
        (lora / "evaluate" / "recall" / "items.parquet", flip),
        (lora / "evaluate" / "facts" / "record.json", cut),
        (full / "evaluate" / "text" / "items.parquet", Path.unlink),
        (full / "evaluate" / "facts" / "record.json", better),
        (full / "analyse" / "spectra" / "matrices.parquet", flip),
        (full / "analyse" / "attention" / "record.json", cut),
        (base / "evaluate" / "facts" / "items.parquet", flip),
        (base / "evaluate" / "recall" / "prompts.parquet", cut),
        (base / "train" / "facts" / "examples.parquet", cut),
        (base / "probes.parquet", cut),
        (base / "analyse" / "attention" / "heads.parquet", flip),
        (out / "plan.json", cut),
        (out / "study.yaml", lambda path: path.write_text("study: [tiny")),
        (out / "decide" / "rates.json", cut),
    ]


@pytest.mark.slow
def test_damage_of_all_kinds_is_named_and_mended(whole: Path, tmp_path: Path) -> None:
    study, out = write_study(tmp_path), tmp_path / "out"
    shutil.copytree(whole, out)
    planned = damages(out)
    for path, damage in planned:
        damage(path)
    # These are no results and on no record: they carry checksums of their own and are made again when needed.
    (norms,) = (out / "base").glob("*/analyse/spectra/norms-*.json")
    flip(norms)
    assert not list((out / "base").glob("*/analyse/*/patterns"))  # deleted when all was done
    cut(out / "decide" / "record.json")
    with pytest.raises(AssertionError):
        assert_same_results(whole, out)
    done = run(study, out)
    # The study's name is in neither study.yaml nor plan.json now, so nobody can tell whose directory it is.
    assert done.returncode == 2 and "copy the study file there as study.yaml" in done.stderr
    shutil.copy(study, out / "study.yaml")
    done = run(study, out)
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    said = "".join(done.stdout.split())  # lines are wrapped
    unnamed = [path for path, _ in planned if str(path) not in said]
    assert unnamed == [out / "study.yaml"]
    assert_same_results(whole, out)
    again = run(study, out)
    assert "damaged" not in again.stdout and "again" not in again.stdout and "checksum" not in again.stdout


@pytest.mark.slow
def test_a_damaged_study_file_alone_is_written_again(whole: Path, tmp_path: Path) -> None:
    study, out = write_study(tmp_path), tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "study.yaml").write_text("study: [tiny")
    done = run(study, out)
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    assert str(out / "study.yaml") in "".join(done.stdout.split())
    assert (out / "study.yaml").read_bytes() == (whole / "study.yaml").read_bytes()
    assert_same_results(whole, out)
