"""The verdict in words: the rule with its numbers, what came out, and what would decide."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rankscope.decide.standing import BASE, Field, Question
from rankscope.statistics import MAX_ITEM_FACTOR, MAX_SEEDS, POWER, Estimate, further_seeds, items_factor

MAX_ASKED = 3
_CHANCE = f"with a chance of {POWER:.0%}"


@dataclass(frozen=True)
class OpenQuestion:
    """One thing that the intervals cannot tell.

    Attributes:
        about: `score` (arm less rival against the margin), `forgetting` or `forgetting_nats` (against the budget).
        limit: The value that the interval would have to exclude.
    """

    about: str
    arm: str
    rival: str | None
    estimate: Estimate | None
    limit: float

    @property
    def distance(self) -> float:
        """How far the estimate is from the limit."""
        return 0.0 if self.estimate is None else abs(self.estimate.value - self.limit)


def rule(question: Question) -> str:
    """The rule in words, with its numbers filled in."""
    level = f"{question.decide.confidence:.0%}"
    unit = question.score.removeprefix("gain")
    score = "accuracy" if question.score == "gain" else "loss in nats per token"
    parts = [
        f"Recommended is the eligible arm with the fewest trainable parameters that is not worse than any arm that may "
        f"be the best eligible one by more than {_amount(question.margin, unit)} ({score}, mean over "
        f"{_names(question.tasks['score'])}). The base competes, with no trainable parameters and no gain."
    ]
    limits = [
        f"{_amount(budget, key.removeprefix('forgetting'))} (mean over {_names(question.tasks[key])})"
        for key, budget in question.budgets.items()
    ]
    if limits:
        parts.append(f"An arm is eligible if what it forgets is at most {' and at most '.join(limits)}.")
    for key, kind in (("forgetting", "accuracy"), ("forgetting_nats", "text")):
        if key not in question.budgets:
            parts.append(f"No retention task measures {kind}, so that budget does not apply.")
    parts.append(f"Each of these holds when the {level} interval over items and seeds lies wholly on its side.")
    return " ".join(parts)


def outcome(field: Field, winner: str | None, best: str) -> str:
    """What the rule gave, in a sentence or two."""
    unit = field.question.score.removeprefix("gain")
    best_words = f"The best arm that is surely eligible is {best}{_gain(field, best, unit)}."
    if field.judged == [BASE]:
        return "No arm could be judged: undecided."
    if winner is None:
        return f"{best_words} The intervals leave more than one arm possible: undecided."
    if winner == BASE:
        return f"{best_words} No arm that may be eligible is better than the base by more than the margin."
    if winner == best:
        return f"{best_words} Every smaller arm, the base included, is worse by more than the margin or not eligible."
    behind = _span(field.difference(best, winner), unit)
    return f"{best_words} {winner} is {behind} behind it; every smaller arm is worse than the margin or not eligible."


def meanwhile(field: Field, safe: str, others: tuple[Sequence[str], Sequence[str]]) -> str:
    """What can be used until it is decided, and why it is not recommended.

    Args:
        field: What was measured.
        safe: The best of the arms that surely keep within the budgets and surely gain, or the base.
        others: Smaller arms that may do as well, and arms that may do better.
    """
    smaller, better = others
    unit = field.question.score.removeprefix("gain")
    if safe == BASE:
        said = "Until it is decided the base is the safe choice: no arm surely learns something within the budget."
    else:
        gained = f"gains {_span(field.difference(safe, BASE), unit)}"
        said = f"Until it is decided {safe} is safe to use: it {' and '.join([gained, *_forgets(field, safe)])}."
    why = []
    if smaller:
        why.append(f"{_few(smaller)} may do as well with fewer parameters")
    if better:
        why.append(f"{_few(better)} may be better by more than the margin")
    return f"{said} It is not recommended yet because {', and '.join(why)}." if why and safe != BASE else said


def no_arm(field: Field, winner: str | None) -> str | None:
    """Why the base won, with the numbers of the arm that came nearest; None where it did not."""
    if winner != BASE:
        return None
    tuned = [arm for arm in field.judged if arm != BASE]
    within = [arm for arm in tuned if field.eligible[arm] != "no"]
    if not within:
        least = min(tuned, key=lambda arm: _excess(field, arm))
        forgets = _forgets(field, least, only=field.overspent(least))
        return f"Every arm forgot more than is accepted; {least} the least: it {' and '.join(forgets)}."
    unit = field.question.score.removeprefix("gain")
    best = max(within, key=lambda arm: (field.score(arm), arm))
    others = len(tuned) - len(within)
    tail = f" {others} more forgot more than is accepted." if others else ""
    return (
        f"Of the arms that may keep within the accepted forgetting {best} gained most: "
        f"{_span(field.difference(best, BASE), unit)}; the margin is {_amount(field.question.margin, unit)}.{tail}"
    )


def _few(names: Sequence[str]) -> str:
    return _names(names) if len(names) <= MAX_ASKED else f"{len(names)} others"


def reason(field: Field, arm: str, best: str) -> str:
    """Why an arm stands where it does."""
    if arm not in field.judged:
        return field.arms[arm].reason
    if arm == BASE:
        return "untrained: gains and forgets nothing"
    parts = _forgets(field, arm)
    if arm == best:
        parts.append("the best of the surely eligible")
    else:
        words = {"within": "within the margin", "worse": "worse than the margin", "open": "open against the margin"}
        span = _span(field.difference(arm, best), field.question.score.removeprefix("gain"))
        parts.append(f"scores {span} against {best}: {words[field.compare(arm, best)]}")
    if lost := field.arms[arm].lost_seeds:
        parts.append(lost_seeds(lost))
    return "; ".join(parts)


def _excess(field: Field, arm: str) -> float:
    """How far an arm is beyond the budget that it overspends most, in budgets, or in units of one that is 0."""
    worst = -math.inf
    for key, budget in field.question.budgets.items():
        lost = field.forgotten(arm, key)
        worst = max(worst, math.inf if lost is None else (lost.value - budget) / (budget or 1.0))
    return worst


def _forgets(field: Field, arm: str, only: Collection[str] | None = None) -> list[str]:
    """What an arm forgets, against each budget, or those of some kinds."""
    said = []
    for key, budget in field.question.budgets.items():
        if only is not None and key not in only:
            continue
        unit, lost = key.removeprefix("forgetting"), field.forgotten(arm, key)
        where = "not measured" if lost is None else f"{_span(lost, unit)} of at most {_amount(budget, unit)}"
        said.append(f"forgets {where}")
    return said


def lost_seeds(lost: Sequence[str]) -> str:
    """Seeds without a number, and what that means for the others' numbers."""
    return f"{_names(lost)} at this rate, so a run may do worse than its numbers say"


