"""What a person sees while a study runs: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankscope.board import Board
from rankscope.data.summaries import data_lines
from rankscope.execute.events import Event, Failed, Finished, Progress
from rankscope.plan import PIECE_STAGES, Pack, Plan
from rankscope.schedule import pack_seconds, work_seconds
from rankscope.work import Work, work_of

_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_SECONDS, _PLAIN_SHARE = 10.0, 0.02  # between summaries in a log, and of the time so far
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
            if isinstance(event, Finished) and running is not None and running.expected > 0:
                self._seen.setdefault(event.pack.stage, []).append((running.expected, now - running.started))

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
            if pair is not None and pair[0] > 0:
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
        arms = {(run.base.name, run.training_set.name, run.arm.label) for run in self._plan.runs}
        tasks = self._plan.tasks
        scored = [self._plan.run(run_id) for _, base, run_id, name in needed if run_id and name in tasks[base]]
        if arms == {(run.base.name, run.training_set.name, run.arm.label) for run in scored}:
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


class PlainDisplay:
    """Lines for a log: each finished or failed piece of training, and now and then how far everything is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock: Clock  # from `planned` on, which comes first
        self._plan: Plan
        self._spoke = 0.0

    def planned(self, plan: Plan, remarks: list[str]) -> None:
        """Say what is about to happen."""
        self._clock, self._plan = Clock(plan), plan
        _say_planned(self._console, plan, remarks)

    def update(self, board: Board, needed: list[Work], events: list[Event], in_flight: list[Progress]) -> None:
        """Print what ended, and a summary every few seconds, of a long study less often."""
        self._clock.note(events)
        for event in events:
            if isinstance(event, Failed):
                self._console.print(f"FAILED {_name(event)}: {event.cause}", markup=False, soft_wrap=True)
            elif isinstance(event, Finished) and event.pack.stage == "train":
                self._console.print(f"trained {_name(event)}{self._how_far(event.pack)}", markup=False, soft_wrap=True)
        if time.monotonic() - self._spoke > max(_PLAIN_SECONDS, _PLAIN_SHARE * (time.monotonic() - self._clock.start)):
            self._spoke = time.monotonic()
            losses = ", ".join(f"{event.run_id} loss {event.loss:.3f}" for event in in_flight if event.loss is not None)
            self._console.print(_summary(board, needed, self._clock), markup=False, soft_wrap=True)
            if losses:
                self._console.print(f"  in training: {losses}", markup=False, soft_wrap=True)

    def _how_far(self, pack: Pack) -> str:
        """To which step a round of halving trained a pack's runs; nothing where it was the last."""
        return f" to step {pack.names[0]} of {self._plan.run(pack.run_ids[0]).num_steps}" if pack.names else ""

    def message(self, text: str) -> None:
        """A line for a person."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to give back."""


class LiveDisplay:
    """A picture that renews itself: how far everything is, and what is being done with its losses."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock: Clock  # from `planned` on, which comes first
        self._losses: dict[str, list[float]] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def planned(self, plan: Plan, remarks: list[str]) -> None:
        """Say what is about to happen, then start the picture."""
        self._clock = Clock(plan)
        _say_planned(self._console, plan, remarks)
        self._live.start()

    def update(self, board: Board, needed: list[Work], events: list[Event], in_flight: list[Progress]) -> None:
        """Draw anew; what failed is printed above and stays."""
        self._clock.note(events)
        for event in events:
            if isinstance(event, Failed):
                self._console.print(Text(f"FAILED {_name(event)}: {event.cause}", style="bold red"))
            elif isinstance(event, Progress) and event.loss is not None:
                self._losses.setdefault(event.run_id, []).append(event.loss)
        self._live.update(self._picture(board, needed, in_flight))

    def message(self, text: str) -> None:
        """Printed above the picture, where it stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def _picture(self, board: Board, needed: list[Work], in_flight: list[Progress]) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for event in in_flight:
            loss = "" if event.loss is None else f"{event.loss:.3f} {_sparkline(self._losses[event.run_id])}"
            bar = ProgressBar(event.total, event.done, width=20)
            table.add_row(Text(event.run_id), event.pack.stage, bar, f"{event.done}/{event.total}", loss)
        done = sum(board.has_ended(work) for work in needed)
        whole = Table.grid()  # a bar by itself ends no line
        whole.add_row(ProgressBar(max(1, len(needed)), done, width=60))
        return Group(whole, Text(_summary(board, needed, self._clock)), table)


def make_display(console: Console) -> LiveDisplay | PlainDisplay:
    """A live picture where the output is a terminal, else plain lines."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def _say_planned(console: Console, plan: Plan, remarks: list[str]) -> None:
    layout, (first, later) = plan.layout, plan.num_runs
    words = f"{first + later} runs, {first} in the search for rates and {later} more at the chosen ones"
    threads = "1 thread" if layout.threads_per_worker == 1 else f"{layout.threads_per_worker} threads"
    processes = "1 process" if layout.num_workers == 1 else f"{layout.num_workers} processes"
    place = f"on {layout.device}, {processes} with {threads}{' each' if layout.num_workers > 1 else ''}"
    console.print(f"{plan.study}: {words}; {place}", markup=False, soft_wrap=True)
    for line in data_lines(summary for summary in plan.data if summary.role == "train"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for text in (*plan.warnings, *remarks):
        console.print(f"note: {text}", markup=False, soft_wrap=True)


def _summary(board: Board, needed: list[Work], clock: Clock) -> str:
    done = Counter(work[0] for work in needed if board.has_ended(work))
    total = Counter(work[0] for work in needed)
    stages = ("train", "evaluate", "analyse", "derive")
    parts = [f"{stage} {done[stage]}/{total[stage]}" for stage in stages if total[stage]]
    failed = len(board.failed())
    if failed:
        parts.append(f"failed {failed}")
    parts.append(f"{duration(time.monotonic() - clock.start)} so far")
    forecast = clock.seconds_left(board, needed)
    if forecast is not None:
        seconds, error = forecast
        parts.append(f"about {duration(seconds)} left (give or take {duration(error)})")
    return ", ".join(parts)


class CountLines:
    """How far something is that is done piece by piece: a line now and then, with the time that is left.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._what = ""
        self._started = self._said = 0.0

    def message(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """So many of so many are done."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._said = what, now, now
        elif done and now - self._said > _PLAIN_SECONDS:
            left = (now - self._started) / done * (total - done)
            self._said = now
            self.message(f"{what} {done} of {total}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds for a person: `45 s`, `3 min 20 s`, `2 h 05 min`.

    Examples:
        >>> duration(200)
        '3 min 20 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _sparkline(values: Sequence[float]) -> str:
    last = values[-20:]
    low, high = min(last), max(last)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[int((value - low) / span * (len(_BLOCKS) - 1))] for value in last if value == value)


def _name(event: Finished | Failed) -> str:
    return " + ".join(event.pack.run_ids) or f"base {event.pack.base}"
