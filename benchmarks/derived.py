"""What a curve of six derived models costs beside the training it came from, by the records of one study.

    python benchmarks/derived.py results/ours     of a study that asked for `derive`, finished or not
    python benchmarks/bench.py --part derive      of a study that is run for it

Nothing is measured here: the seconds are those that each stage wrote. A run that was trained together with others has
its share of their time. The first point that scales intruders pays for the base's decomposition, unless it is cached.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankscope.plan import Plan
from rankscope.runs import RunSettings
from rankscope.store import Store, read_model

NUM_POINTS = 6


@dataclass(frozen=True)
class Curve:
    """The derived models of one kind, of one arm on one training set: means over its runs.

    Attributes:
        kind: `rewind`, `truncate` or `intruders`.
        num_points: How many a run has.
        train_seconds: Training a run.
        point_seconds: Making one derived model and scoring it.
        scoring_seconds: Scoring the run itself on the same tasks; None where that has not been done.
    """

    base: str
    training_set: str
    arm: str
    kind: str
    num_runs: int
    num_points: int
    train_seconds: float
    point_seconds: float
    scoring_seconds: float | None

    @property
    def share(self) -> float:
        """Six points as a share of one run's training: 1 costs as much again."""
        return NUM_POINTS * self.point_seconds / self.train_seconds


def curves(store: Store) -> list[Curve]:
    """Every curve of a study of which a run has all of its points; what failed or could not be made is left out.

    Raises:
        SystemExit: The folder holds no study.
    """
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise SystemExit(f"{store.root}: no study was planned here")
    by_curve: dict[tuple[str, str, str, str], list[tuple[float, list[float], float | None]]] = {}
    for run in plan.runs:
        train = store.read_train(run.run_id)
        if train is None or train.status != "complete":
            continue
        for kind, seconds in _points(store, plan, run):
            key = (*run.arm_key, kind)
            by_curve.setdefault(key, []).append((train.seconds, seconds, _scoring(store, plan, run)))
    return [_curve(key, runs) for key, runs in by_curve.items()]


def _points(store: Store, plan: Plan, run: RunSettings) -> Iterator[tuple[str, list[float]]]:
    """By kind, the seconds of each of a run's points, where all of them were scored."""
    points = plan.derived.get(run.arm.label, ())
    for kind in dict.fromkeys(point.kind for point in points):
        records = [store.read_derive(store.derived(run.run_id, point.name)) for point in points if point.kind == kind]
        if all(record is not None and record.status == "complete" and record.scores for record in records):
            yield kind, [record.seconds for record in records]


def _scoring(store: Store, plan: Plan, run: RunSettings) -> float | None:
    records = [store.read_evaluate(store.task(run.run_id, task)) for task in plan.derive_tasks(run.run_id)]
    if any(record is None or record.status != "complete" for record in records):
        return None
    return sum(record.seconds for record in records)


def _curve(key: tuple[str, str, str, str], runs: list[tuple[float, list[float], float | None]]) -> Curve:
    trained, points, scored = zip(*runs, strict=True)
    return Curve(
        *key,
        num_runs=len(runs),
        num_points=len(points[0]),
        train_seconds=statistics.mean(trained),
        point_seconds=statistics.mean(second for seconds in points for second in seconds),
        scoring_seconds=None if None in scored else statistics.mean(scored),
    )


def line_of(curve: Curve) -> str:
    """A curve in a sentence."""
    scoring = "" if curve.scoring_seconds is None else f" (scoring the run itself {curve.scoring_seconds:.1f} s)"
    return (
        f"{curve.base} {curve.training_set} {curve.arm} {curve.kind}: a point {curve.point_seconds:.1f} s{scoring}; "
        f"{NUM_POINTS} points {curve.share:.2f} times the {curve.train_seconds:.1f} s of training"
    )


def main() -> None:
    """Say what each curve of a study cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a study directory")
    found = curves(Store(parser.parse_args().study))
    for curve in found:
        print(line_of(curve))
    if not found:
        print("no run of this study has a whole curve of derived models")


if __name__ == "__main__":
    main()
