"""A full disk stops a study with its cause and mend; nothing is lost or taken for a failure, and it goes on later."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.cli import DONE, SOME_FAILED, UNDECIDED
from studies import assert_same_results, run, status, write_study

ENOUGH = "200m"


def remount(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_study_and_more_space_lets_it_go_on(
    whole: Path, small_disk: Path, tmp_path: Path
) -> None:
    study, out = write_study(tmp_path), small_disk / "out"
    # Full in preparing, in training, in scoring and analysis, and in the report: each time a little later.
    used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    report = sum(path.stat().st_size for path in (whole / "report").rglob("*") if path.is_file())
    sizes = [40_000, used // 4, used // 2, used - report // 2]
    for size in sizes:
        remount(small_disk, f"{size // 4096 * 4096}")
        done = run(study, out)
        assert done.returncode == SOME_FAILED, done.stdout + done.stderr
        assert "the disk is full" in done.stderr and "mend: make space" in done.stderr
        assert "Traceback" not in done.stderr
        if (out / "plan.json").exists():
            assert "failed" not in status(out)["counts"]
        for path in out.rglob("record.json"):
            assert json.loads(path.read_text())["status"] != "failed", path
    assert list(out.glob("runs/*/train/record.json"))  # something had been done when it stopped
    remount(small_disk, ENOUGH)
    done = run(study, out)
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    assert_same_results(whole, out)
