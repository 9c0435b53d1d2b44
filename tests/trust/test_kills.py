"""`kill -9` at random moments, over all stages: the same command finishes, with the same results."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from rankscope.cli import DONE, UNDECIDED
from rankscope.status import study_status
from rankscope.store import Store
from studies import COMMAND, assert_same_results, run, status_text, write_study

MIN_KILLS = 20
SEED = 20
# What each kill waits to see on disk, so that the moments spread over the stages however fast the machine is; then it
# waits a random while more. Two studies are killed so, one after another; `start` is the program's own start.
STAGES = (
    "start", "train", "train", "train", "evaluate", "evaluate", "evaluate", "analyse", "analyse", "decide", "report",
)  # fmt: skip
NUM_STUDIES = 2
WHO = ("driver", "worker", "group")
FORKED = ("spawn_main", "forkserver")  # what multiprocessing starts


def progress(out: Path) -> dict[str, tuple]:
    """What is on disk of each stage; whatever changes says that the stage is at work."""
    patterns = {
        "train": ("runs/*/train/steps.jsonl", "runs/*/train/checkpoint/*", "runs/*/train/record.json"),
        "evaluate": ("*/*/evaluate/*/record.json",),
        "analyse": ("*/*/analyse/*/record.json", "base/*/analyse/attention/*patterns*/*"),
        "decide": ("decide/record.json", "decide/.*.tmp", "decide/comparisons.parquet"),
        "report": ("report/tables/*", "report/figures/*", "report/index.html"),
    }
    found = {}
    for stage, globs in patterns.items():
        stats = []
        for path in (path for name in globs for path in out.glob(name)):
            try:
                stats.append((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        found[stage] = tuple(sorted(stats))
    return found


def wait_for(stage: str, out: Path, process: subprocess.Popen, before: dict[str, tuple]) -> bool:
    """Wait until a stage has written something in this call; False where the study ended before."""
    while process.poll() is None:
        if stage == "start" or progress(out)[stage] != before[stage]:
            return True
        time.sleep(0.01)
    return False


def kill(process: subprocess.Popen, who: str, generator: random.Random) -> None:
    if who == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif who == "driver":
        process.kill()
    else:
        children = psutil.Process(process.pid).children(recursive=True)
        # The server that workers are forked from looks like them; without it those that are there go on.
        workers = [child for child in children if is_forked(child)]
        if workers:  # else they have all just ended, and the driver dies a moment later
            with contextlib.suppress(psutil.NoSuchProcess):
                generator.choice(workers).kill()


def is_forked(child: psutil.Process) -> bool:
    try:
        return any(word in " ".join(child.cmdline()) for word in FORKED)
    except psutil.NoSuchProcess:  # it has just ended
        return False


def killed(study: Path, out: Path, stage: str, generator: random.Random) -> str | None:
    """One call of the study with a kill in it; the stage that was at work, or None where it ended before."""
    who = generator.choice(WHO if stage in {"train", "evaluate", "analyse"} else ("driver", "group"))
    before = progress(out)
    process = subprocess.Popen(
        [*COMMAND, "run", str(study), "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        if not wait_for(stage, out, process, before):
            return None
        time.sleep(generator.uniform(0.0, 3.0 if stage == "start" else 0.4))
        if process.poll() is not None:
            return None
        kill(process, who, generator)
        if who == "worker":
            # The study goes on without it; it is killed a little later, so that there is something left to kill.
            time.sleep(generator.uniform(0.0, 1.0))
            process.kill()
        process.wait(timeout=60)
        return f"{stage} ({who})"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
        process.stderr.close()


@pytest.mark.slow
def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    generator = random.Random(SEED)
    study = write_study(tmp_path)
    hits: Counter[str] = Counter()
    for number in range(NUM_STUDIES):
        out = tmp_path / f"out{number}"
        for stage in STAGES:
            if (hit := killed(study, out, stage, generator)) is not None:
                hits[hit] += 1
        done = run(study, out)
        assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr + status_text(out)
        assert study_status(Store(out))["counts"] == {"done": 5}
        assert_same_results(whole, out)
        assert not [*out.rglob("*.tmp"), *out.rglob("checkpoint")]
    print("killed in", dict(hits))
    assert sum(hits.values()) >= MIN_KILLS
    stages = {name.split()[0] for name in hits}
    assert {"train", "evaluate", "analyse"} <= stages and stages & {"decide", "report"}
