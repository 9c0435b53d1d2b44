"""How often intervals hold and verdicts are right on real training: few seeds judged by many that they did not see.

    python benchmarks/truth.py                 # train (resumable), collect, judge
    python benchmarks/truth.py --only judge    # judge again, from the records in docs/truth

One study of the small world is trained with many seeds of each arm. Then thousands of studies are drawn from it, each
with a few of the seeds and a part of the items, and sent through the very code that judges a real study. What an
interval should have held is taken from the seeds *and* items that its study did not draw. That reference has an error
of its own, which is known, so an interval counts as right when it holds the reference within that error:
`|estimate - reference| <= sqrt(half-width^2 + (1.96 standard errors of the reference)^2)`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rankscope.decide.differences import TaskScores, arm_spread
from rankscope.decide.estimates import by_measure, measure
from rankscope.decide.measured import read_measured
from rankscope.decide.rule import judge
from rankscope.decide.standing import BASE, Question, Standing
from rankscope.plan import Plan
from rankscope.records import Verdict
from rankscope.spec import Decide
from rankscope.spreads import Spread, own_seed_variance
from rankscope.statistics import Estimate
from rankscope.store import Store, read_model, write_text
from rankscope.study_file import load_study

ROOT = Path(__file__).resolve().parent.parent
SCORES, ABOUT = "scores.parquet", "about.json"
SEED_COUNTS = (2, 3, 5)
PART = 1 / 3  # of the items of each task that a drawn study has
# The limits of the trained study happen to lie near one arm's truth or far from all; every study is judged by several.
BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.3)  # of forgetting, with a margin as large
MEASURES = ("gain", "forgetting", "forgetting_nats", "between arms")


# Training and what is kept of it -------------------------------------------------------------------------------------


def train(study_file: Path, out: Path, overrides: Sequence[str]) -> None:
    """Run the study, or go on with it."""
    from rich.console import Console

    from rankscope.display import PlainDisplay
    from rankscope.pipeline import run_study

    run_study(load_study(study_file, overrides), out, PlainDisplay(Console()))


def collect(out: Path, records: Path) -> None:
    """Keep the scores of every item, small enough to ship: bits for right and wrong, 32-bit nats for texts."""
    store = Store(out)
    plan, study = read_model(store.plan_file, Plan), load_study(store.study_file)
    assert plan is not None, "the study was trained"
    (base,), (training_set,) = plan.bases, plan.relations
    measured = read_measured(store, plan, base, training_set)
    rows = []
    for task in measured.tasks:
        rows.append(_row(task, None, None, task.base))
        rows += [_row(task, arm, seed, v) for arm, seeds in task.tuned.items() for seed, v in seeds.items()]
        if task.num_tokens is not None:
            rows.append(_row(task, "num_tokens", None, task.num_tokens))
    schema = {
        "task": pl.String, "relation": pl.String, "unit": pl.String, "arm": pl.String, "seed": pl.Int32,
        "is_correct": pl.List(pl.Boolean), "nats": pl.List(pl.Float32),
    }  # fmt: skip
    records.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=schema).write_parquet(records / SCORES, compression="zstd", compression_level=19)
    first = {run.arm.label: run for run in reversed(plan.runs)}
    about = {
        "base": plan.bases[base].model_dump(mode="json"),
        "decide": study.decide.model_dump(mode="json"),
        "arms": [
            {
                "arm": arm, "method": first[arm].arm.method, "rank": first[arm].arm.rank,
                "learning_rate": first[arm].learning_rate, "num_trainable": measured.num_trainable.get(arm),
            }
            for arm in plan.arms
        ],
    }  # fmt: skip
    write_text(records / ABOUT, json.dumps(about, indent=1) + "\n")


def _row(task: TaskScores, arm: str | None, seed: int | None, values: np.ndarray) -> dict[str, Any]:
    is_text = task.unit == "nats"
    return {
        "task": task.task, "relation": task.relation, "unit": task.unit, "arm": arm, "seed": seed,
        "is_correct": None if is_text else values.astype(bool).tolist(), "nats": values.tolist() if is_text else None,
    }  # fmt: skip


@dataclass(frozen=True)
class Records:
    """What was kept of the trained study."""

    tasks: list[TaskScores]
    arms: list[Standing]
    seeds: list[int]
    decide: Decide


def read_records(records: Path) -> Records:
    """The scores that `collect` kept."""
    about = json.loads((records / ABOUT).read_text(encoding="utf-8"))
    tasks = []
    for (name, relation, unit), rows in pl.read_parquet(records / SCORES).group_by(
        "task", "relation", "unit", maintain_order=True
    ):
        column = "is_correct" if unit == "accuracy" else "nats"
        values = {(arm, seed): np.array(v, dtype=float) for arm, seed, v in rows.select("arm", "seed", column).rows()}
        tuned: dict[str, dict[int, np.ndarray]] = {}
        for (arm, seed), scores in values.items():
            if seed is not None:
                tuned.setdefault(arm, {})[seed] = scores
        tokens = values.get(("num_tokens", None))
        tasks.append(TaskScores(name, relation, unit, values[None, None], tuned, tokens))
    arms = [Standing(**arm) for arm in about["arms"]]
    # A study that is not finished yet has some of its seeds; those that every arm has can be drawn from.
    seeds = set.intersection(*(set(each) for task in tasks for each in task.tuned.values()))
    return Records(tasks, arms, sorted(seeds), Decide(**about["decide"]))


# Drawn studies -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was counted over the studies that were drawn with one number of seeds."""

    held: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
    widths: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    named: dict[float, list[str]] = field(default_factory=dict)
    wrong: dict[float, int] = field(default_factory=dict)

    def note(self, name: str, about: str, drawn: Estimate | None, reference: Spread | None) -> None:
        """Count whether an interval held what the rest of the seeds and items say."""
        if drawn is None or drawn.low is None or reference is None:
            return
        error = drawn.value - reference.value
        half = (drawn.high - drawn.value) if error < 0 else (drawn.value - drawn.low)
        is_held = abs(error) <= math.hypot(half, 1.96 * standard_error(reference))
        self.held.setdefault((name, about), []).append(is_held)
        self.widths.setdefault((name, about), []).append((drawn.high - drawn.low) / 2)

    def judged(self, budget: float, verdict: Verdict, *, is_wrong: bool) -> None:
        """Count a verdict."""
        self.named.setdefault(budget, []).append(verdict.arm or "undecided")
        self.wrong[budget] = self.wrong.get(budget, 0) + is_wrong

    def coverage(self, name: str) -> float:
        """Share of the intervals of one kind that held, over all arms (or pairs), in percent."""
        return 100 * float(np.mean([value for (kind, _), held in self.held.items() if kind == name for value in held]))


