"""The rule that names one arm, or says that the data cannot: from what was measured to a verdict.

Why each condition is what it is, with a table of cases, is in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rankscope.decide import wording
from rankscope.decide.standing import BASE, Field, Question, Standing, interval
from rankscope.records import ARM_MEASURES, ArmResult, Interval, Verdict
from rankscope.statistics import Estimate


def judge(
    standings: Sequence[Standing],
    between: Mapping[tuple[str, str], Estimate],
    question: Question,
    warnings: Sequence[str] = (),
) -> Verdict:
    """Apply the rule to the arms of one base and training set.

    Args:
        standings: The arms, without the base; those without a score say why.
        between: Score of the first arm less the second's, for each pair (one direction is enough).
        question: The numbers of the rule and what they refer to.
        warnings: What the reader must know beside the rule's own warnings.
    """
    field = Field(standings, between, question)
    winner = decided(field)
    leading = favourite(field, leave_out=winner)
    chosen = field.arms.get(winner) if winner else None
    safe = None if winner or field.judged == [BASE] else _safe(field)
    results = tuple(_result(field, arm) for arm in _in_order(field, [BASE, *field.arms]))
    gains = {key: _value(field, winner, key) for key in ARM_MEASURES}
    return Verdict(
        base=question.base,
        training_set=question.training_set,
        decision="recommended" if winner else "undecided",
        arm=winner,
        learning_rate=chosen.learning_rate if chosen else None,
        **gains,
        rule=f"{wording.rule(question)} {wording.outcome(field, winner, best_eligible(field))}",
        runner_up=leading,
        needed=None if winner else wording.needed(field, open_questions(field)),
        safe_arm=safe,
        because=wording.meanwhile(field, safe, _others(field, safe)) if safe else wording.no_arm(field, winner),
        warnings=(*_lost_seeds(field, winner), *warnings, *_warnings(field)),
        arms=results,
    )


def decided(field: Field) -> str | None:
    """The arm that the rule names whatever the truth of what is still unknown; None where that is no single arm.

    Without any arm that could be judged there is nothing to say, not even that the base should stay as it is.
    Going up in size: an arm that is out in every case is passed over; an arm that is in in every case is the answer;
    an arm that is neither could be the answer, so nothing larger can be named.
    """
    if field.judged == [BASE]:
        return None
    for _, group in groupby(_in_order(field, field.judged), key=field.num_trainable):
        same_size = [arm for arm in group if not is_out(field, arm)]
        settled = [arm for arm in same_size if is_in(field, arm)]
        if settled:
            return settled[0]  # of arms of one size the best comes first
        if same_size:
            return None
    return None


def is_in(field: Field, arm: str) -> bool:
    """Whether an arm surely qualifies: eligible, and within the margin of every arm that could be the best eligible."""
    rivals = [other for other in field.judged if other != arm and field.eligible[other] != "no"]
    return field.eligible[arm] == "yes" and all(field.compare(arm, other) == "within" for other in rivals)


def is_out(field: Field, arm: str) -> bool:
    """Whether an arm surely does not qualify: not eligible, or worse by more than the margin than a surely eligible."""
    if field.eligible[arm] == "no":
        return True
    rivals = [other for other in field.judged if field.eligible[other] == "yes"]
    return any(field.compare(arm, other) == "worse" for other in rivals if other != arm)


def best_eligible(field: Field) -> str:
    """The surely eligible arm with the best score; the base is always eligible."""
    sure = [arm for arm in field.judged if field.eligible[arm] == "yes"]
    return min(sure, key=lambda arm: (-field.score(arm), field.num_trainable(arm), arm))


def _safe(field: Field) -> str:
    """The best of the arms that surely keep within the budgets and surely gain; the base where none does."""
    sure = [arm for arm in field.judged if arm != BASE and field.eligible[arm] == "yes" and _surely_gains(field, arm)]
    return min(sure, key=lambda arm: (-field.score(arm), field.num_trainable(arm), arm), default=BASE)


def _surely_gains(field: Field, arm: str) -> bool:
    gain = field.difference(arm, BASE)
    return gain is not None and gain.low is not None and gain.low > 0.0


def _others(field: Field, safe: str) -> tuple[list[str], list[str]]:
    """What keeps a safe arm from being named: smaller arms that may do as well, and others that may do better."""
    rest = [arm for arm in _in_order(field, field.judged) if arm != safe and not is_out(field, arm)]
    smaller = [arm for arm in rest if field.num_trainable(arm) < field.num_trainable(safe)]
    return smaller, [arm for arm in rest if arm not in smaller and field.compare(safe, arm) != "within"]


def favourite(field: Field, leave_out: str | None = None) -> str | None:
    """The arm that the rule would name if the estimates were the truth, one arm left out."""
    arms = _seeming(field, leave_out)
    if not arms or field.judged == [BASE]:
        return None
    best = max(field.score(arm) for arm in arms)
    return next(arm for arm in _in_order(field, arms) if field.score(arm) >= best - field.question.margin)


def _seeming(field: Field, leave_out: str | None = None) -> list[str]:
    """The arms whose estimated forgetting is within the budgets."""

    def seems_eligible(arm: str) -> bool:
        lost = {key: field.forgotten(arm, key) for key in field.question.budgets} if arm != BASE else {}
        return all(item is not None and item.value <= field.question.budgets[key] for key, item in lost.items())

    return [arm for arm in field.judged if arm != leave_out and seems_eligible(arm)]


def open_questions(field: Field) -> list[wording.OpenQuestion]:
    """What would have to be known for the arm that the estimates favour to be named, if the estimates are right."""
    seeming = _seeming(field)
    leading = favourite(field) or BASE
    best = max(seeming, key=lambda arm: (field.score(arm), arm), default=BASE)
    questions = [question for arm in (leading, best) for question in _eligibility_questions(field, arm)]
    for rival in _in_order(field, field.judged):
        if rival == leading or field.eligible[rival] == "no":
            continue
        if field.compare(leading, rival) != "within":
            # It must not be the better one: either it is shown to be close, or not eligible.
            questions += _about(field, leading, rival, rival in seeming, rival)
        if field.num_trainable(rival) < field.num_trainable(leading) and field.compare(rival, best) != "worse":
            # It must not be the smaller one: either it is shown to be worse, or not eligible.
            questions += _about(field, rival, best, rival in seeming, rival)
    return list(dict.fromkeys(questions))


def _about(field: Field, arm: str, rival: str, is_score: bool, doubtful: str) -> list[wording.OpenQuestion]:
    if not is_score:
        return _eligibility_questions(field, doubtful)
    return [wording.OpenQuestion("score", arm, rival, field.difference(arm, rival), -field.question.margin)]


def _eligibility_questions(field: Field, arm: str) -> list[wording.OpenQuestion]:
    if field.eligible[arm] != "unknown":
        return []
    questions = []
    for key, budget in field.question.budgets.items():
        lost = field.forgotten(arm, key)
        if lost is None or lost.low is None or lost.high is None or lost.low <= budget < lost.high:
            questions.append(wording.OpenQuestion(key, arm, None, lost, budget))
    return questions


def _in_order(field: Field, arms: Sequence[str]) -> list[str]:
    """By size, then the better score, then the name; arms without a score last."""
    scored = set(field.judged)

    def key(arm: str) -> tuple[bool, float, float, str]:
        return (arm not in scored, field.num_trainable(arm), -field.score(arm) if arm in scored else 0.0, arm)

    return sorted(arms, key=key)


def _value(field: Field, arm: str | None, key: str) -> Interval | None:
    if arm is None:
        return None
    if arm == BASE:
        return _nothing(field, key)
    return interval(getattr(field.arms[arm], key))  # a standing's fields are named like the measures


def _nothing(field: Field, key: str) -> Interval | None:
    """The base's own gain and forgetting: 0 by definition, not by measurement, where any arm has a number there."""
    if all(_value(field, arm, key) is None for arm in field.arms):
        return None
    return Interval(value=0.0, low=0.0, high=0.0, confidence=field.question.decide.confidence, num_items=0, num_seeds=0)


