"""Multiple choice in its many spellings: which fields hold the options, and which option the answer means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rankscope.data.content import Content, field_error, text_field
from rankscope.data.presets import Layout, Origin, Pattern
from rankscope.data.readers import Row
from rankscope.errors import UserError

_LISTS = ("choices", "options", "endings")
_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("opa", "opb", "opc", "opd", "ope"),
    tuple(f"choice{number}" for number in range(10)),
    tuple(f"choice{number}" for number in range(1, 10)),
    tuple(f"option{number}" for number in range(10)),
    tuple(f"option{number}" for number in range(1, 10)),
    tuple(f"option_{letter}" for letter in "abcdefgh"),
    tuple("ABCDEFGH"),
)
_ANSWERS = ("answer", "cop", "label", "answerKey", "answer_idx", "answer_index", "correct", "target", "gold")
_QUESTIONS = ("question", "input_text", "query", "prompt", "instruction", "input", "sentence", "context")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_MEND = "the answer is the option's number (counted from 0), its letter, or its text"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its options, before it is known what its answer means.

    Attributes:
        labels: What the data calls each option (`A`, `answer1`); empty where it has no names of its own.
        is_numbered: Each option has a column of its own, so a number surely counts them.
    """

    row: Row
    question: str
    options: tuple[str, ...]
    field: str
    labels: tuple[str, ...] = ()
    is_numbered: bool = False
    category_column: str = "category"


def has_choices(fields: Set[str]) -> bool:
    """Whether a row with these fields is a multiple-choice question."""
    has_options = any(name in fields for name in _LISTS) or any(len(_members(f, fields)) > 1 for f in _FAMILIES)
    return has_options and any(name in fields for name in _ANSWERS)


def choice_contents(rows: Sequence[Row]) -> list[Content]:
    """Multiple-choice rows whose options and answers are found by the usual names.

    What the answers mean (number from 0, letter, label, text) is decided for all rows at once.

    Raises:
        UserError: A field is missing, an answer is none of the options or can be read in two ways; with file and line.
    """
    asked = [_asked(row) for row in rows]
    starts_at = _cop_start(asked) if asked[0].field == "cop" else 0
    return _answered(asked, starts_at)


def preset_choices(rows: Sequence[Row], layout: Layout, origin: Origin) -> list[Content]:
    """Multiple-choice rows of a known data set.

    Raises:
        UserError: A row does not follow the preset's layout, or its answer is none of the options.
    """
    asked = [_asked_by_layout(row, layout) for row in rows]
    starts_at = layout.answer_starts_at[origin]
    if len(set(layout.answer_starts_at.values())) > 1 and not _counts_from(asked, starts_at):
        # Someone saved the hub's rows as a file, or uploaded the original file: the numbers themselves say so.
        starts_at = next((start for start in (0, 1) if _counts_from(asked, start)), starts_at)
    contents = _answered(asked, starts_at)
    return contents if layout.blank is None else [_filled(content, layout.blank) for content in contents]


# Questions and options ----------------------------------------------------------------------------------------------


def _asked(row: Row) -> _Asked:
    field = next((name for name in _ANSWERS if row.values.get(name) is not None), "answer")
    question = text_field(row, next((name for name in _QUESTIONS if row.values.get(name) is not None), "question"))
    for name in _LISTS:
        if row.values.get(name) is not None:
            options, labels = _listed(row, name)
            return _Asked(row, question, options, field, labels)
    members = max((_members(family, row.values) for family in _FAMILIES), key=len)
    return _Asked(row, question, _options(row, "choices", _column_values(row, members)), field, is_numbered=True)


def _members(family: Sequence[str], fields: Iterable[str]) -> list[str]:
    """The columns of a family that a row has, from its first without a gap."""
    found = []
    for name in family:
        if name not in fields:
            break
        found.append(name)
    return found


def _column_values(row: Row, columns: Sequence[str]) -> list[Any]:
    for name in columns:
        if name not in row.values:
            raise field_error(row, name, "is missing")
    values = [row.values[name] for name in columns]
    while len(values) > 2 and values[-1] is None:  # a table of five columns with a question of four options
        values.pop()
    return values


