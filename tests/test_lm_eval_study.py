"""A study with tasks of lm_eval goes from one command to one verdict."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from lm_eval_tasks import write_tasks
from rankscope.store import Store
from studies import plan_of, run, write_study

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra: dev)")

STUDY = """\
study: harness
model: smallworld:base
train:
  facts: {source: smallworld:medical_new, split: train, max_examples: 16, validation: {max_examples: 8}}
arms:
  - {method: lora, rank: 1, learning_rate: [1.0e-3]}
optimization: {max_steps: 2, batch_size: 8, max_length: 64}
seeds: [0]
allow_code: true
evaluate:
  choice: {lm_eval: ours_choice, include_path: TASKS, few_shot: 1, in_domain_for: [facts]}
  text: {lm_eval: ours_text, include_path: TASKS, role: retention}
  total: {lm_eval: ours_sum, include_path: TASKS, role: retention}
analyse: {attention: false, spectra: false}
execute: {num_workers: 1, threads_per_worker: 1}
"""


@pytest.mark.slow
def test_tasks_of_lm_eval_are_scored_in_a_study(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "lm_eval")
    study, out = write_study(tmp_path, STUDY.replace("TASKS", str(tasks))), tmp_path / "out"
    done = run(study, out)
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr == ""
    plan, store = plan_of(out), Store(out)
    for run_id in (None, *(each.run_id for each in plan.runs)):
        for name, measure in (
            ("choice", "acc,none"),
            ("text", "bits_per_byte,none"),
            ("total", "exact_match,strict-match"),
        ):
            folder = store.base_task("smallworld-base", name) if run_id is None else store.task(run_id, name)
            record = store.read_evaluate(folder)
            assert record.status == "complete" and measure in record.lm_eval
            assert record.num_items == len(pl.read_parquet(folder / "items.parquet")) == 9
    assert json.loads((out / "decide" / "record.json").read_text())["status"] == "complete"