def standard_error(reference: Spread) -> float:
    """Of a reference: its many seeds speak for themselves, so nothing is pooled and no quantile is Student's."""
    seeds = own_seed_variance(reference)
    items = reference.item_variance or 0.0
    return math.sqrt(items + (seeds.variance / reference.num_seeds if seeds else 0.0))


def draw(records: Records, num_seeds: int, num_studies: int, rng: np.random.Generator) -> Tally:
    """Draw studies and judge each by the rest."""
    tally = Tally()
    names = [arm.arm for arm in records.arms]
    for _ in range(num_studies):
        seeds = set(rng.choice(records.seeds, num_seeds, replace=False).tolist())
        inside, outside = [], []
        for task in records.tasks:
            chosen = np.zeros(len(task.base), dtype=bool)
            chosen[rng.permutation(len(task.base))[: round(PART * len(task.base))]] = True
            inside.append(part(task, chosen, seeds))
            outside.append(part(task, ~chosen, set(records.seeds) - seeds))
        standings, between = measure(inside, records.arms, question(records, inside, seeds))
        truth = {key: {arm: arm_spread(group, arm) for arm in names} for key, group in by_measure(outside).items()}
        for item in standings:
            tally.note("gain", item.arm, item.gain, truth["gain"][item.arm])
            for key in ("forgetting", "forgetting_nats"):
                drawn = getattr(item, key)
                tally.note(key, item.arm, drawn and drawn.negated(), truth[key][item.arm])
        domain = by_measure(outside)["gain"]
        for (arm, rival), drawn in between.items():
            tally.note("between arms", f"{arm} - {rival}", drawn, arm_spread(domain, arm, rival))
        for budget in BUDGETS:
            asked = replace(question(records, inside, seeds), decide=limits(records, budget))
            verdict = judge(standings, between, asked)
            tally.judged(budget, verdict, is_wrong=is_wrong(verdict, truth, asked.decide))
    return tally


