"""Everything that the report is made of, read once from the study directory: records and the tables beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from rankscope.plan import Plan
from rankscope.records import AnalyseRecord, DecideRecord, EvaluateRecord, ForecastRecord, Rates, TrainRecord
from rankscope.spec import Decide


@dataclass(frozen=True)
class Missing:
    """A part that is not there, and why, so that the page can say so instead of leaving a hole."""

    subject: str
    stage: str
    why: str
    source: str


@dataclass(frozen=True)
class Scored:
    """A model's record on one task, and the file it came from."""

    record: EvaluateRecord
    source: str


@dataclass(frozen=True)
class Analysed:
    """An analysis of one model, and the file it came from."""

    record: AnalyseRecord
    source: str


@dataclass(frozen=True)
class Contents:
    """One study as its directory tells it; `source` columns hold paths relative to the study directory.

    Attributes:
        settings: The rule's numbers from study.yaml; None where that file cannot be read.
        trains: By run id, every training record there is, whatever its status.
        steps: The lines of all steps.jsonl: run_id, step, loss_nats_per_token, ..., source.
        prompts: Per base, task and item: the text as scored, and the base's own answer; of losses only what excites
            neurons, from its beginning.
        answers: Per run at a chosen rate, task and item: is_correct and prediction.
        matrices: Per run and matrix: layer, module and the spectral measures.
        subspaces: Per run and matrix: the measures of singular subspaces.
        derived: Per derived model, task and item: its value, the run's and the base's.
        heads: Per run (null: the base), layer and head: the attention measures.
        representations: Per run, layer and task: how like the base's the residual stream is.
        neurons: Per run and layer, over its neurons: the mean size of their shift, how many fell silent or woke.
        most_changed: Per run, the neurons that moved farthest, each with the texts that excite it most.
        missing: What could not be read.
        forecasts: What was expected of each base and training set before anything was trained, where it was asked.
    """

    plan: Plan
    settings: Decide | None
    rates: Rates
    decision: DecideRecord | None
    trains: Mapping[str, TrainRecord]
    steps: pl.DataFrame
    scored: tuple[Scored, ...]
    analysed: tuple[Analysed, ...]
    prompts: pl.DataFrame
    answers: pl.DataFrame
    matrices: pl.DataFrame
    heads: pl.DataFrame
    subspaces: pl.DataFrame = field(default_factory=pl.DataFrame)
    derived: pl.DataFrame = field(default_factory=pl.DataFrame)
    representations: pl.DataFrame = field(default_factory=pl.DataFrame)
    neurons: pl.DataFrame = field(default_factory=pl.DataFrame)
    most_changed: pl.DataFrame = field(default_factory=pl.DataFrame)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()
    forecasts: tuple[ForecastRecord, ...] = ()

    def chosen_rate(self, base: str, training_set: str, arm: str) -> float | None:
        """The learning rate chosen for an arm, or None where none is (yet)."""
        for choice in self.rates.choices:
            if choice.arm_key == (base, training_set, arm):
                return choice.learning_rate
        return None