def _result(field: Field, arm: str) -> ArmResult:
    best = best_eligible(field)
    behind = None
    if arm in field.judged and arm != best:
        behind = interval(field.difference(best, arm))
    item = Standing(BASE, BASE, num_trainable=0) if arm == BASE else field.arms[arm]
    return ArmResult(
        arm=arm,
        method=item.method,
        rank=item.rank,
        learning_rate=item.learning_rate,
        num_trainable=item.num_trainable,
        **{key: _value(field, arm, key) for key in ARM_MEASURES},
        eligible=field.eligible[arm] if arm in field.judged else "unknown",
        behind_best=behind,
        lost_seeds=item.lost_seeds,
        reason=wording.reason(field, arm, best),
    )


def _lost_seeds(field: Field, winner: str | None) -> list[str]:
    """What goes before all other warnings: the recommended arm does not always work."""
    lost = field.arms[winner].lost_seeds if winner in field.arms else ()
    return [f"{winner} is recommended on the seeds that gave a number: {wording.lost_seeds(lost)}"] if lost else []


def _warnings(field: Field) -> list[str]:
    warnings = [f"{arm}: {field.arms[arm].reason}; not judged" for arm in field.arms if arm not in field.judged]
    scores = [field.difference(arm, BASE) for arm in field.judged if arm != BASE]
    if scores and max(item.num_seeds for item in scores) == 1:
        warnings.append("num_seeds=1: nothing was repeated, so the intervals hold the choice of items only")
    if not field.question.budgets:
        warnings.append("no retention task: nothing watches what is forgotten, so every arm counts as eligible")
    return warnings