def limits(records: Records, budget: float) -> Decide:
    """The study's limits with another budget and margin."""
    return records.decide.model_copy(update={"forgetting_budget": budget, "margin": budget})


def part(task: TaskScores, items: np.ndarray, seeds: set[int]) -> TaskScores:
    """Some items and some seeds of a task."""
    kept = {arm: {seed: v for seed, v in each.items() if seed in seeds} for arm, each in task.tuned.items()}
    return replace(task, tuned=kept).select(items)


def question(records: Records, tasks: Sequence[TaskScores], seeds: set[int]) -> Question:
    """What a study with these tasks and seeds asks."""
    groups = by_measure(tasks)
    names = {key: [task.task for task in group] for key, group in groups.items()}
    return Question(
        base=BASE,
        training_set="facts",
        decide=records.decide,
        score="gain",
        tasks={"score": names["gain"], **{key: names[key] for key in ("forgetting", "forgetting_nats")}},
        seeds=sorted(seeds),
    )


def is_wrong(verdict: Verdict, truth: Mapping[str, Mapping[str, Spread | None]], decide: Decide) -> bool:
    """Whether the arm that is named forgets more than a budget, or is worse than the best by more than the margin."""
    if verdict.arm is None:
        return False
    gains = {BASE: 0.0, **{arm: item.value for arm, item in truth["gain"].items()}}
    fits = {BASE: True}
    for arm in truth["gain"]:
        lost, nats = truth["forgetting"][arm], truth["forgetting_nats"][arm]
        # References are tuned less base (accuracy) and base less tuned (nats): what is lost is negative.
        fits[arm] = -lost.value <= decide.forgetting_budget and -nats.value <= decide.forgetting_budget_nats
    best = max(gains[arm] for arm in gains if fits[arm])
    return not fits[verdict.arm] or gains[verdict.arm] < best - decide.margin


# The page ------------------------------------------------------------------------------------------------------------


