"""How far a study scales: the paper's, and one a hundred times larger, on 1 to 256 GPUs, with and without lost nodes.

The schedule is the real one (`schedule.ready_packs`), fed with what `plan` forecasts for each piece of work; only the
clock is simulated. Work of different bases and training sets never waits for each other, so the large study's schedule
is made of the schedules of its parts, merged by the same order.

    python benchmarks/scale_simulation.py --out docs/scale.md
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path

from rankscope.board import Board
from rankscope.cost.devices import named_device
from rankscope.cost.estimate import START_SECONDS, estimate
from rankscope.cost.pieces import shape_seconds
from rankscope.outline import make_outline
from rankscope.plan import VALIDATION, Layout, Pack, Plan
from rankscope.records import RateChoice, Rates
from rankscope.runs import RunSettings
from rankscope.schedule import pack_order, pack_seconds, ready_packs
from rankscope.spec import Study
from rankscope.study_file import load_study
from rankscope.work import needed_work, work_of

DEVICE = "h200-141gb"
GPUS_PER_NODE = 8
# A node that is lost comes back, or another in its place, after so long.
REPLACED_SECONDS = 600.0
STUDY = Path(__file__).resolve().parent.parent / "studies" / "paper.yaml"
_READY: dict[tuple[str, str, int], list[Pack]] = {}  # of equal parts in equal states, found once


class Part:
    """One base and training set of a study: a schedule of its own.

    Args:
        plan: The study's plan, with the runs of this part only.
        base_is_done: The base itself is scored in another part.
    """

    def __init__(self, plan: Plan, *, base_is_done: bool) -> None:
        self.plan, self.board, self.rates = plan, Board(), Rates()
        self.in_flight: set[Pack] = set()
        self.version = 0
        self.kind = (plan.runs[0].base.name, plan.runs[0].training_set.name)
        self.done = int(base_is_done)
        for stage, base, run_id, name in list(needed_work(plan, self.rates)) if base_is_done else []:
            if run_id is None and not name.startswith(f"{VALIDATION}-"):
                self.board.status[stage, base, None, name] = "complete"
        self.refresh()

    def refresh(self) -> None:
        """Look again at what could start now, in the schedule's order."""
        self.version += 1
        key = (*self.kind, self.done)
        if key not in _READY:
            _READY[key] = ready_packs(self.plan, self.board, self.rates)[::-1]
        self.queue = [pack for pack in _READY[key] if pack not in self.in_flight]

    def finish(self, pack: Pack) -> None:
        """Take in that a pack is done, and choose what can be chosen: the middle rate, as good as any here."""
        self.in_flight.discard(pack)
        self.done ^= hash(pack)  # the same whatever the order in which packs end; rates follow from what is done
        for work in work_of(pack):
            self.board.status[work] = "complete"
        if pack.run_ids and pack.names == (VALIDATION,):
            self._choose(self.plan.run(pack.run_ids[0]))
        self.refresh()

    def _choose(self, run: RunSettings) -> None:
        candidates = [r for r in self.plan.runs if r.arm.label == run.arm.label and r.seed in self.plan.search_seeds]
        if all(self.board.is_complete(("evaluate", run.base.name, r.run_id, VALIDATION)) for r in candidates):
            rates = sorted({r.learning_rate for r in candidates})
            choice = RateChoice(
                base=run.base.name, training_set=run.training_set.name, arm=run.arm.label,
                learning_rate=rates[len(rates) // 2], scores={}, losses={}, score_key="accuracy", at_edge=None,
                reason="", chosen_at="",
            )  # fmt: skip
            self.rates = Rates(choices=(*self.rates.choices, choice))


@dataclass(frozen=True)
class Outcome:
    """How a study went on some GPUs.

    Attributes:
        seconds: From the first start to the last end.
        busy: GPU seconds of work that counted.
        lost: GPU seconds of work that was lost with nodes.
        num_lost: Nodes lost.
    """

    seconds: float
    busy: float
    lost: float
    num_lost: int


def parts_of(plan: Plan, copies: int) -> list[Part]:
    """A plan's bases and training sets, as many times over as is asked for."""
    parts = []
    for base, training_set in itertools.product(plan.bases, plan.relations):
        changes = {
            "runs": tuple(r for r in plan.runs if (r.base.name, r.training_set.name) == (base, training_set)),
            "bases": {base: plan.bases[base]},
            "validation": {base: {training_set: plan.validation[base][training_set]}},
        }
        is_first = training_set == next(iter(plan.relations))
        parts += [Part(plan.model_copy(update=changes), base_is_done=not is_first) for _ in range(copies)]
    return parts


class Simulation:
    """A study run by the clock of its forecast.

    Args:
        parts: The study, of which nothing is done.
        num_gpus: In nodes of eight, the last perhaps smaller.
        start_seconds: Of a worker: its imports and its base.
        lost_every: A node is lost about so often, in seconds; None: none ever is.
    """

    def __init__(self, parts: list[Part], num_gpus: int, start_seconds: float, lost_every: float | None) -> None:
        self.parts, self.lost_every, self.start_seconds = parts, lost_every, start_seconds
        self.now = self.busy = self.lost = 0.0
        self.num_lost = 0
        self.nodes = [range(first, min(first + GPUS_PER_NODE, num_gpus)) for first in range(0, num_gpus, GPUS_PER_NODE)]
        self.running: dict[int, tuple[int, Pack, float]] = {}
        self.kept: dict[tuple[int, Pack], float] = {}  # seconds of training that a checkpoint has saved
        self.free: set[int] = set()
        self.generation = [0] * num_gpus  # what a GPU did before its node was lost ends nowhere
        self._counter = itertools.count()
        self._generator = random.Random(0)
        self._events: list[tuple[float, int, str, int, int]] = []
        self._heads: list[tuple[tuple[int, float], int, int]] = []
        for gpu in range(num_gpus):
            self._at(start_seconds, "free", gpu)
        for index in range(len(parts)):
            self._offer(index)
        self._expect_loss()

    def run(self) -> Outcome:
        """Until nothing is left."""
        while self.running or self._heads or any(part.in_flight for part in self.parts):
            self.now, _, kind, gpu, generation = heapq.heappop(self._events)
            if kind == "loss":
                self._lose(self._generator.choice(self.nodes))
                self._expect_loss()
            elif generation == self.generation[gpu]:
                if kind == "end":
                    self._finish(gpu)
                self.free.add(gpu)
            self._dispatch()
        return Outcome(self.now, self.busy, self.lost, self.num_lost)

    def _at(self, seconds: float, kind: str, gpu: int) -> None:
        heapq.heappush(self._events, (seconds, next(self._counter), kind, gpu, self.generation[gpu]))

    def _expect_loss(self) -> None:
        if self.lost_every is not None:
            seconds = self.now + self._generator.expovariate(1 / self.lost_every)
            heapq.heappush(self._events, (seconds, next(self._counter), "loss", 0, 0))

    def _offer(self, index: int) -> None:
        """Put the first of a part's ready packs among those of the others."""
        part = self.parts[index]
        if part.queue:
            heapq.heappush(self._heads, (pack_order(part.plan, part.queue[-1]), index, part.version))

    def _dispatch(self) -> None:
        while self.free and self._heads:
            _, index, version = heapq.heappop(self._heads)
            part = self.parts[index]
            if version != part.version:
                continue
            pack, gpu = part.queue.pop(), self.free.pop()
            part.in_flight.add(pack)
            self.running[gpu] = (index, pack, self.now)
            seconds = pack_seconds(part.plan, pack) - self.kept.get((index, pack), 0.0)
            self._at(self.now + seconds, "end", gpu)
            self._offer(index)

    def _finish(self, gpu: int) -> None:
        index, pack, _ = self.running.pop(gpu)
        self.busy += pack_seconds(self.parts[index].plan, pack)
        self.parts[index].finish(pack)
        self._offer(index)

    def _lose(self, node: range) -> None:
        """A node goes: training goes on from its last checkpoint elsewhere, scoring begins again."""
        self.num_lost += 1
        for gpu in node:
            self.generation[gpu] += 1
            self.free.discard(gpu)
            self._at(self.now + REPLACED_SECONDS + self.start_seconds, "free", gpu)
            if gpu not in self.running:
                continue
            index, pack, started = self.running.pop(gpu)
            part, done = self.parts[index], self.now - started
            saved = max(0.0, done - part.plan.checkpoint_seconds) if pack.stage == "train" else 0.0
            self.kept[index, pack] = self.kept.get((index, pack), 0.0) + saved
            self.lost += done - saved
            part.in_flight.discard(pack)
            part.refresh()
            self._offer(index)


def forecast_plan(study: Study) -> Plan:
    """The study's plan with what each piece takes on one GPU."""
    plan, outline = make_outline(study)
    layout = Layout(device=DEVICE, num_workers=1, threads_per_worker=1)
    return plan.model_copy(
        update={"estimate": estimate(replace(outline, layout=layout), named_device(DEVICE)), "layout": layout}
    )


def rows(plan: Plan, copies: int, numbers: list[int], start: float) -> list[str]:
    """A table's rows: one for each number of GPUs."""
    lines = []
    for number in numbers:
        plain = Simulation(parts_of(plan, copies), number, start, None).run()
        failing = Simulation(parts_of(plan, copies), number, start, 3600.0).run()
        efficiency = plain.busy / (plain.seconds * number)
        longer = failing.seconds / plain.seconds - 1
        lines.append(
            f"| {number} | {plain.seconds / 3600:,.1f} | {efficiency:.0%} | {failing.seconds / 3600:,.1f} | "
            f"{longer:+.0%} | {failing.num_lost:,} | {failing.lost / 3600:,.1f} |"
        )
        print(lines[-1], flush=True)
    return lines


def shortest(plan: Plan, start: float) -> float:
    """What no number of devices can go below, in seconds: a candidate, its validation, a later run, and its scoring."""
    longest = 0.0
    for run in plan.runs:
        base, runs = run.base.name, (run.run_id,)
        train = pack_seconds(plan, Pack("train", base, runs))
        check = pack_seconds(plan, Pack("evaluate", base, runs, (VALIDATION,)))
        score = pack_seconds(plan, Pack("evaluate", base, runs, tuple(plan.tasks[base])))
        look = pack_seconds(plan, Pack("analyse", base, runs, plan.analyses))
        longest = max(longest, 2 * train + check + max(score, look))
    return start + longest


def main() -> None:
    """Simulate both studies and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/scale.md"))
    parser.add_argument("--large", type=int, nargs="*", default=[1, 16, 64, 256], help="GPUs for the larger study")
    options = parser.parse_args()
    study = load_study(STUDY)
    plan = forecast_plan(study)
    _, outline = make_outline(study)
    start = START_SECONDS + max(shape_seconds(shape) for shape in outline.shapes.values())
    small = rows(plan, 1, [1, 2, 4, 8, 16, 32, 64, 128, 256], start)
    large = rows(plan, 100, options.large, start)
    trained = [pack_seconds(plan, Pack("train", run.base.name, (run.run_id,))) for run in plan.runs]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = PAGE.format(
        device=DEVICE, small="\n".join(small), large="\n".join(large), start=start, replaced=REPLACED_SECONDS / 60,
        shortest=min(trained) / 60, longest=max(trained) / 60, runs=len(plan.runs), bound=shortest(plan, start) / 3600,
    )  # fmt: skip
    options.out.write_text(text, encoding="utf-8")


HEAD = """| GPUs | hours | efficiency | hours, a node lost every hour | longer by | nodes lost | GPU hours lost |
|---|---|---|---|---|---|---|"""
PAGE = (
    """# How far more devices help

A simulation, made by `python benchmarks/scale_simulation.py --out docs/scale.md`. The schedule is the real one
(`schedule.ready_packs`: what is ready, most urgent first, then longest first); only the clock is simulated. A piece of
work takes what `plan --device {device}` forecasts for it, from the GPU's data sheet: no GPU was measured. A worker
takes {start:.0f} s to start. Nodes have eight GPUs; one that is lost comes back after {replaced:.0f} minutes. Training
goes on from its last checkpoint, at most a minute old, and scoring begins again. Efficiency is work that counted over
GPU time. The study is `studies/paper.yaml` (bfloat16, gradient checkpointing).

## The paper's study

Two bases of 7 and 8 billion parameters, four training sets, full fine-tuning and five ranks at three rates each, three
seeds: {runs} possible runs, whose training takes {shortest:.0f} to {longest:.0f} minutes on one GPU.

"""
    + HEAD
    + """
{small}

**Where it stops, and why.** A study has two waves: the other seeds of an arm wait for the last of its candidates, and
the scores for their training. However many devices there are, it cannot be over before the longest candidate, its
validation, the arm's later run and that run's scoring have come one after the other: {bound:.1f} hours here. Scoring a
model on all tasks is one piece of work. Before that, the last pieces of a wave leave other devices idle.

## A study one hundred times larger

The same, one hundred times over (more bases and training sets; these never wait for each other).

"""
    + HEAD
    + """
{large}

**A lost node** costs what was in flight on its GPUs since their last checkpoints, the time until it is replaced, and
nothing else: no work that has a record is done again.
"""
)

if __name__ == "__main__":
    main()
