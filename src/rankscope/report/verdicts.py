"""Verdicts as the page shows them: one sentence, the rule with its numbers, and the table of arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from rankscope.measures import MEASURES
from rankscope.records import ArmResult, Interval, Verdict
from rankscope.report.cells import Cell, number_cell
from rankscope.report.wording import (
    EMPTY,
    POOLED,
    amount,
    arm_in_words,
    count,
    counted,
    digits_of,
    rate,
    short_count,
    signed,
    unit_of,
)

_COLUMNS = {
    "gain": "Learned",
    "gain_nats": "Learned",
    "forgetting": "Forgotten",
    "forgetting_nats": "Forgotten",
    "behind_best": "Behind best",
}
_ELIGIBLE = {"yes": "within", "no": "exceeds", "unknown": "cannot tell"}


@dataclass(frozen=True)
class ArmRow:
    """One arm's line in the table of a verdict."""

    arm: str
    rank: str
    learning_rate: str
    trainable: str
    trainable_exact: str
    cells: Sequence[Cell]
    eligible: Cell
    is_recommended: bool


@dataclass(frozen=True)
class VerdictView:
    """A verdict in words."""

    group: str
    decision: str
    headline: str
    sentence: str
    evidence: str | None
    cost: str | None
    rule: str
    runner_up: str | None
    next_step: str
    warnings: Sequence[str]
    defaults: Sequence[tuple[str, str]]
    columns: Sequence[tuple[str, str, str]]
    rows: Sequence[ArmRow]


def verdict_view(
    verdict: Verdict,
    group: str,
    order: Sequence[str],
    source: str,
    cost: str | None = None,
    edges: Mapping[str, str] | None = None,
) -> VerdictView:
    """A verdict as the page shows it.

    Args:
        verdict: From decide/record.json.
        group: What a reader calls its base and training set.
        order: The arms' labels in the study's order.
        source: The file of the verdict, relative to the study directory.
        cost: What one run of the recommended arm cost, in a sentence.
        edges: By arm, `lowest` or `highest` where its best rate is at that end of those tried.
    """
    keys = [key for key in _COLUMNS if any(dict(arm)[key] is not None for arm in verdict.arms)]
    places = {label: place for place, label in enumerate(("base", *order))}
    arms = sorted(verdict.arms, key=lambda arm: places.get(arm.arm, len(places)))
    return VerdictView(
        group=group,
        decision="none" if verdict.arm == "base" else verdict.decision,
        headline=_headline(verdict),
        sentence=_sentence(verdict),
        evidence=_evidence(verdict, source),
        cost=cost,
        rule=verdict.rule,
        # Undecided, the sentence has already named the arm that leads.
        runner_up=arm_in_words(verdict.runner_up) if verdict.arm and verdict.runner_up else None,
        next_step=_next_step(verdict, edges or {}),
        warnings=verdict.warnings,
        defaults=[(name.rsplit("/", 1)[-1], f"../decide/{quote(name)}") for name in verdict.defaults],
        columns=[(key, _COLUMNS[key], unit_of(_measure(key, verdict))) for key in keys],
        rows=[_row(arm, keys, verdict, source) for arm in arms],
    )


def _headline(verdict: Verdict) -> str:
    if verdict.decision == "undecided":
        safe = verdict.safe_arm
        return "Undecided." if safe in (None, "base") else f"Undecided. Safe meanwhile: {arm_in_words(safe)}."
    if verdict.arm == "base" or verdict.arm is None:
        return "Do not fine-tune."
    at = f" at learning rate {rate(verdict.learning_rate)}" if verdict.learning_rate is not None else ""
    return f"Use {arm_in_words(verdict.arm)}{at}."


def _sentence(verdict: Verdict) -> str:
    """What to expect; while undecided, what is known so far."""
    if verdict.decision == "undecided":
        return verdict.because or "No arm could be judged."
    if verdict.arm == "base" or verdict.arm is None:
        return verdict.because or "No arm was better than the base by more than the margin within the budget."
    return f"Expect {_learned_and_forgot(verdict)}."


def _evidence(verdict: Verdict, source: str) -> str | None:
    """What the card's numbers rest on, in small type under it; None where nothing was measured.

    A recommendation speaks of one arm; what is said of a base that stays, or while it is undecided, of any of them.
    """
    tuned = [arm for arm in verdict.arms if arm.arm != "base"]
    found = [verdict] if verdict.arm not in (None, "base") else tuned
    parts = []
    intervals = {key: [one for item in found if (one := dict(item)[key])] for key in _COLUMNS if key in MEASURES}
    for key, measured in intervals.items():
        if measured:
            parts.append(f"{key}: {_range(measured, 'num_items', 'item')}, {_range(measured, 'num_seeds', 'seed')}")
    if not parts:
        return None
    confidence = next(one.confidence for measured in intervals.values() for one in measured)
    seeds_part = _seeds_part(verdict)
    inside = f" ({seeds_part})" if seeds_part else ""
    return f"{100 * confidence:g}% intervals{inside}; {'; '.join(parts)}; {source}"