def page(records: Records, tallies: Mapping[int, Tally], num_studies: int) -> str:
    """The tables that the docs show."""
    sizes = ", ".join(f"{round(PART * len(task.base))} of {len(task.base)} of {task.task}" for task in records.tasks)
    decide = records.decide
    lines = [
        "# Verdicts held against the truth\n",
        f"Made by `make truth`: {len(records.arms)} arms of the small world were trained with {len(records.seeds)} "
        f"seeds each. From these, {num_studies:,} studies were drawn for each number of seeds, each with a part of the "
        f"items ({sizes}), and judged by the code that judges every study. What an interval should hold is what the "
        "seeds and items that its study did not draw say, within their own standard error. Nominal: 95%. "
        f"With {len(records.seeds)} seeds to draw from, drawn studies share seeds, so a coverage is itself known to a "
        "few points only. The scores of every item lie in `docs/truth/`; how it is done is in `benchmarks/truth.py`.\n",
        "All in percent.\n",
        "| seeds | gain | forgetting | forgetting (nats) | between arms |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, tally in tallies.items():
        shares = [tally.coverage(name) for name in MEASURES]
        lines.append(f"| {count} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    lines += ["", *_verdicts(decide, tallies, num_studies)]
    lines += ["", *_by_arm(records, tallies), "", *_truth(records)]
    return "\n".join(lines) + "\n"


def _verdicts(decide: Decide, tallies: Mapping[int, Tally], num_studies: int) -> list[str]:
    """How often a verdict was wrong, and how often there was none, by the limit that was asked for."""
    lines = [
        "Every drawn study was judged by several limits: the budget of forgetting and the margin of gain, both as "
        f"large (and {decide.forgetting_budget_nats:g} nats per token). A verdict is wrong if the arm that it names "
        "forgets more than the budget by the reference, or gains less than the best that does not by more than the "
        "margin. Each cell: wrong / undecided, in percent of all studies.\n",
        "| limit | " + " | ".join(f"{count} seeds" for count in tallies) + " |",
        "|---:|" + "---:|" * len(tallies),
    ]
    for budget in BUDGETS:
        cells = [
            f"{100 * tally.wrong[budget] / num_studies:.1f} / "
            f"{100 * tally.named[budget].count('undecided') / num_studies:.1f}"
            for tally in tallies.values()
        ]
        lines.append(f"| {100 * budget:g} points | " + " | ".join(cells) + " |")
    return lines


def _by_arm(records: Records, tallies: Mapping[int, Tally]) -> list[str]:
    """Coverage and mean half-width of each arm's own intervals."""
    lines = [
        "Each arm's own intervals: coverage in percent, and the mean half-width.\n",
        "| arm | seeds | gain | forgetting | forgetting (nats) |",
        "|---|---:|---:|---:|---:|",
    ]
    for arm in records.arms:
        for count, tally in tallies.items():
            cells = []
            for name in MEASURES[:3]:
                width = float(np.mean(tally.widths[name, arm.arm]))
                shown = f"{width:.3f} nats" if name.endswith("nats") else f"{100 * width:.1f} points"
                cells.append(f"{100 * float(np.mean(tally.held[name, arm.arm])):.1f}, ±{shown}")
            lines.append(f"| {arm.arm} | {count} | " + " | ".join(cells) + " |")
    return lines


def _truth(records: Records) -> list[str]:
    """The means over all seeds and items, and how much one seed moves them."""
    lines = [
        f"The means over all {len(records.seeds)} seeds and all items, and the standard deviation from seed to seed "
        "(items' noise taken off):\n",
        "| arm | rate | gain | seed sd | forgetting | seed sd | forgetting (nats) | seed sd |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups = by_measure(records.tasks)
    for arm in records.arms:
        cells = []
        for name in MEASURES[:3]:
            item = arm_spread(groups[name], arm.arm)
            sign, scale, digits = (1, 100, 1) if name == "gain" else (-1, 100, 1)
            if name.endswith("nats"):
                scale, digits = 1, 3
            sd = own_seed_variance(item).variance ** 0.5
            cells += [f"{sign * scale * item.value:z.{digits}f}", f"{scale * sd:.{digits}f}"]
        lines.append(f"| {arm.arm} | {arm.learning_rate:g} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Train, collect and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "truth.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the study file")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "truth", help="the study directory")
    parser.add_argument("--records", type=Path, default=ROOT / "docs" / "truth", help="where the scores are kept")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "truth.md")
    parser.add_argument("--studies", type=int, default=2000, help="drawn for each number of seeds")
    parser.add_argument("--only", choices=("train", "collect", "judge"), help="one step alone")
    arguments = parser.parse_args()
    if arguments.only in (None, "train"):
        train(arguments.study, arguments.out, arguments.set)
    if arguments.only in (None, "collect"):
        collect(arguments.out, arguments.records)
    if arguments.only in (None, "judge"):
        records = read_records(arguments.records)
        tallies = {}
        for count in SEED_COUNTS:
            if count < len(records.seeds):
                tallies[count] = draw(records, count, arguments.studies, np.random.default_rng(count))
                print(f"{count} seeds: {[round(tallies[count].coverage(n), 1) for n in MEASURES]}", file=sys.stderr)
        write_text(arguments.page, page(records, tallies, arguments.studies))


if __name__ == "__main__":
    main()
