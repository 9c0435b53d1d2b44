"""What a study directory has that its tracker has not been told yet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from rankscope.errors import DamagedFile
from rankscope.plan import VALIDATION, Plan
from rankscope.records import ARM_MEASURES, UNFINISHED, ArmResult, EvaluateRecord, Interval, TrainRecord
from rankscope.runs import RunSettings, settings_hash
from rankscope.store import STEPS, Store, read_checked, write_checked
from rankscope.track.trackers import Scalar, Tracker
from rankscope.work import base_tasks

VERDICTS = "verdicts"
_TRAINED = "/trained"  # no name of a task: those are folders
_STEP_VALUES = ("loss_nats_per_token", "learning_rate", "grad_norm")


class Told(BaseModel):
    """What a tracker has been told of one name.

    Attributes:
        known: What the tracker knows the name by.
        step: The last step whose numbers it has.
        done: Tasks whose scores it has, `_TRAINED` for what a training record says, a hash for verdicts.
    """

    known: str
    step: int = 0
    done: list[str] = Field(default_factory=list)


class Follower:
    """Tells a tracker what is new in a study directory; reads files and knows nothing of who wrote them.

    What was told is kept in `tracking/<kind>.json`, so that a study that is run again goes on where its tracker is.

    Args:
        store: The study directory.
        plan: Its plan.
        tracker: Who is told.
        kind: As `report_to` names it.
    """

    def __init__(self, store: Store, plan: Plan, tracker: Tracker, kind: str) -> None:
        self._store, self._plan, self._tracker = store, plan, tracker
        self._file = store.root / "tracking" / f"{kind}.json"
        self._told = {name: Told.model_validate(value) for name, value in (read_checked(self._file) or {}).items()}
        self._open: set[str] = set()
        self._seen: dict[str, tuple[int, int]] = {}

    def tell(self) -> None:
        """Tell every number of runs and bases that is new."""
        before = self._state()
        for base in self._plan.bases:
            self._tell_scores(f"base-{base}", base, None, 0)
        for run in self._plan.runs:
            self._tell_run(run)
        if self._state() != before:
            self._write_state()

    def close(self) -> None:
        """Tell what is still new, and end everything for now."""
        self.tell()
        for name in sorted(self._open):
            self._end(name)

    def _write_state(self) -> None:
        write_checked(self._file, self._state())

    def _state(self) -> dict[str, Any]:
        return {name: told.model_dump() for name, told in self._told.items()}

    def _tell_run(self, run: RunSettings) -> None:
        name = run.run_id
        for step, values in self._new_steps(run):
            self._begin(name, run_config(self._plan, run))
            self._tracker.numbers(name, step, values)
            self._told[name].step = step
        record = self._read_train(name)
        if record is None or record.status in UNFINISHED:
            return
        if not self._has(name, _TRAINED):
            self._begin(name, run_config(self._plan, run))
            for point in record.validations:
                self._tracker.numbers(name, point.step, {"validation/loss_nats_per_token": point.loss_nats_per_token})
            if record.status != "complete":
                why = record.divergence or (record.error.message if record.error else "")
                self._tracker.text(name, "status", f"{record.status}: {why}")
            self._told[name].done.append(_TRAINED)
        if self._tell_scores(name, run.base.name, run, record.num_steps) == 0 and name in self._open:
            self._end(name)

    def _new_steps(self, run: RunSettings) -> Iterator[tuple[int, dict[str, float]]]:
        """The whole lines of steps.jsonl beyond what was told; a file that has not changed is not read."""
        path = self._store.train(run.run_id) / STEPS
        try:
            status = path.stat()
            if self._seen.get(run.run_id) == (status.st_size, status.st_mtime_ns):
                return
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half written
        except FileNotFoundError:
            return
        self._seen[run.run_id] = (status.st_size, status.st_mtime_ns)
        told = self._told.get(run.run_id)
        for line in lines:
            row = json.loads(line)
            if told is None or row["step"] > told.step:
                yield row["step"], {f"train/{key}": float(row[key]) for key in _STEP_VALUES}

    def _tell_scores(self, name: str, base: str, run: RunSettings | None, step: int) -> int:
        """Tell the scores of a run (None: of the base) that are new; returns how many that was."""
        tasks = base_tasks(self._plan, base) if run is None else (VALIDATION, *self._plan.tasks[base])
        number = 0
        for task in tasks:
            if self._has(name, task):
                continue
            folder = self._store.base_task(base, task) if run is None else self._store.task(run.run_id, task)
            record = self._read_scores(folder)
            if record is None or record.status != "complete":
                continue
            self._begin(name, {"base": base} if run is None else run_config(self._plan, run))
            self._tracker.numbers(name, step, {f"scores/{task}/{key}": value for key, value in record.values.items()})
            self._told[name].done.append(task)
            number += 1
        return number

    def tell_verdicts(self) -> None:
        """Tell the verdicts, unless these very ones were told."""
        decision = self._store.read_decide()
        if decision is None:
            return
        fingerprint = settings_hash([verdict.model_dump(mode="json") for verdict in decision.verdicts])
        if self._has(VERDICTS, fingerprint):
            return
        self._begin(VERDICTS, {"study": self._plan.study})
        for verdict in decision.verdicts:
            place = f"{verdict.base}/{verdict.training_set}"
            values = {f"{place}/{key}": value for arm in verdict.arms for key, value in _arm_values(arm).items()}
            if values:
                self._tracker.numbers(VERDICTS, 0, values)
            decided = verdict.decision if verdict.arm is None else f"{verdict.decision}: {verdict.arm}"
            texts = [decided, verdict.rule, *([verdict.needed] if verdict.needed else []), *verdict.warnings]
            self._tracker.text(VERDICTS, place, "\n\n".join(texts))
        self._told[VERDICTS].done.append(fingerprint)
        self._write_state()

    def _begin(self, name: str, config: Mapping[str, Scalar]) -> None:
        if name in self._open:
            return
        told = self._told.get(name)
        known = self._tracker.begin(name, config, told.known if told else None)
        self._told.setdefault(name, Told(known=known))
        self._open.add(name)

    def _end(self, name: str) -> None:
        self._tracker.end(name)
        self._open.discard(name)

    def _has(self, name: str, what: str) -> bool:
        return name in self._told and what in self._told[name].done

    def _read_train(self, run_id: str) -> TrainRecord | None:
        try:
            return self._store.read_train(run_id)
        except DamagedFile:  # the pipeline finds it and mends it
            return None

    def _read_scores(self, folder: Path) -> EvaluateRecord | None:
        try:
            return self._store.read_evaluate(folder)
        except DamagedFile:  # as above
            return None


def run_config(plan: Plan, run: RunSettings) -> dict[str, Scalar]:
    """A run's settings as trackers show them: what arms differ in, flat."""
    options = {key: value if isinstance(value, Scalar) else str(value) for key, value in run.arm.options.items()}
    return {
        "study": plan.study, "base": run.base.name, "training_set": run.training_set.name, "arm": run.arm.label,
        "method": run.arm.method, "learning_rate": run.learning_rate, "seed": run.seed, "num_steps": run.num_steps,
        **{f"option/{key}": value for key, value in options.items() if value is not None},
        **{f"optimization/{key}": value for key, value in run.optimization.model_dump().items() if value is not None},
    }  # fmt: skip


def _arm_values(arm: ArmResult) -> dict[str, float]:
    """An arm's estimates and the ends of their intervals; what is not there is left out."""
    found = {}
    for key in ARM_MEASURES:
        interval: Interval | None = dict(arm)[key]
        ends = {} if interval is None else {"": interval.value, "_low": interval.low, "_high": interval.high}
        found |= {f"{arm.arm}/{key}{end}": value for end, value in ends.items() if value is not None}
    return {key: value for key, value in found.items() if math.isfinite(value)}
