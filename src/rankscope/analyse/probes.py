"""The probe texts of a base in batches that are the same for every model of it, so that rounding is too."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from rankscope.internals.patterns import Batch, batches


@dataclass(frozen=True)
class TaskBatch:
    """A batch of one task's texts.

    Attributes:
        probe_ids: Of each row of the batch.
    """

    task: str
    batch: Batch
    probe_ids: tuple[str, ...]


def task_batches(probes: pl.DataFrame, max_tokens: int) -> list[TaskBatch]:
    """The probe texts, each task's in batches of its own.

    Args:
        probes: `probe_id`, `source` (the task) and `input_ids`.
        max_tokens: As `batches`.
    """
    made = []
    for (task,), frame in probes.group_by(["source"], maintain_order=True):
        # Longest first, as `batches` has them: so the rows are known.
        ordered = frame.sort(pl.col("input_ids").list.len(), descending=True, maintain_order=True)
        ids, start = ordered["probe_id"].to_list(), 0
        for batch in batches(ordered["input_ids"].to_list(), max_tokens):
            made.append(TaskBatch(str(task), batch, tuple(ids[start : start + len(batch.lengths)])))
            start += len(batch.lengths)
    return made