def needed(field: Field, questions: Sequence[OpenQuestion]) -> str:
    """What would decide: how many further seeds or items, what they cost, and the line of the study file."""
    if field.judged == [BASE]:
        return "No arm could be judged; the warnings say why. Where every rate diverged, try lower ones."
    asked = _open(questions)
    known = [item for item in questions if item.estimate is not None and item.estimate.low is not None]
    if not known or len(known) < len(questions):
        return f"Some of it has no interval: score more items, or run the seeds that are missing. {asked}"
    seeds = [further_seeds(item.estimate, item.distance) for item in known]
    if all(count is not None for count in seeds):
        return f"{_more_seeds(field.question, max(max(seeds), 1))} {asked}"
    factors = [items_factor(item.estimate, item.distance) for item in known]
    if all(factor is not None for factor in factors):
        return f"{_more_items(field.question, known, max(factors))} {asked}"
    return (
        f"Neither {MAX_SEEDS} seeds nor {MAX_ITEM_FACTOR:.0f} times the items alone would decide "
        f"{_CHANCE}: the difference lies too near its limit. Ask for more of both, or state another limit under "
        f"`decide:` before looking at new data. {asked}"
    )


def _open(questions: Sequence[OpenQuestion]) -> str:
    """The questions themselves, the first few: a person acts on what would decide, not on the list."""
    if not questions:
        return "Open: the comparisons contradict one another."
    asked = list(dict.fromkeys(_asked(item, questions) for item in questions))
    shown = "; ".join(asked[:MAX_ASKED])
    more = len(asked) - MAX_ASKED
    return f"Open: {shown}" + (f"; and {more} more." if more > 0 else ".")


