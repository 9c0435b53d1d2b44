"""Each arm's learning rate, chosen on validation items of the search seeds before any test item is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rankscope.plan import VALIDATION, Plan
from rankscope.records import RateChoice, Rates
from rankscope.runs import RunSettings
from rankscope.store import Store, write_text

RATES = "rates.json"
DONE = {"complete", "diverged", "failed"}


@dataclass(frozen=True)
class Trial:
    """What one run of the search says of its rate.

    Attributes:
        score: Accuracy on the validation items, or the negative loss where they are scored by loss.
        loss: The run's last validation loss, in nats per token.
    """

    learning_rate: float
    outcome: Literal["complete", "diverged", "failed"]
    score: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Choice:
    """The rate chosen among an arm's trials, with what each rate scored."""

    learning_rate: float | None
    scores: dict[str, float | None]
    losses: dict[str, float | None]
    at_edge: Literal["lowest", "highest"] | None
    reason: str


def choose_rate(trials: Sequence[Trial]) -> Choice:
    """Choose the rate with the best mean validation score, then the lower loss, then the lower rate.

    A rate of which any run diverged or failed is out: what happens on one seed in the search will happen again.
    """
    rates = sorted({trial.learning_rate for trial in trials})
    by_rate = {rate: [trial for trial in trials if trial.learning_rate == rate] for rate in rates}
    excluded = {rate: why for rate, runs in by_rate.items() if (why := _why_out(runs))}
    scores = {rate: None if rate in excluded else _mean([run.score for run in by_rate[rate]]) for rate in rates}
    losses = {rate: None if rate in excluded else _mean([run.loss for run in by_rate[rate]]) for rate in rates}
    able = [rate for rate in rates if scores[rate] is not None]
    best = min(able, key=lambda rate: (-scores[rate], _or_infinite(losses[rate]), rate), default=None)
    return Choice(
        learning_rate=best,
        scores={f"{rate:g}": value for rate, value in scores.items()},
        losses={f"{rate:g}": value for rate, value in losses.items()},
        at_edge=_edge(best, rates),
        reason=_reason(best, scores, losses, excluded),
    )


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
    best: float | None,
    scores: dict[float, float | None],
    losses: dict[float, float | None],
    excluded: dict[float, str],
) -> str:
    out = ", ".join(f"{rate:g} {why}" for rate, why in excluded.items())
    if best is None:
        return f"no rate can be chosen: {out}"
    tied = [rate for rate, score in scores.items() if score == scores[best] and score is not None]
    how = "best validation score"
    if len(scores) == 1:
        how = "the only rate"
    elif len(tied) > 1:
        same_loss = [rate for rate in tied if losses[rate] == losses[best]]
        how = "tied score, lower loss" if len(same_loss) == 1 else "tied score and loss, the lower rate"
    return f"{how}; {out}" if out else how


def update_rates(store: Store, plan: Plan) -> Rates:
    """Add a choice for every arm whose candidates are done, write decide/rates.json, and return all choices.

    A choice is never changed while its runs and what they scored are the same. It is made anew when an arm's candidates
    are others now, or when one that failed was run again; the choice of an arm that the study lost is dropped.
    """
    made = {(item.base, item.training_set, item.arm): item for item in store.read_rates().choices}
    choices = []
    for (base, training_set, arm), runs in _searches(plan).items():
        old, trials = made.get((base, training_set, arm)), _trials(store, plan, runs)
        has_same_runs = old is not None and set(old.run_ids) == {run.run_id for run in runs}
        if trials is not None:
            new = _record(plan, runs, choose_rate(trials))
            is_same = has_same_runs and new.model_copy(update={"chosen_at": old.chosen_at}) == old
            choices.append(old if is_same else new)
        elif has_same_runs:
            choices.append(old)  # a candidate is being run again; until it is done the choice stands
    rates = Rates(choices=tuple(choices))
    if choices and rates != store.read_rates():
        write_text(store.decide / RATES, rates.model_dump_json(indent=1) + "\n")
    return rates


def _searches(plan: Plan) -> dict[tuple[str, str, str], list[RunSettings]]:
    """The runs on the search seeds, by base, training set and arm, in the plan's order."""
    searches: dict[tuple[str, str, str], list[RunSettings]] = {}
    for run in plan.runs:
        if run.seed in plan.search_seeds:
            searches.setdefault((run.base.name, run.training_set.name, run.arm.label), []).append(run)
    return searches


def _trials(store: Store, plan: Plan, runs: Sequence[RunSettings]) -> list[Trial] | None:
    """What the runs of a search say; None while one of them is not done."""
    trials = []
    for run in runs:
        trial = _trial(store, plan, run)
        if trial is None:
            return None
        trials.append(trial)
    return trials


def _trial(store: Store, plan: Plan, run: RunSettings) -> Trial | None:
    train = store.read_train(run.run_id)
    if train is None or train.status not in DONE:
        return None
    if train.status != "complete":
        return Trial(run.learning_rate, train.status)
    scored = store.read_evaluate(store.task(run.run_id, VALIDATION))
    if scored is None or scored.status not in DONE:
        return None
    if scored.status != "complete":
        return Trial(run.learning_rate, scored.status)
    key = _score_key(plan, run)
    value = scored.values.get(key)
    score = -value if value is not None and key == "loss_nats_per_token" else value
    loss = train.validations[-1].loss_nats_per_token if train.validations else None
    return Trial(run.learning_rate, "complete", score, loss)


def _score_key(plan: Plan, run: RunSettings) -> str:
    scoring = plan.validation[run.base.name][run.training_set.name].scoring
    return "loss_nats_per_token" if scoring == "loss" else "accuracy"


def _record(plan: Plan, runs: Sequence[RunSettings], choice: Choice) -> RateChoice:
    first, key = runs[0], _score_key(plan, runs[0])
    # Within `choose_rate` higher is better; the record holds the measure as it is named.
    sign = -1.0 if key == "loss_nats_per_token" else 1.0
    return RateChoice(
        base=first.base.name,
        training_set=first.training_set.name,
        arm=first.arm.label,
        learning_rate=choice.learning_rate,
        scores={rate: None if score is None else sign * score for rate, score in choice.scores.items()},
        losses=choice.losses,
        score_key=key,
        at_edge=choice.at_edge,
        reason=choice.reason,
        chosen_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        run_ids=tuple(run.run_id for run in runs),
    )
