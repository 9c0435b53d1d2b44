"""The time that a study has left: the plan's forecast, in the light of how long its pieces really take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rankscope.board import Board
from rankscope.execute.events import Event, Finished, Progress
from rankscope.plan import PIECE_STAGES, Pack, Plan
from rankscope.schedule import pack_seconds, work_seconds
from rankscope.work import Work, work_of

_UNTRIED = 0.5  # the relative error that a forecast is shown with before it has been tried
_DOUBT = 0.25  # how much of a correction may be wrong at least
_MOST_DONE = 0.9  # of what has named no part as done, and has taken its time already


@dataclass
class _Running:
    """A pack that is being carried out, and how far it has said it is.

    Attributes:
        first: When it first named a part that was done, and how many were by then.
        last: The same of what it said last.
    """

    pack: Pack
    expected: float
    started: float
    total: int = 1
    first: tuple[float, int] | None = None
    last: tuple[float, int] | None = None

    def hear(self, event: Progress, now: float) -> None:
        """Take in what its first run says; of a run that begins again, only what it says from then on."""
        if event.run_id != (*event.pack.run_ids, event.pack.base)[0] or not event.done:
            return
        is_again = self.last is not None and event.done < self.last[1]
        self.first = (now, event.done) if self.first is None or is_again else self.first
        self.last, self.total = (now, event.done), event.total

    @property
    def per_part(self) -> float:
        """The forecast of one part: a step, or a task."""
        is_round = self.pack.stage == "train" and self.pack.names
        return self.expected / (int(self.pack.names[0]) if is_round else self.total)

    @property
    def seen(self) -> tuple[float, float] | None:
        """Of what was done between its first word and its last, the forecast and what it took."""
        if self.first is None or self.last is None or self.last[1] == self.first[1]:
            return None
        return self.per_part * (self.last[1] - self.first[1]), self.last[0] - self.first[0]

    def done(self, now: float, pace: float) -> float:
        """How much of its forecast lies behind it: by its parts, and where it has not named any by the time it took."""
        by_parts = self.per_part * self.last[1] if self.last is not None else 0.0
        by_time = (now - (self.last[0] if self.last is not None else self.started)) / pace
        return min(by_parts + by_time, max(by_parts, _MOST_DONE * self.expected))


class Clock:
    """The time left: the plan's forecast of each piece of work, corrected by how long the pieces so far have taken.

    What is being done counts with the part that is done, so that the time goes down between the ends of pieces too.

    Args:
        plan: The study's plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._running: dict[Work, _Running] = {}
        self._seen: dict[str, list[tuple[float, float]]] = {}  # by stage, of each pack its forecast and what it took
        self.start = time.monotonic()

    def note(self, events: Sequence[Event]) -> None:
        """Take in what has happened."""
        now = time.monotonic()
        for event in events:
            first = work_of(event.pack)[0]
            if isinstance(event, Progress):
                expected = pack_seconds(self._plan, event.pack)
                self._running.setdefault(first, _Running(event.pack, expected, now)).hear(event, now)
                continue
            running = self._running.pop(first, None)
            if not isinstance(event, Finished) or running is None or running.expected <= 0:
                continue
            # A busy driver hears of a piece's start and end at once, which says nothing of how long it took.
            if (took := now - running.started) > 0:
                self._seen.setdefault(event.pack.stage, []).append((running.expected, took))

    def seconds_left(self, board: Board, needed: Sequence[Work]) -> tuple[float, float] | None:
        """A forecast and its standard error, in seconds; None where nothing is left or the plan has no forecast."""
        left = Counter[str]()
        for work in needed:
            if not board.has_ended(work):
                left[work[0]] += work_seconds(self._plan, work)
        if not any(left.values()):
            return None
        seen = self._seen_so_far()
        everything = [pair for pairs in seen.values() for pair in pairs]
        for stage, done in self._done(seen, everything).items():
            left[stage] = max(0.0, left[stage] - done)
        left["later"] = self._not_asked_yet(needed)
        total = variance = 0.0
        for stage, expected in left.items():
            is_own = stage in seen or stage == "later"  # which is of all stages
            seconds, error = _corrected(expected, seen.get(stage, everything), is_own=is_own)
            total += seconds
            variance += error**2
        workers = self._plan.layout.num_workers
        last = sum(self._plan.estimate.seconds_by_stage.get(stage, 0.0) for stage in ("decide", "report"))
        return total / workers + last, variance**0.5 / workers

    def _seen_so_far(self) -> dict[str, list[tuple[float, float]]]:
        """What was seen of pieces that have ended, and of parts of those that have not."""
        seen = {stage: list(pairs) for stage, pairs in self._seen.items()}
        for running in self._running.values():
            pair = running.seen
            if pair is not None and min(pair) > 0:
                seen.setdefault(running.pack.stage, []).append(pair)
        return seen

    def _done(
        self, seen: dict[str, list[tuple[float, float]]], everything: Sequence[tuple[float, float]]
    ) -> Counter[str]:
        """By stage, how much of the forecast of what is being done is done."""
        done, now = Counter[str](), time.monotonic()
        for running in self._running.values():
            stage = running.pack.stage
            done[stage] += running.done(now, _pace(seen.get(stage, everything)))
        return done

    def _not_asked_yet(self, needed: Sequence[Work]) -> float:
        """What the plan expects beyond what is known to be needed: the later seeds of rates that are not chosen yet."""
        arms = {run.arm_key for run in self._plan.runs}
        tasks = self._plan.tasks
        scored = [self._plan.run(run_id) for _, base, run_id, name in needed if run_id and name in tasks[base]]
        if arms == {run.arm_key for run in scored}:
            return 0.0
        planned = sum(self._plan.estimate.seconds_by_stage.get(stage, 0.0) for stage in PIECE_STAGES)
        return max(0.0, planned - sum(work_seconds(self._plan, work) for work in needed))


def _pace(seen: Sequence[tuple[float, float]]) -> float:
    """What pieces took over what they were forecast to; 1 where too little was seen."""
    return sum(took for _, took in seen) / sum(forecast for forecast, _ in seen) if len(seen) > 1 else 1.0


def _corrected(expected: float, seen: Sequence[tuple[float, float]], *, is_own: bool) -> tuple[float, float]:
    """A forecast in the light of pieces that had forecasts too, and its standard error.

    Args:
        expected: The forecast.
        seen: Of pieces, or of all parts of them so far, the forecast and what they took.
        is_own: They are of the same stage.
    """
    seconds = _pace(seen) * expected
    if len(seen) < 2 or not is_own:
        return seconds, _UNTRIED * seconds
    # Of one piece, relative; what is left is as many pieces of the mean size as its forecast holds.
    spread = stdev([took / forecast for forecast, took in seen]) / _pace(seen)
    number = max(1.0, expected / fmean([forecast for forecast, _ in seen]))
    error = seconds * spread * (1 / number + 1 / len(seen)) ** 0.5
    # A pace that is far from the forecast comes most often of other work on the machine, and may change back.
    return seconds, max(error, _DOUBT * abs(seconds - expected))