def _range(intervals: Sequence[Interval], name: str, noun: str) -> str:
    """`300 items`, or `60 to 300 items` where the arms differ."""
    counts = sorted({dict(one)[name] for one in intervals})
    return counted(counts[0], noun) if len(counts) == 1 else f"{count(counts[0])} to {counted(counts[-1], noun)}"


def _learned_and_forgot(found: Verdict) -> str:
    gains = _expectations(found.gain, found.gain_nats, "gain")
    losses = _expectations(found.forgetting, found.forgetting_nats, "forgetting")
    learned = f"to learn {gains} in the domain it was trained on" if gains else ""
    forgot = f"to forget {losses} of what the base could do before" if losses else ""
    confidence = next((i.confidence for i in (found.gain, found.gain_nats, found.forgetting) if i), None)
    tail = f" ({100 * confidence:g}% intervals in brackets)" if confidence else ""
    return " and ".join(part for part in (learned, forgot) if part) + tail


def _next_step(verdict: Verdict, edges: Mapping[str, str]) -> str:
    """What a reader would do now."""
    if verdict.decision == "undecided":
        return verdict.needed or "More items or seeds; the study's own cannot tell which arm is best within the budget."
    if verdict.arm == "base" or verdict.arm is None:
        if all(arm.eligible == "no" for arm in verdict.arms if arm.arm != "base"):
            return "Keep the base; or try what forgets less: lower rates, fewer passes, or `derive: {rewind: true}`."
        if edges:
            return f"Keep the base; or first try {_beyond(edges)}, for these learned most at the end of their range."
        return "Keep the base, or ask again with other data; the margin and the accepted forgetting stand in `decide:`."
    step = "`rankscope export DIR` writes the trained model with a card that states these numbers."
    if verdict.arm in edges:
        edge = edges[verdict.arm]
        beyond = "higher" if edge == "highest" else "lower"
        return f"{step} Its learning rate is the {edge} that was tried; a {beyond} one may do better still."
    return step


def _beyond(edges: Mapping[str, str]) -> str:
    """Which rates may be better than any that was tried."""
    parts = []
    for edge, word in (("lowest", "lower"), ("highest", "higher")):
        if arms := [arm_in_words(arm) for arm, found in edges.items() if found == edge]:
            parts.append(f"{word} learning rates for {', '.join(arms) if len(arms) <= 4 else f'{len(arms)} arms'}")
    return " and ".join(parts)


def _expectations(accuracy: Interval | None, nats: Interval | None, key: str) -> str:
    parts = []
    if accuracy is not None:
        parts.append(amount(accuracy, key).removeprefix("+"))
    if nats is not None:
        parts.append(amount(nats, f"{key}_nats").removeprefix("+").replace("nats", "nats per token"))
    return " and ".join(parts)


def _row(arm: ArmResult, keys: Sequence[str], verdict: Verdict, source: str) -> ArmRow:
    return ArmRow(
        arm=arm.arm,
        rank=count(arm.rank),
        learning_rate=rate(arm.learning_rate),
        trainable=EMPTY if arm.arm == "base" else short_count(arm.num_trainable),
        trainable_exact=f"{count(arm.num_trainable)} trainable parameters",
        cells=[_cell(dict(arm)[key], _measure(key, verdict), source, _seeds_part(verdict)) for key in keys],
        eligible=Cell(_ELIGIBLE[arm.eligible], title=arm.reason, state=arm.eligible),
        is_recommended=verdict.decision == "recommended" and arm.arm == verdict.arm,
    )


def _measure(key: str, verdict: Verdict) -> str:
    """The measure in a column; arms are compared by accuracy, or by loss where the data has no right answer."""
    if key != "behind_best":
        return key
    return "gain" if any(arm.gain is not None for arm in verdict.arms) else "gain_nats"


def _seeds_part(verdict: Verdict) -> str | None:
    """Whose seeds are in a verdict's intervals; None where no seed was repeated."""
    found = [arm.gain or arm.gain_nats for arm in verdict.arms]
    return POOLED if any(interval.num_seeds > 1 for interval in found if interval) else None


def _cell(interval: Interval | None, measure: str, source: str, seeds_part: str | None) -> Cell:
    if interval is not None and interval.num_items == 0:  # the base against itself
        return Cell(signed(0.0, digits_of(measure)), title="the base itself, against which all others are measured")
    return number_cell(interval, measure, source, seeds_part)