def _more_seeds(question: Question, count: int) -> str:
    seeds = [*question.seeds, *range(max(question.seeds) + 1, max(question.seeds) + 1 + count)]
    cost = question.seconds_per_seed
    time = "" if cost is None else f", about {_duration(count * cost)} of runs"
    return (
        f"{count} further {'seed' if count == 1 else 'seeds'} would decide {_CHANCE}{time}; "
        f"in the study file: `seeds: [{', '.join(map(str, seeds))}]`."
    )


def _more_items(question: Question, questions: Sequence[OpenQuestion], factor: float) -> str:
    names = list(dict.fromkeys(name for item in questions for name in question.tasks[item.about]))
    cost = factor * sum(question.scoring_seconds.get(name, 0.0) for name in names)
    time = f", about {_duration(cost)} of scoring" if cost else ""
    return (
        f"Seeds alone would not decide; {math.ceil(10 * factor) / 10:g} times the items would, {_CHANCE}{time}; in the "
        f"study file, under `evaluate:`, {_where_more_are(names, question.cut)}."
    )


def _where_more_are(names: Sequence[str], cut: Collection[str]) -> str:
    """A task whose source may have more rows than are scored needs no other source."""
    left, used_up = ([name for name in names if (name in cut) == is_cut] for is_cut in (True, False))
    said = [f"a larger `max_examples` for {_names(left)}"] if left else []
    said += [f"a larger source for {_names(used_up)}, where no more items are left"] if used_up else []
    return ", and ".join(said)


def _asked(item: OpenQuestion, questions: Sequence[OpenQuestion]) -> str:
    """A question in words; one that is asked both ways is the same text from either side."""
    if item.rival is None:
        unit = item.about.removeprefix("forgetting")
        span = "not measured" if item.estimate is None else _span(item.estimate, unit)
        return f"{item.arm} forgets {span}, and the budget is {_amount(item.limit, unit)}"
    is_mutual = any((other.arm, other.rival) == (item.rival, item.arm) for other in questions)
    if item.estimate is None:
        first, second = sorted((item.arm, item.rival)) if is_mutual else (item.arm, item.rival)
        return f"{first} and {second} share no seed"
    behind, first, second = item.estimate.negated(), item.arm, item.rival
    if is_mutual and (behind.value, first) < (0.0, second):
        behind, first, second = item.estimate, second, first
    unit = "" if behind.spread.flip is not None else "_nats"
    margin = f"the margin is {_amount(-item.limit, unit)}{' either way' if is_mutual else ''}"
    return f"{first} is {_span(behind, unit)} behind {second}, and {margin}"


def _gain(field: Field, arm: str, unit: str) -> str:
    return "" if arm == BASE else f" (gain {_span(field.difference(arm, BASE), unit)})"


def _amount(value: float, unit: str) -> str:
    return f"{value:.3g} nats per token" if unit else f"{100 * value:.3g} points"


def _span(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return "an unknown amount"
    scale, digits, name = (1, 3, "nats per token") if unit else (100, 1, "points")
    value, low, high = (
        # z: no minus before what rounds to 0.
        None if number is None else f"{scale * number:z.{digits}f}".replace("-", "\N{MINUS SIGN}")
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} {name} (no interval)" if low is None or high is None else f"{value} {name} ({low} to {high})"


def _names(names: Sequence[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "no task"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(1, round(seconds)):d} seconds"
