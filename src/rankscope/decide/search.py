"""How far the search of one arm's learning rate has come: its rounds, the rates beyond its grid, and the choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rankscope.plan import Grid
from rankscope.records import Round


@dataclass(frozen=True)
class Trial:
    """What one run of the search says of its rate.

    Attributes:
        score: Accuracy on the validation items, or the negative loss where they are scored by loss; None in the middle
            of a run, where nothing is scored.
        loss: The run's validation loss after the step, in nats per token; None where it was not taken there, as of a
            run that was trained beyond it while the search had other rounds.
        num_items: That the accuracy was taken over; None for a loss.
    """

    learning_rate: float
    outcome: Literal["complete", "diverged", "failed"]
    score: float | None = None
    loss: float | None = None
    num_items: int | None = None


@dataclass(frozen=True)
class Choice:
    """The rate chosen among an arm's trials, with what each rate scored."""

    learning_rate: float | None
    scores: dict[str, float | None]
    losses: dict[str, float | None]
    at_edge: Literal["lowest", "highest"] | None
    reason: str
    steps: dict[str, int] = field(default_factory=dict)
    added: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        asked: By rate, the step to which it is to be trained.
        rounds: The rounds that are over.
        choice: None while something that was asked for is not there yet.
    """

    asked: Mapping[float, int]
    rounds: tuple[Round, ...] = ()
    choice: Choice | None = None


# The trials of some rates after a step, over the search seeds; None while one of them is not there.
Trials = Callable[[Sequence[float], int], "list[Trial] | None"]


def advance(grid: Grid, steps: Sequence[int], num_steps: int, trials: Trials, known: Sequence[Round] = ()) -> Progress:
    """Take a search as far as its trials go.

    In each round the better half of the rates goes on (see `_kept`); the last is trained in full. If it ends badly,
    those that were left behind follow in their order. Then, while the best rate lies at the edge of what was tried, the
    next beyond.

    Args:
        grid: The arm's rates, and those that may be added.
        steps: After which steps the rates are compared; empty: all are trained in full.
        num_steps: Of a whole run.
        trials: What is known.
        known: Rounds that were decided before and stay so.
    """
    alive, left, asked, rounds = list(grid.rates), [], {}, []
    for index, step in enumerate(steps):
        asked |= dict.fromkeys(alive, step)
        if index < len(known) and known[index].step == step and set(known[index].kept) <= set(alive):
            found = known[index]
        elif (shown := trials(alive, step)) is None:
            return Progress(asked, tuple(rounds))
        else:
            found = _round(step, shown)
        rounds.append(found)
        left = [rate for rate in _by_loss(found.losses, alive) if rate not in found.kept] + left
        alive = sorted(found.kept)
    # Where all are out already, their whole runs say why.
    return _finish(grid, num_steps, trials, Progress(asked, tuple(rounds)), (alive or list(grid.rates), left))


def _finish(
    grid: Grid, num_steps: int, trials: Trials, so_far: Progress, rates: tuple[list[float], list[float]]
) -> Progress:
    """Train what is left in full, and what its outcome asks for; then choose."""
    (alive, left), beyond = rates, {"lowest": list(grid.below), "highest": list(grid.above)}
    asked, tried = dict(so_far.asked), list(grid.rates)
    while True:
        asked |= dict.fromkeys(alive, num_steps)
        shown = trials(alive, num_steps)
        if shown is None:
            return replace(so_far, asked=asked)
        choice = choose_rate(shown, tried)
        if choice.learning_rate is None and left:
            alive = [*alive, left.pop(0)]
        elif choice.at_edge and beyond[choice.at_edge]:
            added = beyond[choice.at_edge].pop(0)
            alive, tried = [*alive, added], [*tried, added]
        else:
            return Progress(asked, so_far.rounds, _with_rounds(choice, so_far.rounds, asked, num_steps, grid))


def _with_rounds(
    choice: Choice, rounds: Sequence[Round], asked: Mapping[float, int], num_steps: int, grid: Grid
) -> Choice:
    """The choice with the losses of the rates that were left behind, and after which step."""
    added = tuple(sorted(rate for rate in asked if rate not in grid.rates))
    losses = dict(choice.losses)
    for item in reversed(rounds):
        losses = {**item.losses, **losses}
    steps = {f"{rate:g}": step for rate, step in sorted(asked.items()) if step < num_steps}
    order = [f"{rate:g}" for rate in sorted(asked)]
    reason = choice.reason
    if rounds:
        left = ", ".join(f"{rate} after {step} of {num_steps} steps" for rate, step in steps.items())
        is_last = choice.learning_rate in rounds[-1].kept
        how = "went through every round of halving" if is_last else reason
        reason = f"{how} (left behind: {left})" if left else reason
    if added:
        reason += f"; beyond the grid: {', '.join(f'{rate:g}' for rate in added)}"
    return replace(
        choice,
        scores={rate: choice.scores.get(rate) for rate in order},
        losses={rate: losses.get(rate) for rate in order},
        reason=reason,
        steps=steps,
        added=added,
    )


def _round(step: int, trials: Sequence[Trial]) -> Round:
    """The losses of the rates after a step, and the better half of them.

    A run that was trained beyond the step, and whose loss was not taken there, goes on: it costs nothing more.
    Before a run's end many answers are still guesses: the loss says more than how many are right, so nothing is scored.
    """
    rates = sorted({trial.learning_rate for trial in trials})
    losses = {f"{rate:g}": _mean([run.loss for run in trials if run.learning_rate == rate]) for rate in rates}
    unknown = {run.learning_rate for run in trials if run.outcome == "complete" and run.loss is None}
    unknown -= {run.learning_rate for run in trials if run.outcome != "complete"}
    kept = _kept(_by_loss(losses, rates), math.ceil((len(rates) - len(unknown)) / 2))
    return Round(step=step, losses=losses, kept=tuple(sorted({*kept, *unknown})))


def _kept(ranked: Sequence[float], number: int) -> list[float]:
    """The rates that a round keeps: those of the lowest loss, and before others the one just above the best of these.

    A high rate looks worse than it will be: what it learns shows when its schedule falls, so it is given its chance.
    """
    above = sorted(rate for rate in ranked if rate > ranked[0])[:1]
    return list(dict.fromkeys([*ranked[:1], *above, *ranked]))[:number]


def _by_loss(losses: Mapping[str, float | None], rates: Sequence[float]) -> list[float]:
    """The rates that have a finite loss, best first: the lower loss, then the lower rate."""
    known = {rate: losses[f"{rate:g}"] for rate in rates}
    return sorted(
        (rate for rate, loss in known.items() if loss is not None and math.isfinite(loss)),
        key=lambda rate: (known[rate], rate),
    )


def choose_rate(trials: Sequence[Trial], tried: Sequence[float] = ()) -> Choice:
    """Choose the rate with the lowest validation loss among those whose score is not clearly below the best.

    Accuracies within one standard error of the best are a tie (Breiman et al. 1984): on some hundred items, one more or
    less right is luck, and the loss on the same items says more. Then the higher score decides, then the lower rate.
    A rate of which any run diverged or failed is out: what happens on one seed in the search will happen again.

    Args:
        trials: The runs that were trained in full.
        tried: All rates that were tried, so that the edge is theirs; those of the trials where not given.
    """
    scores, losses, excluded = _summed(trials)
    tied = sorted(_tied(scores, trials), key=lambda rate: (_or_infinite(losses[rate]), -scores[rate], rate))
    best = tied[0] if tied else None
    return Choice(
        learning_rate=best,
        scores={f"{rate:g}": value for rate, value in scores.items()},
        losses={f"{rate:g}": value for rate, value in losses.items()},
        at_edge=_edge(best, sorted({*scores, *tried})),
        reason=_reason(tied, scores, losses, excluded),
    )


def _tied(scores: Mapping[float, float | None], trials: Sequence[Trial]) -> list[float]:
    """The rates with the best score, and those within one standard error of it where it is an accuracy."""
    known = {rate: score for rate, score in scores.items() if score is not None}
    if not known:
        return []
    best = max(known.values())
    sizes = [trial.num_items for trial in trials if trial.num_items is not None]
    error = math.sqrt(best * (1.0 - best) / min(sizes)) if sizes else 0.0
    return [rate for rate, score in known.items() if score >= best - error]


def _summed(
    trials: Sequence[Trial],
) -> tuple[dict[float, float | None], dict[float, float | None], dict[float, str]]:
    """By rate, lowest first: the mean score and loss over seeds, and why a rate is out."""
    rates = sorted({trial.learning_rate for trial in trials})
    by_rate = {rate: [trial for trial in trials if trial.learning_rate == rate] for rate in rates}
    excluded = {rate: why for rate, runs in by_rate.items() if (why := _why_out(runs))}
    scores = {rate: None if rate in excluded else _mean([run.score for run in by_rate[rate]]) for rate in rates}
    losses = {rate: None if rate in excluded else _mean([run.loss for run in by_rate[rate]]) for rate in rates}
    return scores, losses, excluded


def _why_out(runs: Sequence[Trial]) -> str | None:
    for outcome in ("diverged", "failed"):
        if any(run.outcome == outcome for run in runs):
            return outcome
    if any(run.score is None or not math.isfinite(run.score) for run in runs):
        return "has no finite validation score"
    return None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _or_infinite(loss: float | None) -> float:
    return loss if loss is not None and not math.isnan(loss) else math.inf


def _edge(best: float | None, rates: Sequence[float]) -> Literal["lowest", "highest"] | None:
    if best is None or len(rates) < 2:
        return None
    return "lowest" if best == rates[0] else "highest" if best == rates[-1] else None


def _reason(
    tied: Sequence[float],
    scores: dict[float, float | None],
    losses: dict[float, float | None],
    excluded: dict[float, str],
) -> str:
    out = ", ".join(f"{rate:g} {why}" for rate, why in excluded.items())
    if not tied:
        return f"no rate can be chosen: {out}"
    is_alone = [losses[rate] for rate in tied].count(losses[tied[0]]) == 1
    how = "best validation score"
    if len(scores) == 1:
        how = "the only rate"
    elif len({scores[rate] for rate in tied}) > 1:
        how = "lowest loss of those whose score is within a standard error of the best"
    elif len(tied) > 1:
        how = "tied score, lower loss" if is_alone else "tied score and loss, the lower rate"
    return f"{how}; {out}" if out else how
