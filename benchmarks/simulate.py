"""How often the intervals hold the truth and the rule is wrong, over thousands of studies whose truth is known.

    python benchmarks/simulate.py --studies 2000 --out docs/simulation.md

Nothing is trained: right and wrong answers are drawn from a model in which every arm's true accuracy is known exactly,
and go through the very code that judges a real study. A small version is a test (tests/unit/decide/test_simulation.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from rankscope.decide.differences import TaskScores, between_arms, from_base
from rankscope.decide.rule import judge
from rankscope.decide.standing import Question, Standing
from rankscope.spec import Decide

CONFIDENCE = 0.95


@dataclass(frozen=True)
class World:
    """A kind of study, with the truth of each arm.

    Attributes:
        gains: True gain of each arm, smallest arm first; the base has none.
        forgets: True forgetting of each arm.
        seed_sd: Standard deviation of an arm's true accuracy over seeds.
        uneven: How many times as much as that each arm moves with the seed, smallest arm first; empty: all alike.
        shared: Share of the seed's effect that all arms have in common (same order of examples).
        alike: Correlation of the answers to one item over runs; the base's with a run's is its power 0.75.
        alike_kept: The same for the retention task, on which tuned models mostly answer as the base does.
        together: Mean number of items on one passage; each has from 1 to nearly twice as many. One: none.
        akin: Correlation of the answers to two items on one passage.
        level, kept: The base's accuracy in domain and on retention.
    """

    name: str
    num_items: int
    num_seeds: int
    gains: tuple[float, ...]
    forgets: tuple[float, ...] = ()
    seed_sd: float = 0.01
    uneven: tuple[float, ...] = ()
    shared: float = 0.3
    alike: float = 0.5
    alike_kept: float = 0.9
    together: int = 1
    akin: float = 0.5
    level: float = 0.4
    kept: float = 0.7
    margin: float = 0.03
    budget: float = 0.03

    @property
    def arms(self) -> list[str]:
        """Their names, smallest first."""
        return [f"arm{index}" for index in range(len(self.gains))]


CLIMB = (0.05, 0.15, 0.25, 0.25, 0.26)
WORLDS = (
    World("weak seeds", 400, 3, CLIMB, seed_sd=0.002),
    World("strong seeds", 400, 3, CLIMB, seed_sd=0.03),
    World("strong seeds, 2 of them", 400, 2, CLIMB, seed_sd=0.03),
    World("strong seeds, 5 of them", 400, 5, CLIMB, seed_sd=0.03),
    World("100 items", 100, 3, CLIMB, seed_sd=0.01),
    World("100 items, 2 seeds, weak", 100, 2, CLIMB, seed_sd=0.002),
    World("1,000 items, 2 seeds", 1000, 2, CLIMB, seed_sd=0.015),
    World("4,000 items", 4000, 3, CLIMB, seed_sd=0.01),
    World("items act alike over runs", 400, 3, CLIMB, alike=0.9),
    World("items act at random", 400, 3, CLIMB, alike=0.1, alike_kept=0.1),
    World("items on passages of 1 to 9", 1000, 3, CLIMB, together=5),
    World("items on passages of 1 to 39, 2 seeds", 2000, 2, CLIMB, together=20, seed_sd=0.005),
    World("seed effect shared by the arms", 400, 3, CLIMB, seed_sd=0.03, shared=0.8),
    World("two arms, 2 seeds", 400, 2, (0.10, 0.20), seed_sd=0.02),
    World("equal arms, few items", 100, 2, (0.10,) * 5, seed_sd=0.02),
    World("equal arms, many items", 4000, 3, (0.10,) * 5, seed_sd=0.005),
    World("one clear winner", 1000, 3, (0.05, 0.30, 0.31), (0.0, 0.0, 0.15), seed_sd=0.01),
    World("one clear winner, 4,000 items", 4000, 3, (0.05, 0.30, 0.31), (0.0, 0.0, 0.15), seed_sd=0.005),
    World("a smaller arm just beyond the margin", 4000, 3, (0.269, 0.30, 0.30), seed_sd=0.005),
    World("two smaller arms just beyond the margin", 4000, 3, (0.269, 0.269, 0.30), seed_sd=0.005),
    World("the best just beyond the budget", 4000, 3, (0.10, 0.20, 0.30), (0.0, 0.0, 0.031), seed_sd=0.005),
    World("nearly all right", 400, 3, (0.0, 0.005, 0.01, 0.01, 0.015), level=0.97, kept=0.98, seed_sd=0.003),
    World("nearly none right", 400, 3, (0.0, 0.01, 0.02, 0.03, 0.03), level=0.02, kept=0.5, seed_sd=0.005),
    World("one arm unsteady (3 times)", 400, 3, CLIMB, seed_sd=0.01, uneven=(1, 1, 1, 1, 3)),
    World("one arm restless (20 times), 2 seeds", 4000, 2, CLIMB, seed_sd=0.003, uneven=(1, 1, 1, 1, 20)),
    World("two arms restless (20 times), 2 seeds", 4000, 2, CLIMB, seed_sd=0.003, uneven=(1, 1, 1, 20, 20)),
    World("seeds spread with the size, 2 seeds", 4000, 2, CLIMB, seed_sd=0.002, uneven=(1, 2, 4, 8, 16)),
    World("seeds spread with the size, 3 seeds", 4000, 3, CLIMB, seed_sd=0.002, uneven=(1, 2, 4, 8, 16)),
)


@dataclass
class Tally:
    """What was counted over the studies of one world."""

    gain: list[float]
    forgetting: list[float]
    pair: list[float]
    wrong: int = 0
    undecided: int = 0
    studies: int = 0

    def row(self, name: str) -> list[str]:
        """One line of the table, in percent."""
        shares = [100 * float(np.mean(values)) for values in (self.gain, self.forgetting, self.pair)]
        shares += [100 * self.wrong / self.studies, 100 * self.undecided / self.studies]
        return [name, *(f"{share:.1f}" for share in shares)]


def simulate(world: World, num_studies: int, rng: np.random.Generator) -> Tally:
    """Draw studies of one world and count how the intervals and the verdict do."""
    tally = Tally([], [], [])
    forgets = world.forgets or (0.0,) * len(world.gains)
    for _ in range(num_studies):
        domain = draw_task(world, "taught", world.level, [world.level + gain for gain in world.gains], rng)
        retention = draw_task(world, "general", world.kept, [world.kept - lost for lost in forgets], rng)
        gains = from_base([domain], world.arms, CONFIDENCE)
        kept = from_base([retention], world.arms, CONFIDENCE)
        pairs = between_arms([domain], world.arms, CONFIDENCE)
        truth = dict(zip(world.arms, world.gains, strict=True))
        lost = dict(zip(world.arms, forgets, strict=True))
        tally.gain.append(np.mean([gains[arm].low <= truth[arm] <= gains[arm].high for arm in world.arms]))
        tally.forgetting.append(np.mean([kept[arm].low <= -lost[arm] <= kept[arm].high for arm in world.arms]))
        tally.pair.append(np.mean([e.low <= truth[a] - truth[b] <= e.high for (a, b), e in pairs.items()]))
        standings = [
            Standing(arm, "lora", num_trainable=1 + index, gain=gains[arm], forgetting=kept[arm].negated())
            for index, arm in enumerate(world.arms)
        ]
        verdict = judge(standings, pairs, _question(world))
        tally.studies += 1
        tally.undecided += verdict.decision == "undecided"
        tally.wrong += verdict.arm is not None and is_wrong(verdict.arm, truth, lost, world)
    return tally


def is_wrong(arm: str, gains: dict[str, float], lost: dict[str, float], world: World) -> bool:
    """Whether an arm truly forgets more than the budget, or is truly worse than the best eligible by the margin."""
    gains, lost = {**gains, "base": 0.0}, {**lost, "base": 0.0}
    best = max(gain for name, gain in gains.items() if lost[name] <= world.budget)
    return lost[arm] > world.budget or gains[arm] < best - world.margin


def draw_task(world: World, name: str, level: float, truths: Sequence[float], rng: np.random.Generator) -> TaskScores:
    """Right and wrong for the base and every arm and seed; an answer is right where a normal draw is below a threshold.

    With a threshold moved by the seed by `tau`, the mean over seeds and items is Phi(mu / sqrt(1 + tau^2)), so `mu` is
    chosen to give the wanted truth exactly.
    """
    alike = world.alike if name == "taught" else world.alike_kept
    clusters = _clusters(world, rng)
    item, shared = _drawn(world, clusters, rng), rng.normal(size=world.num_seeds)
    similar = np.sqrt(alike)  # the base is trained apart, so it is less like a run than runs are like one another
    base = (np.sqrt(similar) * item + np.sqrt(1 - similar) * _drawn(world, clusters, rng) < ndtri(level)).astype(float)
    tuned: dict[str, dict[int, np.ndarray]] = {}
    for index, (arm, truth) in enumerate(zip(world.arms, truths, strict=True)):
        density = np.exp(-(ndtri(truth) ** 2) / 2) / np.sqrt(2 * np.pi)
        tau = world.seed_sd / density * (world.uneven[index] if world.uneven else 1.0)
        own = rng.normal(size=world.num_seeds)
        threshold = ndtri(truth) * np.sqrt(1 + tau**2)
        threshold = threshold + tau * (np.sqrt(world.shared) * shared + np.sqrt(1 - world.shared) * own)
        noise = np.stack([_drawn(world, clusters, rng) for _ in range(world.num_seeds)])
        answers = np.sqrt(alike) * item + np.sqrt(1 - alike) * noise < threshold[:, None]
        tuned[arm] = dict(enumerate(answers.astype(float)))
    relation = "in_domain" if name == "taught" else "retention"
    return TaskScores(task=name, relation=relation, unit="accuracy", base=base, tuned=tuned, clusters=clusters)


def _clusters(world: World, rng: np.random.Generator) -> np.ndarray | None:
    """The passage of each item."""
    if world.together == 1:
        return None
    sizes = rng.integers(1, 2 * world.together, size=world.num_items, endpoint=False)
    return np.repeat(np.arange(world.num_items), sizes)[: world.num_items]


def _drawn(world: World, clusters: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """A standard normal number for each item; those on one passage are alike."""
    own = rng.normal(size=world.num_items)
    if clusters is None:
        return own
    passage = rng.normal(size=world.num_items)[clusters]
    return np.sqrt(world.akin) * passage + np.sqrt(1 - world.akin) * own


def _question(world: World) -> Question:
    return Question(
        base="base",
        training_set="new",
        decide=Decide(margin=world.margin, forgetting_budget=world.budget, confidence=CONFIDENCE),
        score="gain",
        tasks={"score": ["taught"], "forgetting": ["general"], "forgetting_nats": []},
        seeds=range(world.num_seeds),
    )


def table(rows: Sequence[Sequence[str]], num_studies: int) -> str:
    """The table that the docs show."""
    head = ["world", "gain", "forgetting", "between arms", "wrong", "undecided"]
    lines = [
        f"# Simulated studies\n\nMade by `make simulate`: {num_studies:,} studies a world. Coverage of 95% intervals, "
        "then the share of verdicts that name a wrong arm and of those that say undecided, all in percent. The worlds "
        "are described in `benchmarks/simulate.py`.\n",
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def main() -> None:
    """Simulate every world and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="worlds whose name contains this")
    arguments = parser.parse_args()
    rows = []
    for index, world in enumerate(WORLDS):
        if arguments.only in world.name:
            rows.append(simulate(world, arguments.studies, np.random.default_rng(index)).row(world.name))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    text = table(rows, arguments.studies)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
