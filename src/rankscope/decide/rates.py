"""Each arm's learning rate, chosen on validation items of the search seeds before any test item is scored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rankscope.decide.search import Choice, Trial, advance
from rankscope.plan import VALIDATION, Grid, Plan
from rankscope.records import Asked, RateChoice, Rates, Search
from rankscope.runs import ArmKey, RunSettings
from rankscope.store import Store, write_text
from rankscope.work import Work, needed_work, settled_arms

RATES = "rates.json"
DONE = {"complete", "diverged", "failed"}


def update_rates(store: Store, plan: Plan) -> Rates:
    """Add a choice for every arm whose candidates are done, write decide/rates.json, and return all choices.

    A choice is never changed while its runs and what they scored are the same. It is made anew when an arm's candidates
    are others now, or when one that failed was run again; the choice of an arm that the study lost is dropped. Where
    rates are searched in rounds or beyond their grid, what comes next is written there too.
    """
    written = store.read_rates()
    made = {item.arm_key: item for item in written.choices}
    begun = {item.arm_key: item for item in written.searches}
    choices, searches = [], []
    for key, runs in _candidates(plan).items():
        search, choice = _searched(store, plan, runs, begun.get(key))
        old = made.get(key)
        if search is not None:
            searches.append(search)
        if choice is not None:
            new = _record(plan, runs, choice)
            is_same = old is not None and new.model_copy(update={"chosen_at": old.chosen_at}) == old
            choices.append(old if is_same else new)
        elif old is not None and set(old.run_ids) <= {run.run_id for run in runs} and _is_whole(plan, old, runs):
            choices.append(old)  # a candidate is being run again; until it is done the choice stands
    rates = Rates(choices=tuple(choices), searches=tuple(searches))
    if (choices or searches) and rates != written:
        write_text(store.decide / RATES, rates.model_dump_json(indent=1) + "\n")
    return rates


def later_work(plan: Plan, rates: Rates) -> list[Work]:
    """What the choices that are still to be made will ask for: as many pieces, whichever rates they name.

    What halving and `extend` add on the way is known to nobody before.
    """
    settled = settled_arms(rates)
    supposed = [_supposed(plan, runs) for key, runs in _candidates(plan).items() if key not in settled]
    if not supposed:
        return []
    known = set(needed_work(plan, rates))
    all_of_it = needed_work(plan, rates.model_copy(update={"choices": (*rates.choices, *supposed)}))
    return [work for work in all_of_it if work not in known and not _is_in_search(plan, work)]


def _supposed(plan: Plan, runs: Sequence[RunSettings]) -> RateChoice:
    """A choice that stands for any other of the arm."""
    first = next(run for run in runs if not plan.is_beyond(run))
    choice = Choice(first.learning_rate, scores={}, losses={}, at_edge=None, reason="supposed")
    return _record(plan, runs, choice)


def _is_in_search(plan: Plan, work: Work) -> bool:
    stage, _, run_id, _ = work
    return stage == "train" and run_id is not None and plan.run(run_id).seed in plan.search_seeds


def _is_whole(plan: Plan, choice: RateChoice, runs: Sequence[RunSettings]) -> bool:
    """Whether a choice compared every candidate of the study file's grid."""
    return {run.run_id for run in runs if not plan.is_beyond(run)} <= set(choice.run_ids)


def _searched(
    store: Store, plan: Plan, runs: Sequence[RunSettings], begun: Search | None
) -> tuple[Search | None, Choice | None]:
    """How far an arm's search has come; the first is None where it trains its grid in full and no more."""
    first = runs[0]
    grid = plan.grids.get(first.arm.label) or Grid(rates=tuple(sorted({run.learning_rate for run in runs})))
    run_ids = tuple(run.run_id for run in runs)
    is_known = begun is not None and begun.run_ids == run_ids

    def trials(rates: Sequence[float], step: int) -> list[Trial] | None:
        found = [_trial(store, plan, run, step) for run in runs if run.learning_rate in rates]
        return None if any(trial is None for trial in found) else found

    # Rates that were all trained in full, before the study asked for halving, are compared as they are.
    steps = () if trials(grid.rates, first.num_steps) is not None else plan.round_steps(first)
    progress = advance(grid, steps, first.num_steps, trials, begun.rounds if is_known else ())
    if not plan.round_steps(first) and not grid.below and not grid.above:
        return None, progress.choice
    asked = tuple(Asked(learning_rate=rate, step=step) for rate, step in sorted(progress.asked.items()))
    search = Search(
        base=first.base.name,
        training_set=first.training_set.name,
        arm=first.arm.label,
        asked=asked,
        rounds=progress.rounds,
        run_ids=run_ids,
    )
    return search, progress.choice


def _candidates(plan: Plan) -> dict[ArmKey, list[RunSettings]]:
    """The runs on the search seeds, by base, training set and arm, in the plan's order."""
    searches: dict[ArmKey, list[RunSettings]] = {}
    for run in plan.runs:
        if run.seed in plan.search_seeds:
            searches.setdefault(run.arm_key, []).append(run)
    return searches


def _trial(store: Store, plan: Plan, run: RunSettings, step: int) -> Trial | None:
    """What a run says after a step of it, and at its end by its score too; None while it is not so far."""
    is_whole = step >= run.num_steps
    train = store.read_train(run.run_id)
    if train is None or (train.status not in DONE and (is_whole or train.num_steps < step)):
        return None
    if train.status in {"diverged", "failed"}:
        return Trial(run.learning_rate, train.status)
    loss = next((point.loss_nats_per_token for point in train.validations if point.step == step), None)
    if not is_whole:
        return Trial(run.learning_rate, "complete", loss=loss)
    scored = store.read_evaluate(store.task(run.run_id, VALIDATION))
    if scored is None or scored.status not in DONE:
        return None
    if scored.status != "complete":
        return Trial(run.learning_rate, scored.status)
    key = _score_key(plan, run)
    value = scored.values.get(key)
    score = -value if value is not None and key == "loss_nats_per_token" else value
    num_items = None if key == "loss_nats_per_token" else scored.num_items
    return Trial(run.learning_rate, "complete", score, loss, num_items)


def _score_key(plan: Plan, run: RunSettings) -> str:
    scoring = plan.validation[run.base.name][run.training_set.name].scoring
    return "loss_nats_per_token" if scoring == "loss" else "accuracy"


def _record(plan: Plan, runs: Sequence[RunSettings], choice: Choice) -> RateChoice:
    first, key = runs[0], _score_key(plan, runs[0])
    # Within a search higher is better; the record holds the measure as it is named.
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
        run_ids=tuple(run.run_id for run in runs if f"{run.learning_rate:g}" in choice.scores),
        steps=choice.steps,
        added=choice.added,
    )
