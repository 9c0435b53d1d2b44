"""How far a study scales: the paper's, and one a hundred times larger, on 1 to 256 GPUs, with and without lost nodes.

The schedule is the real one (`schedule.ready_packs`), fed with what `plan` forecasts for each piece of work, or with
what the pieces took of a study that was run; only the clock is simulated. Work of different bases and training sets
never waits for each other, so the large study's schedule is that of its parts, merged by the same order.

    python benchmarks/scale_simulation.py --out docs/scale.md
    python benchmarks/scale_simulation.py --measured build/forecast/pocket-paper    makes pocket_costs.json of a study
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from rankscope.board import Board
from rankscope.cost.estimate import START_SECONDS
from rankscope.cost.pieces import shape_seconds
from rankscope.forecast import Wish, forecast
from rankscope.outline import make_outline
from rankscope.plan import VALIDATION, Pack, Plan, piece_key
from rankscope.records import RateChoice, Rates
from rankscope.runs import RunSettings
from rankscope.schedule import pack_order, pack_seconds, ready_packs, work_seconds
from rankscope.store import Store, read_model
from rankscope.study_file import load_study
from rankscope.work import all_work, needed_work, read_record, work_of

DEVICE = "h200-141gb"
GPUS_PER_NODE = 8
# A node that is lost comes back, or another in its place, after so long.
REPLACED_SECONDS = 600.0
# Where a handful of nodes is lost, one draw says little; where thousands are it says enough.
SMALL_DRAWS, LARGE_DRAWS = 10, 1
HERE = Path(__file__).resolve().parent
STUDIES = HERE.parent / "studies"
COSTS = HERE / "pocket_costs.json"
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
        seed: Of which nodes are lost, and when.
    """

    def __init__(
        self, parts: list[Part], num_gpus: int, start_seconds: float, lost_every: float | None = None, seed: int = 0
    ) -> None:
        self.parts, self.lost_every, self.start_seconds = parts, lost_every, start_seconds
        self.now = self.busy = self.lost = 0.0
        self.num_lost = 0
        self.nodes = [range(first, min(first + GPUS_PER_NODE, num_gpus)) for first in range(0, num_gpus, GPUS_PER_NODE)]
        self.running: dict[int, tuple[int, Pack, float]] = {}
        self.kept: dict[tuple[int, Pack], float] = {}  # seconds of its work that need not be done again
        self.free: set[int] = set()
        self.generation = [0] * num_gpus  # what a GPU did before its node was lost ends nowhere
        self._counter = itertools.count()
        self._generator = random.Random(seed)
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
        """A node goes: what it was at goes on elsewhere, from what had been written."""
        self.num_lost += 1
        for gpu in node:
            self.generation[gpu] += 1
            self.free.discard(gpu)
            self._at(self.now + REPLACED_SECONDS + self.start_seconds, "free", gpu)
            if gpu not in self.running:
                continue
            index, pack, started = self.running.pop(gpu)
            part, kept = self.parts[index], self.kept.get((index, pack), 0.0)
            done = kept + self.now - started
            self.kept[index, pack] = max(kept, kept_seconds(part.plan, pack, done))
            self.lost += done - self.kept[index, pack]
            part.in_flight.discard(pack)
            part.refresh()
            self._offer(index)


def kept_seconds(plan: Plan, pack: Pack, done: float) -> float:
    """How much of a lost pack's work is kept: up to a checkpoint, or the tasks and analyses that have a record."""
    if pack.stage == "train":
        return max(0.0, done - plan.checkpoint_seconds)
    ends = itertools.accumulate(work_seconds(plan, work) for work in work_of(pack))
    return max((end for end in ends if end <= done), default=0.0)


def measured_costs(folder: Path) -> dict[str, Any]:
    """What each kind of piece of a finished study took on the mean, by its records, and how long all of them took."""
    plan = read_model(Store(folder).plan_file, Plan)
    if plan is None:
        raise SystemExit(f"{folder} has no plan.json")
    taken: dict[str, list[float]] = {}
    began, ended = [], []
    for work in all_work(plan):
        stage, base, run_id, name = work
        record = read_record(Store(folder), work)
        if record is None or (stage == "train" and name):  # a round of a search ends in the record of its run
            continue
        key = piece_key(stage, base, plan.run(run_id) if run_id else None, name)
        taken.setdefault(key, []).append(record.seconds)
        began.append(datetime.fromisoformat(record.started_at).timestamp())
        ended.append(began[-1] + record.seconds)
    pieces = {key: round(mean(seconds), 3) for key, seconds in taken.items()}
    return {"num_workers": plan.layout.num_workers, "seconds": round(max(ended) - min(began), 1), "pieces": pieces}


def measured_plan(costs: Mapping[str, Any]) -> Plan:
    """The pocket paper study's plan with what each piece took; its base is a folder, and only its name matters here."""
    (base,) = {key.split("/")[1] for key in costs["pieces"]}
    source = f"model={{{base}: {{source: HuggingFaceTB/SmolLM2-135M}}}}"
    plan, _ = make_outline(load_study(STUDIES / "pocket_paper.yaml", [source]))
    return plan.model_copy(update={"estimate": plan.estimate.model_copy(update={"seconds_by_piece": costs["pieces"]})})


