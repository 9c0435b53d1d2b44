"""What a person sees while a study runs: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankscope.board import Board
from rankscope.clock import Clock
from rankscope.data.summaries import data_lines
from rankscope.execute.events import Event, Failed, Finished, Progress
from rankscope.plan import PIECE_STAGES, Pack, Plan
from rankscope.work import Work

_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_SECONDS, _PLAIN_SHARE = 10.0, 0.02  # between summaries in a log, and of the time so far


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

    def update(
        self, board: Board, needed: list[Work], later: list[Work], events: list[Event], in_flight: list[Progress]
    ) -> None:
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
            self._console.print(_summary(board, needed, later, self._clock), markup=False, soft_wrap=True)
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

    def update(
        self, board: Board, needed: list[Work], later: list[Work], events: list[Event], in_flight: list[Progress]
    ) -> None:
        """Draw anew; what failed is printed above and stays."""
        self._clock.note(events)
        for event in events:
            if isinstance(event, Failed):
                self._console.print(Text(f"FAILED {_name(event)}: {event.cause}", style="bold red"))
            elif isinstance(event, Progress) and event.loss is not None:
                self._losses.setdefault(event.run_id, []).append(event.loss)
        self._live.update(self._picture(board, needed, later, in_flight))

    def message(self, text: str) -> None:
        """Printed above the picture, where it stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def _picture(
        self, board: Board, needed: list[Work], later: list[Work], in_flight: list[Progress]
    ) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for event in in_flight:
            loss = "" if event.loss is None else f"{event.loss:.3f} {_sparkline(self._losses[event.run_id])}"
            bar = ProgressBar(event.total, event.done, width=20)
            table.add_row(Text(event.run_id), event.pack.stage, bar, f"{event.done}/{event.total}", loss)
        done = sum(board.has_ended(work) for work in needed)
        whole = Table.grid()  # a bar by itself ends no line
        whole.add_row(ProgressBar(max(1, len(needed) + len(later)), done, width=60))
        return Group(whole, Text(_summary(board, needed, later, self._clock)), table)


def make_display(console: Console) -> LiveDisplay | PlainDisplay:
    """A live picture where the output is a terminal, else plain lines."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def _say_planned(console: Console, plan: Plan, remarks: list[str]) -> None:
    layout, (first, later) = plan.layout, plan.num_runs
    words = f"{first + later} runs, {first} in the search for rates and {later} more at the chosen ones"
    threads = "1 thread" if layout.threads_per_worker == 1 else f"{layout.threads_per_worker} threads"
    processes = "1 process" if layout.num_workers == 1 else f"{layout.num_workers} processes"
    place = f"on {layout.device}, {processes} with {threads}{' each' if layout.num_workers > 1 else ''}"
    console.print(f"{plan.study}: {words}; {place}{layout.pack_words}", markup=False, soft_wrap=True)
    for line in data_lines(summary for summary in plan.data if summary.role == "train"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for text in (*plan.warnings, *remarks):
        console.print(f"note: {text}", markup=False, soft_wrap=True)


def _summary(board: Board, needed: list[Work], later: list[Work], clock: Clock) -> str:
    done = Counter(work[0] for work in needed if board.has_ended(work))
    total = Counter(work[0] for work in (*needed, *later))
    parts = [f"{stage} {done[stage]}/{total[stage]}" for stage in PIECE_STAGES if total[stage]]
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
        stream: Where the lines go; None, as it is where the shell closed it, for nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._what = ""
        self._started = self._said = 0.0

    def message(self, text: str) -> None:
        """One line; what it tells of goes on where nobody reads it."""
        if self._stream is not None:
            with suppress(BrokenPipeError):
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
