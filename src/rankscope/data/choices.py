"""Multiple choice in its many spellings: which fields hold the options, and which option the answer means."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from rankscope.data.content import Content, field_error, text_field, value_of, with_context
from rankscope.data.option_answers import Asked, answered, cop_start, counts_from
from rankscope.data.presets import Layout, Origin, Pattern, Preset, Replacement
from rankscope.data.readers import Row
from rankscope.data.templates import row_text
from rankscope.data.written_options import written_options
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
_MOST_ANSWERS = 20  # more different ones, most of them in one row, are free answers
_QUESTIONS = ("question", "input_text", "query", "prompt", "instruction", "input", "sentence", "context")


@dataclass(frozen=True, slots=True)
class _Options:
    """Options as a row has them; see `Asked`."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    marked: int | None = None
    has_numbers: bool = False


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
    starts_at = cop_start(asked) if asked[0].field == "cop" else 0
    return answered(asked, starts_at)


def preset_choices(rows: Sequence[Row], layout: Layout, origin: Origin, preset: Preset) -> list[Content]:
    """Multiple-choice rows of a known data set.

    Raises:
        UserError: A row does not follow the preset's layout, or its answer is none of the options.
    """
    shared = _answers_as_options(rows, layout) if layout.options_from_answers else layout.option_texts
    asked = [_asked_by_layout(row, layout, shared) for row in rows]
    if preset.replace:
        asked = [_rewritten(question, preset.replace) for question in asked]
    starts_at = layout.answer_starts_at[origin]
    if len(set(layout.answer_starts_at.values())) > 1 and not counts_from(asked, starts_at):
        # Someone saved the hub's rows as a file, or uploaded the original file: the numbers themselves say so.
        starts_at = next((start for start in (0, 1) if counts_from(asked, start)), starts_at)
    contents = answered(asked, starts_at)
    return contents if layout.blank is None else [_filled(content, layout.blank) for content in contents]


# Questions and options ----------------------------------------------------------------------------------------------


def _asked(row: Row) -> Asked:
    field = next((name for name in _ANSWERS if row.values.get(name) is not None), "answer")
    asked = next((name for name in _QUESTIONS if row.values.get(name) is not None), "question")
    question = text_field(row, asked) if asked == "context" else with_context(row, text_field(row, asked))
    for name in _LISTS:
        if row.values.get(name) is not None:
            found = _listed(row, name)
            labels, has_numbers = found.labels, found.has_numbers
            return Asked(row, question, found.texts, field, labels, has_number_options=has_numbers)
    members = max((_members(family, row.values) for family in _FAMILIES), key=len)
    return Asked(row, question, _options(row, "choices", _column_values(row, members)), field, is_numbered=True)


def read_fields(row: Row) -> set[str]:
    """The fields in which a row's question, options and answer are found by their names."""
    values = {name for name, value in row.values.items() if value is not None}
    first = (next((name for name in names if name in values), "") for names in (_QUESTIONS, _LISTS, _ANSWERS))
    question, listed, answer = first
    members = [] if listed else max((_members(family, values) for family in _FAMILIES), key=len)
    return {question, listed, answer, *members}


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


def _listed(row: Row, name: str) -> _Options:
    """Options in one field: a list, a mapping of names to texts or of texts to 0 and 1, or two lists side by side."""
    value = value_of(row, name)
    if value is None:
        raise field_error(row, name, "is missing")
    if isinstance(value, str):
        value = _in_cell(value)
    if isinstance(value, dict):
        return _mapped(row, name, value)
    if isinstance(value, str):
        if not (written := written_options(value)):
            mend = 'write them as a list, ["yes", "no"], or with their letters: A) yes  B) no'
            raise field_error(row, name, "is one text, and no list of options", mend)
        return _Options(_options(row, name, [text for _, text in written]), tuple(label for label, _ in written))
    if not isinstance(value, list):
        raise field_error(row, name, "is no list of options")
    if value and all(isinstance(option, dict) and {"text", "label"} <= set(option) for option in value):
        texts, labels = ([option[key] for option in value] for key in ("text", "label"))
        return _Options(_options(row, name, texts), tuple(str(label) for label in labels))
    is_number = [isinstance(option, (int, float)) and not isinstance(option, bool) for option in value]
    return _Options(_options(row, name, value), has_numbers=bool(value) and all(is_number))


def _in_cell(text: str) -> Any:
    """The list or mapping that a cell of a table holds, as JSON or as pandas writes it: `['x', 'y']`; else the text."""
    if text.strip()[:1] not in ("[", "{"):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore"):  # of backslashes that Python does not know
                found = read(text.strip())
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return found
    return text


def _mapped(row: Row, name: str, value: dict[str, Any]) -> _Options:
    texts = next((value[key] for key in ("text", "choices") if isinstance(value.get(key), list)), None)
    labels = next((value[key] for key in ("label", "labels") if isinstance(value.get(key), list)), None)
    if texts is not None and labels is not None:  # the hub's two lists side by side
        options = _options(row, name, texts)
        if len(labels) != len(options):
            raise field_error(row, name, f"has {len(options)} texts and {len(labels)} labels")
        if "labels" in value and set(labels) <= {0, 1}:
            return _Options(options, marked=_marked(row, name, labels))
        return _Options(options, tuple(str(label) for label in labels))
    if value and all(isinstance(mark, int) and mark in (0, 1) for mark in value.values()):  # {"right": 1, "wrong": 0}
        return _Options(_options(row, name, list(value)), marked=_marked(row, name, list(value.values())))
    return _Options(_options(row, name, list(value.values())), tuple(str(label) for label in value))  # {"A": ..., }


def _marked(row: Row, name: str, marks: Sequence[int]) -> int:
    if list(marks).count(1) != 1:
        raise field_error(row, name, f"marks {list(marks).count(1)} options as right; there must be one")
    return list(marks).index(1)


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


def _answers_as_options(rows: Sequence[Row], layout: Layout) -> tuple[str, ...]:
    """The different answers of all rows, as the options of each."""
    field = layout.answer or "answer"
    answers = sorted({text_field(row, field).strip() for row in rows})
    if len(answers) < 2 or (len(answers) > _MOST_ANSWERS and len(answers) > len(rows) // 2):
        what = f"the {len(rows)} rows have {len(answers)} different answers, which are no options to choose from"
        raise UserError(what, where=rows[0].where, mend="set `columns: {question: ..., answer: ...}` and no `preset`")
    return tuple(answers)


def _asked_by_layout(row: Row, layout: Layout, shared: tuple[str, ...]) -> Asked:
    field = layout.answer or "answer"
    category = layout.category or "category"
    if layout.pattern is not None:
        question, options, labels = _inside(row, layout.pattern)
        return Asked(row, question, options, field, labels, category_column=category)
    question = row_text(row, layout.question or "question")
    if shared:
        return Asked(row, question, shared, field, category_column=category)
    if isinstance(layout.options, str):
        found = _listed(row, layout.options)
        is_numbered = not found.labels
        return Asked(
            row, question, found.texts, field, found.labels, is_numbered, marked=found.marked, category_column=category
        )
    options = _options(row, "options", _column_values(row, layout.options or ()))
    return Asked(row, question, options, field, is_numbered=True, category_column=category)


def _rewritten(question: Asked, replacements: Sequence[Replacement]) -> Asked:
    def rewritten(text: str) -> str:
        for replacement in replacements:
            text = re.sub(replacement.find, replacement.by, text, flags=re.DOTALL)
        return text

    return replace(question, question=rewritten(question.question), options=tuple(map(rewritten, question.options)))


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
        rest=after,
    )
