"""Which option the answer of a multiple-choice row means: its name, its number, its letter or its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rankscope.data.content import Content, field_error, value_of
from rankscope.data.readers import Row
from rankscope.errors import UserError

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_MEND = "the answer is the option's number (counted from 0), its letter, or its text"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its options, before it is known what its answer means.

    Attributes:
        field: The column of the answer.
        labels: What the data calls each option (`A`, `answer1`); empty where it has no names of its own.
        is_numbered: Each option has a column of its own, so a number surely counts them.
        has_number_options: The options are numbers themselves, so an answer that is a number may be one of them.
        marked: The right option, where the data marks it and has no column for the answer.
    """

    row: Row
    question: str
    options: tuple[str, ...]
    field: str
    labels: tuple[str, ...] = ()
    is_numbered: bool = False
    has_number_options: bool = False
    marked: int | None = None
    category_column: str = "category"


def answered(asked: Sequence[Asked], starts_at: int) -> list[Content]:
    """Every question with its right option, under the one reading of the answers that fits all of them.

    Args:
        asked: The questions of a source.
        starts_at: Where the options are counted from, if answers are numbers.

    Raises:
        UserError: An answer is none of the options, or can be read in two ways; with file and line.
    """
    indices = _meant(asked, starts_at)
    return [
        Content(
            question.row,
            (("user", question.question),),
            question.options[index],
            question.options,
            index,
            category_column=question.category_column,
        )
        for question, index in zip(asked, indices, strict=True)
    ]


def _meant(asked: Sequence[Asked], starts_at: int) -> list[int]:
    if all(question.marked is not None for question in asked):
        return [question.marked for question in asked if question.marked is not None]
    readings: dict[str, Callable[[Asked], int | None]] = {
        "label": _by_label,
        "number": lambda question: _by_number(question, starts_at),
        "letter": _by_letter,
        "text": _by_text,
    }
    read = {name: [reading(question) for question in asked] for name, reading in readings.items()}
    fits = [name for name in read if None not in read[name]]
    if not fits:
        best = max(read, key=lambda name: sum(index is not None for index in read[name]))
        number = read[best].index(None)
        raise _no_option(asked[number], best, [name for name in read if read[name][number] is not None])
    # Names that the data gives its options, and the numbers of columns, are no accident; the rest must agree.
    chosen = "label" if "label" in fits else "number" if "number" in fits and asked[0].is_numbered else fits[0]
    if chosen not in ("label", "number") or not (asked[0].is_numbered or asked[0].labels):
        for other in fits:
            for question, one, two in zip(asked, read[chosen], read[other], strict=True):
                if one != two:
                    raise field_error(
                        question.row,
                        question.field,
                        f"can be read as a {chosen} and as a {other}, which mean different options",
                        "write answers as the options' letters, or options as texts (in quotes) and answers as numbers",
                    )
    return [index for index in read[chosen] if index is not None]


def _no_option(question: Asked, reading: str, others: Sequence[str]) -> UserError:
    """What is wrong with an answer that the reading of most does not fit, and perhaps others do."""
    value = value_of(question.row, question.field)
    if value is None:
        return field_error(question.row, question.field, "is missing")
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    if others:
        what = f"is {shown}, a {others[0]}, where other answers are each a {reading}"
        return field_error(question.row, question.field, what, "write all answers of a source in the same way")
    return field_error(question.row, question.field, f"is {shown}, none of the {len(question.options)} options", _MEND)


def _by_label(question: Asked) -> int | None:
    value = value_of(question.row, question.field)
    if not question.labels or not isinstance(value, (str, int)) or isinstance(value, bool):
        return None
    labels = [label.strip().casefold() for label in question.labels]
    wanted = str(value).strip().casefold()
    return labels.index(wanted) if wanted in labels else None


def _by_number(question: Asked, starts_at: int) -> int | None:
    number = _number(value_of(question.row, question.field))
    if number is None or not 0 <= number - starts_at < len(question.options):
        return None
    return number - starts_at


def _by_letter(question: Asked) -> int | None:
    value = value_of(question.row, question.field)
    found = _LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
    index = ord(found[1].upper()) - ord("A") if found else len(question.options)
    return index if index < len(question.options) else None


def _by_text(question: Asked) -> int | None:
    value = value_of(question.row, question.field)
    if question.has_number_options and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or value.strip() not in question.options:
        return None
    return question.options.index(value.strip())


def _number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # Longer digit strings are no option's number, and int() refuses the longest.
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}\s*", value, re.ASCII):
        return int(value)
    return None


def counts_from(asked: Sequence[Asked], start: int) -> bool:
    """Whether every answer is a number that counts the options from `start`."""
    return all(_by_number(question, start) is not None for question in asked)


def cop_start(asked: Sequence[Asked]) -> int:
    """Where MedMCQA's `cop` counts from: its files say 1, the hub's copy 0; the numbers themselves decide."""
    starts = [start for start in (0, 1) if counts_from(asked, start)]
    if len(starts) == 2:
        raise field_error(asked[0].row, "cop", "may count from 0 or from 1", "say `preset: medmcqa` in the study file")
    return starts[0] if starts else 1
