"""Which trained models are exported: those that the study recommends, or those that a person names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rankscope.errors import UserError
from rankscope.records import RateChoice, TrainRecord, Verdict
from rankscope.report.contents import Contents
from rankscope.runs import DerivedPoint, RunSettings


@dataclass(frozen=True)
class Chosen:
    """A model to export: a run's own, or one that was derived from it."""

    run: RunSettings
    train: TrainRecord
    point: DerivedPoint | None = None

    @property
    def folder(self) -> str:
        """The name of its folder in the export."""
        return self.run.run_id if self.point is None else f"{self.run.run_id}--{self.point.kind}-{self.point.amount:g}"


def recommended(contents: Contents) -> tuple[list[Chosen], list[str]]:
    """The model of each verdict that recommends an arm, and why there is none for the others.

    An arm has a run for each seed. The first that was trained to its end stands for it: to take the one with the best
    test scores would be to choose on them.
    """
    chosen, notes = [], []
    if contents.decision is None:
        return [], ["no model: the study has not been decided yet; --model names one all the same"]
    for verdict in contents.decision.verdicts:
        where = f"{verdict.training_set} on {verdict.base}"
        if verdict.arm is None:
            asked = f"--model {_example(verdict)} exports one of an arm all the same"
            notes.append(f"no model of {where}: undecided; {asked}")
        elif verdict.arm == "base":
            notes.append(f"no model of {where}: the recommendation is not to fine-tune")
        else:
            chosen.append(_first(contents, verdict.base, verdict.training_set, verdict.arm))
    return chosen, notes


def named(contents: Contents, name: str) -> list[Chosen]:
    """The models that a person names.

    Args:
        contents: The study.
        name: An arm (`lora-r16`: one model for each base and training set), a run's folder name, or a run's and a
            derived model's (`<run>/truncate/16`).

    Raises:
        UserError: There is none of that name, or it was not trained to its end.
    """
    plan = contents.plan
    if name in plan.arms:
        pairs = dict.fromkeys((run.base.name, run.training_set.name) for run in plan.runs if run.arm.label == name)
        return [_first(contents, base, training_set, name) for base, training_set in pairs]
    run_id, _, point_name = name.strip("/").removeprefix("runs/").partition("/")
    run = next((run for run in plan.runs if run.run_id == run_id), None)
    if run is None:
        mend = f"the arms are {', '.join(plan.arms)}; runs are the folders in runs/"
        raise UserError(f"there is no arm and no run '{run_id}'", where="--model", mend=mend)
    train = _trained(contents, run)
    if not point_name or point_name == "train":
        return [Chosen(run, train)]
    points = {point.name: point for point in plan.derived.get(run.arm.label, ())}
    point = points.get(point_name.removeprefix("derive/"))
    if point is None:
        mend = f"there are {', '.join(points)}" if points else "ask for them with `derive:` in the study file"
        raise UserError(f"the study has no derived model '{point_name}' of this run", where="--model", mend=mend)
    return [Chosen(run, train, point)]


def base_id(run: RunSettings) -> tuple[str, bool]:
    """What a card calls the base, and whether that is a hub id; a folder of this machine is nobody else's business."""
    # A relative folder may look like a hub id; only what was read from the hub's cache has a commit.
    return (run.base.source, True) if run.base.commit is not None else (run.base.name, False)


def choice_of(contents: Contents, run: RunSettings) -> RateChoice | None:
    """How the rate of the run's arm was chosen; None where the run has another rate."""
    for choice in contents.rates.choices:
        if choice.arm_key == run.arm_key:
            return choice if choice.learning_rate == run.learning_rate else None
    return None


def verdict_of(contents: Contents, run: RunSettings) -> Verdict | None:
    """The verdict on the run's base and training set."""
    verdicts: Iterable[Verdict] = contents.decision.verdicts if contents.decision else ()
    return next((v for v in verdicts if (v.base, v.training_set) == (run.base.name, run.training_set.name)), None)


def _first(contents: Contents, base: str, training_set: str, arm: str) -> Chosen:
    rate = contents.chosen_rate(base, training_set, arm)
    where = f"{arm} for {training_set} on {base}"
    if rate is None:
        mend = "run the study to its end, or name a run"
        raise UserError(f"no rate is chosen for {where}", where="--model", mend=mend)
    for run in contents.plan.runs:
        if (*run.arm_key, run.learning_rate) == (base, training_set, arm, rate):
            record = contents.trains.get(run.run_id)
            if record is not None and record.status == "complete":
                return Chosen(run, record)
    raise UserError(f"no run of {where} was trained to its end", where="--model", mend="run the study to its end")


def _trained(contents: Contents, run: RunSettings) -> TrainRecord:
    record = contents.trains.get(run.run_id)
    if record is None or record.status not in {"complete", "paused"}:
        state = "has not been trained" if record is None else f"ended as {record.status}"
        mend = "run the study to its end, or name another"
        raise UserError(f"the run {run.run_id} {state}", where="--model", mend=mend)
    return record


def _example(verdict: Verdict) -> str:
    trained = [arm.arm for arm in verdict.arms if arm.arm != "base"]
    eligible = [arm.arm for arm in verdict.arms if arm.eligible != "no"]
    likely = (verdict.safe_arm, *eligible, verdict.runner_up, *trained, "ARM")
    return next(arm for arm in likely if arm in trained or arm == "ARM")
