"""Each arm against full fine-tuning, where a study has it: what was learned and forgotten more or less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.records import ArmPair, Interval, Verdict
from rankscope.report.cells import Cell, number_cell
from rankscope.report.wording import POOLED, arm_in_words, digits_of, scaled, signed, unit_of
from rankscope.spec import Decide
from rankscope.statistics import compared

_COLUMNS = {"gain": "Learned", "gain_nats": "Learned", "forgetting": "Forgotten", "forgetting_nats": "Forgotten"}
_LEARNED = {"more": "Surely learned more", "within": "Learned as much", "worse": "Learned less",
            "open": "As much or less, cannot be told"}  # fmt: skip


@dataclass(frozen=True)
class AgainstFull:
    """Every other arm less full fine-tuning: a sentence, and a row an arm with a cell a column.

    Attributes:
        full: The label of the arm of full fine-tuning.
        answer: Which arms learned as much, which did not, of which it cannot be told, and which forgot less or more.
        limit: From where on a loss of learning would matter, in words; None where the study's margins are not known.
        columns: Measure, name and unit.
        rows: An arm, and its cells.
    """

    full: str
    answer: str
    limit: str | None
    columns: Sequence[tuple[str, str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def against_full(verdict: Verdict, settings: Decide | None, order: Sequence[str], source: str) -> AgainstFull | None:
    """What a verdict's pairs say of full fine-tuning; None where there is no such arm, or nothing beside it.

    Args:
        verdict: From decide/record.json.
        settings: The rule's numbers; without them nothing can be said to be as good.
        order: The arms' labels in the study's order; of several arms of full fine-tuning the first counts.
        source: The file of the verdict, relative to the study directory.
    """
    methods = {arm.arm: arm.method for arm in verdict.arms}
    full = next((label for label in order if methods.get(label) == "full"), None)
    less = {(label, pair.measure): found for pair in verdict.pairs for label, found in _less(pair, full)}
    arms = [label for label in order if any(label == arm for arm, _ in less)]
    if full is None or not arms:
        return None
    keys = [key for key in _COLUMNS if any(key == measure for _, measure in less)]
    seeds_part = POOLED if any(found.num_seeds > 1 for found in less.values()) else None
    limits = _limits(settings)
    return AgainstFull(
        full=full,
        answer=_answer(less, arms, keys, limits),
        limit=_in_words(next((key for key in keys if key in limits), None), limits),
        columns=[(key, _COLUMNS[key], unit_of(key)) for key in keys],
        rows=[(arm, [number_cell(less.get((arm, key)), key, source, seeds_part) for key in keys]) for arm in arms],
    )


def _less(pair: ArmPair, full: str | None) -> list[tuple[str, Interval]]:
    """The other arm of a pair with its difference from full fine-tuning; empty where that is not in the pair."""
    found = pair.difference
    if pair.rival == full:
        return [(pair.arm, found)]
    if pair.arm != full:
        return []
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return [(pair.rival, found.model_copy(update={"value": -found.value, "low": low, "high": high}))]


def _limits(settings: Decide | None) -> dict[str, float]:
    return {} if settings is None else {"gain": settings.margin, "gain_nats": settings.margin_nats}


def _in_words(key: str | None, limits: dict[str, float]) -> str | None:
    if key is None:
        return None
    return f"{100 * limits[key]:g} points" if key == "gain" else f"{limits[key]:g} nats per token"


def _answer(
    less: dict[tuple[str, str], Interval], arms: Sequence[str], keys: Sequence[str], limits: dict[str, float]
) -> str:
    learned = next((key for key in keys if key in limits), None)
    said: dict[str, list[str]] = {}
    for arm in arms:
        if learned is not None:
            said.setdefault(_LEARNED[_compared(less.get((arm, learned)), limits[learned])], []).append(arm)
    parts = [f"{text}: {_named(said[text])}" for text in _LEARNED.values() if text in said]
    sides = {arm: {key: _side(less.get((arm, key))) for key in keys if key.startswith("forgetting")} for arm in arms}
    for side, word in ((-1, "Surely forgot less"), (1, "Surely forgot more")):
        surely = [
            f"{arm_in_words(arm)} ({', '.join(_size(less[arm, key], key) for key in found if found[key] == side)})"
            for arm, found in sides.items()
            if side in found.values() and -side not in found.values()
        ]
        parts += [f"{word}: {', '.join(surely)}"] if surely else []
    return ". ".join(parts) + "." if parts else "Nothing differs surely."


def _named(arms: Sequence[str]) -> str:
    return ", ".join(map(arm_in_words, arms))


def _size(found: Interval, key: str) -> str:
    """How much; what is sure may yet be little."""
    return f"{signed(scaled(found.value, key), digits_of(key))} {unit_of(key)}"


def _compared(found: Interval | None, margin: float) -> str:
    """As the rule compares two arms, with what is surely better by itself."""
    if _side(found) > 0:
        return "more"
    return "open" if found is None else compared(found.low, found.high, margin)


def _side(found: Interval | None) -> int:
    """On which side of zero an interval lies wholly; 0 where it holds zero or there is none."""
    if found is None or found.low is None or found.high is None:
        return 0
    return (found.low > 0) - (found.high < 0)
