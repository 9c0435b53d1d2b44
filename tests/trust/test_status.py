"""What is shown is true: every failure is in the status, and a report takes in nothing that is damaged."""

from __future__ import annotations

import json
import time
from pathlib import Path

import polars as pl

from rankscope.execute.failures import failure_of, record_failure
from rankscope.leases import occupy
from rankscope.plan import Pack
from rankscope.report.reading import read_contents
from rankscope.status import study_status
from rankscope.store import write_record, write_text
from rankscope.terminal import status_lines
from synthetic import write_study


def test_a_failure_of_the_base_itself_is_shown(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    assert study_status(made.store)["failures"] == []
    task = next(iter(made.plan.tasks["small"]))
    (made.store.base_task("small", task) / "record.json").unlink()
    failure = failure_of(RuntimeError("out of memory"))
    record_failure(made.store, made.plan, Pack("evaluate", "small", (), (task,)), failure)
    state = study_status(made.store)
    expected = {"base": "small", "run": None, "stage": "evaluate", "name": task, "error": "RuntimeError: out of memory"}
    assert state["failures"] == [expected]
    assert any("FAILED" in line and "base small" in line and "out of memory" in line for line in status_lines(state))


def test_a_failure_of_one_task_leaves_the_tasks_before_it_alone(tmp_path: Path) -> None:
    """A pack holds several tasks; the first without a good record is the one that failed."""
    made = write_study(tmp_path)
    run = made.plan.runs[0]
    names = tuple(made.plan.tasks["small"])
    for name in names[1:]:
        (made.store.task(run.run_id, name) / "record.json").unlink(missing_ok=True)
    failure = failure_of(RuntimeError("cause"))
    record_failure(made.store, made.plan, Pack("evaluate", "small", (run.run_id,), names), failure)
    failed = [failure for failure in study_status(made.store)["failures"] if failure["run"] == run.run_id]
    assert [(failure["stage"], failure["error"]) for failure in failed] == [("evaluate", "RuntimeError: cause")]


def test_a_report_made_by_itself_names_damaged_scores_and_shows_none_of_them(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    task = next(iter(made.plan.tasks["small"]))
    path = made.store.base_task("small", task) / "items.parquet"
    assert task in read_contents(made.store).prompts["task"]
    frame = pl.read_parquet(path)
    frame.with_columns(~pl.col("is_correct")).write_parquet(path)  # a table that reads well, and is not what was scored
    contents = read_contents(made.store)
    (missing,) = [one for one in contents.missing if one.source == str(path.relative_to(made.store.root))]
    assert "checksum" in missing.why
    assert len(contents.prompts) and task not in contents.prompts["task"]


def test_a_run_that_was_interrupted_is_said_to_go_on_from_its_checkpoint(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    run = made.plan.runs[0]
    record = made.store.read_train(run.run_id)
    write_record(made.store.train(run.run_id), record.model_copy(update={"status": "interrupted"}), [])
    state = study_status(made.store)
    (row,) = [row for row in state["runs"] if row["run"] == run.run_id]
    assert (row["state"], row["stage"], state["state"]) == ("interrupted", "train", "stopped")
    first, *lines = status_lines(state)
    assert "1 interrupted" in first
    assert f"  stopped  {run.run_id}: goes on from its checkpoint" in lines
    assert any("goes on where it stopped" in line for line in lines)


def test_scoring_the_base_is_shown_while_it_runs(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    row = {"run": "small", "stage": "evaluate", "done": 1, "total": 4, "loss": None}
    other = {**row, "done": 0}  # another worker at tasks of the same model
    document = {"time": time.time(), "runs": [row, other]}
    with occupy(made.store, share=False):
        write_text(made.store.root / "running" / "here-1.json", json.dumps(document))
        state = study_status(made.store)
    assert state["in_flight"] == [row, other]
    assert {"  running  small: evaluate 1/4", "  running  small: evaluate 0/4"} <= set(status_lines(state))
