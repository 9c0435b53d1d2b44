"""How this machine is best divided among runs: some seconds of the study's own training, tried in several ways."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import polars as pl

from rankscope.data.examples import TokenisedExample, examples_from_frame
from rankscope.execute.surroundings import surroundings
from rankscope.plan import Layout, Plan, Trial
from rankscope.runs import RunSettings
from rankscope.schedule import companions

SECONDS = 4.0
# What is measured twice differs by a few hundredths; a layout that is no better than that is not worth the change.
_LEAST_GAIN = 1.05
_START_SECONDS = 600.0


class TrialError(Exception):
    """What was tried failed, and not for want of memory."""


@dataclass(frozen=True)
class TrialWork:
    """What a process trains while it is timed.

    Attributes:
        runs: Of one pack, as many as the trial's pack size.
        examples: Of each run's training set.
        seconds: How long.
    """

    runs: tuple[RunSettings, ...]
    examples: tuple[tuple[TokenisedExample, ...], ...]
    dtype: str
    layout: Layout
    max_tokens: int
    seconds: float


def measured_layout(
    plan: Plan,
    examples: Mapping[tuple[str, str], pl.DataFrame],
    layouts: Iterable[Layout],
    try_out: Callable[[TrialWork], float | None] | None = None,
) -> Layout:
    """The layout in which the study trains fastest, with what was measured of each in it.

    Packs of a division of the machine grow until they are no faster or do not fit, so most layouts are never tried.

    Args:
        plan: The study's plan.
        examples: By base and training set, as planned.
        layouts: Those to try, the one chosen without measuring first; of each division the smallest pack first.
        try_out: How one is tried; `steps_per_second` where not given.
    """
    runs = _runs_that_pack(plan)
    trials: list[Trial] = []
    ended: set[tuple[int, int]] = set()
    for layout in layouts:
        division = (layout.num_workers, layout.threads_per_worker)
        if division in ended or layout.pack_size > max(1, len(runs)):
            continue
        chosen = tuple((runs or plan.runs)[: layout.pack_size])
        rows = tuple(_examples(examples[run.base.name, run.training_set.name]) for run in chosen)
        work = TrialWork(chosen, rows, plan.dtype, layout, plan.max_tokens_per_batch, SECONDS)
        speed = (try_out or steps_per_second)(work)
        smaller = [trial.steps_per_second for trial in trials if division == _division(trial)]
        if speed is not None:
            trials.append(Trial(**_numbers(layout), steps_per_second=speed))
        if speed is None or (smaller and speed < _LEAST_GAIN * max(smaller)):
            ended.add(division)
    return _fastest(plan.layout, trials)


def steps_per_second(work: TrialWork) -> float | None:
    """Optimizer steps a second of all runs in all processes of a layout; None where it does not fit the memory.

    Raises:
        TrialError: A process failed for another reason.
    """
    context = multiprocessing.get_context("spawn")
    number = work.layout.num_workers
    barrier = context.Barrier(number)
    pairs = [context.Pipe(duplex=False) for _ in range(number)]
    processes = [context.Process(target=_train, args=(theirs, barrier, work), daemon=True) for _, theirs in pairs]
    for slot, process in enumerate(processes):
        with surroundings(work.layout, slot):
            process.start()
    for _, theirs in pairs:
        theirs.close()
    speeds = _received([ours for ours, _ in pairs], barrier)
    for process in processes:
        process.join(timeout=5.0)
        process.kill()
    if failures := [speed for speed in speeds if isinstance(speed, str)]:
        raise TrialError(failures[0])
    return None if None in speeds else sum(speeds)


def _received(connections: list[Connection], barrier: Barrier) -> list[float | str | None]:
    """What processes measured; the error of one that failed; None for one that the system killed for its memory."""
    speeds: list[float | str | None] = []
    waiting = list(connections)
    while waiting:
        ready = wait(waiting, _START_SECONDS)
        for connection in ready or list(waiting):
            waiting.remove(connection)
            try:
                speeds.append(connection.recv() if connection in ready else None)
            except EOFError:
                speeds.append(None)
        if not all(isinstance(speed, float) for speed in speeds):
            barrier.abort()  # the others would wait for the one that is gone
    return speeds


def _train(connection: Connection, barrier: Barrier, work: TrialWork) -> None:
    """In a process of its own: train for some seconds, together with the others, and say how fast it went."""
    from rankscope.models.memory import is_out_of_memory
    from rankscope.models.silence import without_library_noise

    try:
        with without_library_noise():  # it has the terminal of the process that waits
            connection.send(_timed(barrier, work))
    except BrokenBarrierError:  # another one has failed, and says why
        connection.send(None)
    except Exception as error:  # noqa: BLE001  it goes to the process that waits, which raises it
        connection.send(None if is_out_of_memory(error) else f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def _timed(barrier: Barrier, work: TrialWork) -> float | None:
    """Optimizer steps a second of this process; None where its memory does not hold a batch as it is."""
    import torch

    from rankscope.data.hub import model_folder
    from rankscope.data.order import batches
    from rankscope.models.loading import DTYPES, load_model
    from rankscope.models.methods.making import make_trainable
    from rankscope.train.loop import start_run, train

    torch.set_num_threads(work.layout.threads_per_worker)
    base = work.runs[0].base
    folder = model_folder(base.source, base.revision)
    model = load_model(folder, DTYPES[work.dtype], work.layout.device, base.opening)
    pack = make_trainable(model, work.runs)
    states = []
    for index, (run, examples) in enumerate(zip(work.runs, work.examples, strict=True)):
        order = batches(len(examples), run.optimization.batch_size, run.num_steps, run.seed)
        states.append(start_run(pack, index, examples, examples[:1], order))
    first = _Clock(lambda: all(state.step > 0 for state in states))
    train(pack, states, work.max_tokens, first)  # memory is found in the first step
    barrier.wait(_START_SECONDS)
    started = time.perf_counter()
    clock = _Clock(lambda: time.perf_counter() - started > work.seconds)
    train(pack, states, work.max_tokens, clock)
    # A CUDA device is waited for in every step: its losses are read.
    is_short = any(state.shortages for state in states)
    return None if is_short else clock.num_steps / (time.perf_counter() - started)


@dataclass
class _Clock:
    """Counts steps, and stops training when it is time."""

    is_over: Callable[[], bool]
    num_steps: int = 0

    def after_step(self, _: object) -> None:
        self.num_steps += 1

    def wants_stop(self) -> bool:
        return self.is_over()


def _runs_that_pack(plan: Plan) -> list[RunSettings]:
    """The largest set of runs that could be trained together; empty where none could."""
    groups: dict[tuple, list[RunSettings]] = {}
    for run in plan.runs:
        if (key := companions(plan, run, ())) is not None:
            groups.setdefault(key, []).append(run)
    return max(groups.values(), key=len, default=[])


def _examples(frame: pl.DataFrame) -> tuple[TokenisedExample, ...]:
    return tuple(examples_from_frame(frame.filter(pl.col("split") == "train")))


def _fastest(default: Layout, trials: Sequence[Trial]) -> Layout:
    """The trial with the most steps a second, unless the layout that needs no measurement is about as fast."""
    best = max(trials, key=lambda trial: trial.steps_per_second, default=None)
    own = next((trial for trial in trials if _numbers(trial) == _numbers(default)), None)
    is_worth_it = best is not None and (own is None or best.steps_per_second > _LEAST_GAIN * own.steps_per_second)
    chosen = _numbers(best) if best is not None and is_worth_it else {}
    return default.model_copy(update={**chosen, "trials": tuple(trials)})


def _numbers(layout: Layout | Trial) -> dict[str, int]:
    return {name: getattr(layout, name) for name in ("num_workers", "threads_per_worker", "pack_size")}


def _division(trial: Trial) -> tuple[int, int]:
    return trial.num_workers, trial.threads_per_worker