def rows(plan: Plan, copies: int, numbers: Sequence[int], start: float, draws: int) -> list[str]:
    """A table's rows: one for each number of GPUs; what lost nodes cost is a mean of some draws."""
    lines = []
    for number in numbers:
        plain = Simulation(parts_of(plan, copies), number, start).run()
        drawn = [Simulation(parts_of(plan, copies), number, start, 3600.0, seed).run() for seed in range(draws)]
        efficiency = plain.busy / (plain.seconds * number)
        seconds = mean(outcome.seconds for outcome in drawn)
        num_lost, lost = mean(outcome.num_lost for outcome in drawn), mean(outcome.lost for outcome in drawn)
        lines.append(
            f"| {number} | {plain.seconds / 3600:,.1f} | {efficiency:.0%} | {seconds / 3600:,.1f} | "
            f"{seconds / plain.seconds - 1:+.0%} | {num_lost:,.1f} | {lost / 3600:,.1f} |"
        )
        print(lines[-1], flush=True)
    return lines


def measured_rows(plan: Plan, numbers: Sequence[int]) -> list[str]:
    """The same without failures, of a study that takes minutes and of one a hundred times larger."""
    lines = []
    for number in numbers:
        once, often = (Simulation(parts_of(plan, copies), number, START_SECONDS).run() for copies in (1, 100))
        shares = [outcome.busy / (outcome.seconds * number) for outcome in (once, often)]
        lines.append(
            f"| {number} | {once.seconds:,.0f} | {shares[0]:.0%} | {often.seconds / 60:,.0f} | {shares[1]:.0%} |"
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


def page(small: Sequence[int], large: Sequence[int]) -> str:
    """Both simulations as a page of the docs, for these numbers of GPUs."""
    study = load_study(STUDIES / "paper.yaml")
    plan = forecast(study, Wish(device=DEVICE)).plan
    _, outline = make_outline(study)
    start = START_SECONDS + max(shape_seconds(shape) for shape in outline.shapes.values())
    trained = [pack_seconds(plan, Pack("train", run.base.name, (run.run_id,))) for run in plan.runs]
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    pocket = measured_plan(costs)
    # From the first piece's beginning to the last one's end, as it was measured: without the start.
    again = Simulation(parts_of(pocket, 1), costs["num_workers"], 0.0).run()
    return PAGE.format(
        device=DEVICE, start=start, replaced=REPLACED_SECONDS / 60, draws=SMALL_DRAWS, runs=len(plan.runs),
        shortest=min(trained) / 60, longest=max(trained) / 60, bound=shortest(plan, start) / 3600,
        small="\n".join(rows(plan, 1, small, start, SMALL_DRAWS)),
        large="\n".join(rows(plan, 100, large, start, LARGE_DRAWS)),
        workers=costs["num_workers"], pocket_runs=len(pocket.runs), pocket_seconds=costs["seconds"],
        again=again.seconds, error=again.seconds / costs["seconds"] - 1,
        pocket_start=START_SECONDS, pocket_bound=shortest(pocket, START_SECONDS),
        pocket="\n".join(measured_rows(pocket, small)),
    )  # fmt: skip


def main() -> None:
    """Simulate both studies and write the page; or write down what the pieces of a study took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/scale.md"))
    parser.add_argument("--large", type=int, nargs="*", default=[1, 4, 16, 64, 128, 256], help="for the larger study")
    parser.add_argument("--measured", type=Path, help="a finished pocket paper study's directory")
    options = parser.parse_args()
    if options.measured is not None:
        COSTS.write_text(json.dumps(measured_costs(options.measured), indent=1) + "\n", encoding="utf-8")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page([1, 2, 4, 8, 16, 32, 64, 128, 256], options.large), encoding="utf-8")


HEAD = """| GPUs | hours | efficiency | hours, a node lost every hour | longer by | nodes lost | GPU hours lost |
|---|---|---|---|---|---|---|"""
PAGE = (
    """# How far more devices help

A simulation, made by `python benchmarks/scale_simulation.py --out docs/scale.md`. The schedule is the real one
(`schedule.ready_packs`: what is ready, most urgent first, then longest first); only the clock is simulated.

**What a piece of work takes** is of two kinds. For the paper's study and the larger one it is what `plan --device
{device}` forecasts, from the GPU's data sheet: **no GPU was measured**. For the pocket paper study, further
below, it is what the pieces took that were run ([pocket_costs.json](../benchmarks/pocket_costs.json)); that study's own
time is the check on the simulation.

**The rest is assumed**: a worker takes {start:.0f} s to start, nodes have eight GPUs, and one that is lost comes back
after {replaced:.0f} minutes. Training goes on from its last checkpoint, taken to be a minute old; of a model that is
being scored the tasks that are done stay. Efficiency is work that counted over GPU time. **Not in it** is what writing
checkpoints and reading shared files takes: a checkpoint of 8 billion parameters that are all trained has 96 GB, so for
such a study `execute.checkpoint_seconds` has to be many times what that takes on its disk.

## The paper's study

`studies/paper.yaml` (bfloat16, gradient checkpointing): two bases of 7 and 8 billion parameters, four training sets,
full fine-tuning and five ranks at three rates each, three seeds: {runs} possible runs, whose training takes
{shortest:.0f} to {longest:.0f} minutes on one GPU. With lost nodes each number is a mean of {draws} draws.

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

**A lost node** costs what was in flight on its GPUs since their last checkpoints and records, the time until it is
replaced, and nothing else: no work that has a record is done again.

## With measured costs

`studies/pocket_paper.yaml` has the same shape at a size that two processor cores can run: {pocket_runs} possible
runs. It was run with {workers} workers of one core; from the first piece's beginning to the last one's end it took
{pocket_seconds:.0f} s. The simulation, fed with what each kind of piece took by the records, says {again:.0f} s
({error:+.0%}). So far the schedule can be checked here; with more workers, each on a core as fast as one of those two:

| workers | seconds | efficiency | one hundred times larger, minutes | efficiency |
|---|---|---|---|---|
{pocket}

It cannot be over before {pocket_bound:.0f} s, of which {pocket_start:.0f} are the start of a worker.
"""
)

if __name__ == "__main__":
    main()
