"""What a study will do, known before a model is loaded: runs, tasks, data, layout, cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from rankscope.records import FORMAT_VERSION, Frozen
from rankscope.runs import BaseSettings, RunSettings, TaskSettings


class DataSummary(Frozen):
    """What was understood of one training set or task for one base, before anything is trained.

    Attributes:
        name: The training set's or task's name in the study file.
        role: `train`, `validation` or `task`.
        form: What the rows were taken for, for example `question_answer` or `multiple_choice`.
        sample: One item decoded from its tokens; in `sample_trained` the part that is learned.
    """

    base: str
    name: str
    role: Literal["train", "validation", "task"]
    source: str
    form: str
    num_rows: int
    num_used: int
    num_truncated: int
    num_duplicates: int
    num_tokens: int
    num_scored_tokens: int
    longest_tokens: int
    sample_prompt: str
    sample_trained: str


class Layout(Frozen):
    """Where work runs; replayed from plan.json, so that a study repeats bit for bit."""

    device: str
    num_workers: int
    threads_per_worker: int


class Estimate(Frozen):
    """What the study will cost, before it starts; None where it cannot be said."""

    trained_tokens: int
    scored_tokens: int
    arithmetic: float
    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int


class Plan(Frozen):
    """plan.json: everything that the stages and the report need to know of a study.

    Attributes:
        tasks: By base, the tasks of the study file in its order.
        validation: By base and then training set, the task on which its rates are chosen.
        relations: By training set and then task: in_domain, out_of_domain or retention.
        runs: All candidates with all seeds; which of the later seeds run is decided by rates.json.
        search_seeds: The seeds on which rates are chosen.
    """

    format_version: int = FORMAT_VERSION
    study: str
    bases: dict[str, BaseSettings]
    arms: tuple[str, ...]
    tasks: dict[str, dict[str, TaskSettings]]
    validation: dict[str, dict[str, TaskSettings]]
    relations: dict[str, dict[str, Literal["in_domain", "out_of_domain", "retention"]]]
    runs: tuple[RunSettings, ...]
    search_seeds: tuple[int, ...]
    layout: Layout
    dtype: str
    max_tokens_per_batch: int
    checkpoint_seconds: float
    num_probe_texts: int
    analyses: tuple[Literal["spectra", "attention"], ...]
    estimate: Estimate
    data: tuple[DataSummary, ...] = ()
    warnings: tuple[str, ...] = ()
    smallest_difference: dict[str, float] = Field(default_factory=dict)

    def run(self, run_id: str) -> RunSettings:
        """The run of that name.

        Raises:
            KeyError: The plan has no such run.
        """
        for run in self.runs:
            if run.run_id == run_id:
                return run
        raise KeyError(run_id)


VALIDATION = "validation"  # the folder of a run's scores on its training set's validation items


def validation_task(training_set: str) -> str:
    """The name of the folder with the base's scores on a training set's validation items."""
    return f"{VALIDATION}-{training_set}"


@dataclass(frozen=True)
class Pack:
    """Work of one stage for runs that share a base, handed to one worker; no runs means the base itself.

    Attributes:
        names: The tasks to score, or the analyses to make; empty when training.
    """

    stage: Literal["train", "evaluate", "analyse"]
    base: str
    run_ids: tuple[str, ...]
    names: tuple[str, ...] = ()