def _listed(row: Row, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options in one field: a list, or the hub's `text` and `label` lists."""
    value = row.values.get(name)
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        options, labels = _options(row, name, value["text"]), tuple(str(label) for label in value["label"])
        if len(labels) != len(options):
            raise field_error(row, name, f"has {len(options)} texts and {len(labels)} labels")
        return options, labels
    if isinstance(value, dict):  # {"A": ..., "B": ...}
        return _options(row, name, list(value.values())), tuple(str(label) for label in value)
    if value is None:
        raise field_error(row, name, "is missing")
    if not isinstance(value, list):
        raise field_error(row, name, "is no list of options")
    return _options(row, name, value), ()


def _options(row: Row, name: str, values: Sequence[Any]) -> tuple[str, ...]:
    options = []
    for number, value in enumerate(values, start=1):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not isinstance(value, str) and not is_number:
            raise field_error(row, name, f"has an option {number} that is no text")
        if not str(value).strip():
            raise field_error(row, name, f"has an option {number} that is empty")
        options.append(str(value).strip())
    if len(options) < 2:
        raise field_error(row, name, f"has {len(options)} options; there must be two or more")
    return tuple(options)


def _asked_by_layout(row: Row, layout: Layout) -> _Asked:
    field = layout.answer or "answer"
    category = layout.category or "category"
    if layout.pattern is not None:
        question, options, labels = _inside(row, layout.pattern)
        return _Asked(row, question, options, field, labels, category_column=category)
    question = text_field(row, layout.question or "question")
    if isinstance(layout.options, str):
        options, labels = _listed(row, layout.options)
        return _Asked(row, question, options, field, labels, is_numbered=not labels, category_column=category)
    options = _options(row, "options", _column_values(row, layout.options or ()))
    return _Asked(row, question, options, field, is_numbered=True, category_column=category)


def _inside(row: Row, pattern: Pattern) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Question, options and labels that are written in one text."""
    text = text_field(row, pattern.field)
    found = re.fullmatch(pattern.text, text, re.DOTALL)
    if found is None or not found["question"].strip():
        raise field_error(row, pattern.field, "is not written as this data set's preset expects")
    listed = text_field(row, pattern.options_field) if pattern.options_field else found["options"]
    options = [(match["label"], match["text"]) for match in re.finditer(pattern.option, listed, re.DOTALL)]
    texts = _options(row, pattern.field, [text for _, text in options])
    return found["question"].strip(), texts, tuple(label for label, _ in options)


# Answers ------------------------------------------------------------------------------------------------------------


def _answered(asked: Sequence[_Asked], starts_at: int) -> list[Content]:
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


def _meant(asked: Sequence[_Asked], starts_at: int) -> list[int]:
    """The right option of every question, under the one reading of the answers that fits all of them."""
    readings: dict[str, Callable[[_Asked], int | None]] = {
        "label": _by_label,
        "number": lambda question: _by_number(question, starts_at),
        "letter": _by_letter,
        "text": _by_text,
    }
    read = {name: [reading(question) for question in asked] for name, reading in readings.items()}
    fits = [name for name in read if None not in read[name]]
    if not fits:
        best = max(read, key=lambda name: sum(index is not None for index in read[name]))
        raise _no_option(asked[read[best].index(None)])
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
                        "write answers as the options' texts or letters, or as JSON numbers",
                    )
    return [index for index in read[chosen] if index is not None]


def _no_option(question: _Asked) -> UserError:
    value = question.row.values.get(question.field)
    if value is None:
        return field_error(question.row, question.field, "is missing")
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return field_error(question.row, question.field, f"is {shown}, none of the {len(question.options)} options", _MEND)


def _by_label(question: _Asked) -> int | None:
    value = question.row.values.get(question.field)
    if not question.labels or not isinstance(value, (str, int)) or isinstance(value, bool):
        return None
    labels = [label.strip().casefold() for label in question.labels]
    wanted = str(value).strip().casefold()
    return labels.index(wanted) if wanted in labels else None


def _by_number(question: _Asked, starts_at: int) -> int | None:
    number = _number(question.row.values.get(question.field))
    if number is None or not 0 <= number - starts_at < len(question.options):
        return None
    return number - starts_at


def _by_letter(question: _Asked) -> int | None:
    value = question.row.values.get(question.field)
    found = _LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
    index = ord(found[1].upper()) - ord("A") if found else len(question.options)
    return index if index < len(question.options) else None


def _by_text(question: _Asked) -> int | None:
    value = question.row.values.get(question.field)
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


def _counts_from(asked: Sequence[_Asked], start: int) -> bool:
    """Whether every answer is a number that counts the options from `start`."""
    return all(_by_number(question, start) is not None for question in asked)


def _cop_start(asked: Sequence[_Asked]) -> int:
    """Where MedMCQA's `cop` counts from: its files say 1, the hub's copy 0; the numbers themselves decide."""
    starts = [start for start in (0, 1) if _counts_from(asked, start)]
    if len(starts) == 2:
        raise field_error(asked[0].row, "cop", "may count from 0 or from 1", "say `preset: medmcqa` in the study file")
    return starts[0] if starts else 1


def _filled(content: Content, blank: str) -> Content:
    """A sentence with a blank: what comes before it is the prompt, each option goes on with what comes after it."""
    ((role, sentence),) = content.turns
    before, found, after = sentence.partition(blank)
    if not found:
        raise UserError(f"the sentence has no '{blank}' to fill", where=content.row.where, mend="correct the row")
    options = tuple(option + after for option in content.options)
    index = content.answer_index or 0
    return Content(
        content.row,
        ((role, before.rstrip()),),
        options[index],
        options,
        index,
        category_column=content.category_column,
    )
