"""The tiny study that many tests run through real processes, and what they ask of its directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil

from rankscope.layout import num_cores
from rankscope.plan import Plan
from rankscope.store import Store, read_model

STUDY = """\
study: tiny
model: smallworld:base
train:
  facts:
    source: smallworld:medical_new
    split: train
    max_examples: 32
    validation: {source: smallworld:medical_new, split: validation, max_examples: 8}
arms:
  - {method: full, learning_rate: [1.0e-3]}
  - {method: lora, rank: 2, learning_rate: [1.0e-3, 3.0e-3]}
optimization: {max_steps: 8, batch_size: 8, max_length: 64}
seeds: [0, 1]
evaluate:
  facts: {source: smallworld:medical_new, split: test, max_examples: 16, in_domain_for: [facts]}
  problems: {source: smallworld:general_reasoning, split: test, max_examples: 4, scoring: generate, max_new_tokens: 12}
  recall: {source: smallworld:general_recall, split: test, max_examples: 16, role: retention}
  text: {source: smallworld:general_text, split: test, max_examples: 8, role: retention}
analyse: {num_probe_texts: 6}
execute: {num_workers: WORKERS, threads_per_worker: 1, checkpoint_seconds: 0}
""".replace("WORKERS", str(min(2, num_cores())))
COMMAND = [sys.executable, "-m", "rankscope"]
TOKENS = {"HF_TOKEN": "hf_MARKERxMARKERxMARKERxMARKER", "WANDB_API_KEY": "wandbMARKERxMARKERxMARKER"}


@dataclass(frozen=True)
class Watched:
    """A finished study and what was seen of it.

    Attributes:
        listening: Open ports of the driver or a worker, over all looks.
        num_processes: The most processes seen at once.
    """

    study: Path
    out: Path
    returncode: int
    stdout: str
    stderr: str
    listening: list[str]
    num_processes: int


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run(
    study: Path, out: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`rankscope run` in a process of its own."""
    command = [*COMMAND, "run", str(study), "--out", str(out), *arguments]
    surroundings = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=570, env=surroundings)


def status(out: Path) -> dict:
    """`rankscope status --json`."""
    command = [*COMMAND, "status", str(out), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def status_text(out: Path) -> str:
    """`rankscope status` as a person sees it."""
    command = [*COMMAND, "status", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def plan_of(out: Path) -> Plan:
    plan = read_model(Store(out).plan_file, Plan)
    assert plan is not None
    return plan


def assert_same_results(first: Path, second: Path) -> None:
    """Weights, items and verdicts are the same, bit for bit; times and dates are not compared."""
    caches = {"patterns", "streams"}
    weights = [p.relative_to(first) for p in sorted(first.rglob("*.safetensors")) if not caches & set(p.parts)]
    assert len(weights) > 6
    for name in weights:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    tables = [path.relative_to(first) for path in sorted(first.rglob("*.parquet"))]
    assert len(tables) > 20
    for name in tables:
        assert pl.read_parquet(first / name).equals(pl.read_parquet(second / name), null_equal=True), name
    verdicts = [json.loads((out / "decide" / "record.json").read_text())["verdicts"] for out in (first, second)]
    assert verdicts[0] == verdicts[1]


def watched_run(folder: Path) -> Watched:
    """Run the tiny study with secrets in its environment, looking at its processes all the while."""
    study, out = write_study(folder), folder / "out"
    command = [*COMMAND, "run", str(study), "--out", str(out)]
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env={**os.environ, **TOKENS})
    listening, num_processes = [], 0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            num_processes = max(num_processes, len(family))
            for member in family:
                listening += [str(c) for c in member.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        except psutil.Error:
            pass  # one of them has just ended
        time.sleep(0.1)
    texts = ((folder / name).read_text() for name in ("stdout", "stderr"))
    return Watched(study, out, process.returncode, *texts, listening, num_processes)
