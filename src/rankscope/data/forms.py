"""What a row says: the form of the rows is found from their fields, and each becomes turns, answer and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rankscope.data.choices import choice_contents, has_choices, preset_choices, read_fields
from rankscope.data.content import Content, text_field, value_of, with_context
from rankscope.data.conversations import conversation_content, message_content
from rankscope.data.presets import Layout, Preset
from rankscope.data.readers import Row
from rankscope.data.sources import Rows
from rankscope.data.templates import row_text
from rankscope.data.written_options import with_written_options
from rankscope.errors import UserError

Form = Literal["messages", "sharegpt", "multiple_choice", "prompt_completion", "alpaca", "question_answer", "text"]
# What `columns` in the study file may name.
ROLES = (
    "messages", "conversations", "question", "choices", "answer", "prompt", "completion", "instruction", "input",
    "output", "context", "text", "category", "id", "cluster",
)  # fmt: skip
# By what it is, the column, or of the options the columns.
Columns = Mapping[str, str | tuple[str, ...]]
_MOST_LOOKED_AT = 20  # later rows with the first one's fields are taken to have its form
# What is read of a row of each form, beside its id, category and cluster; of multiple choice, what `choices` finds.
_FIELDS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations", "conversation", "system"),
    "multiple_choice": ("context",),
    "prompt_completion": ("prompt", "completion", "response"),
    "alpaca": ("instruction", "input", "context", "output", "response", "system"),
    "question_answer": ("question", "context", "answer", "response"),
    "text": ("text",),
}
FORMS = "messages, prompt/completion, instruction/output, question/answer, question/choices/answer, or text"
_NAMING = (
    f"write them as {FORMS}; or name the columns: `columns: {{question: q, answer: a}}` in the study file, `--columns "
    "question=q answer=a` for `init`; with `choices: [a, b, c]`, or `choices=a,b,c`, where options stand in columns"
)


class UnnamedColumns(UserError):
    """Rows in which it is not found which column is what."""


@dataclass(frozen=True)
class Contents:
    """All rows of a source, understood.

    Attributes:
        form: What the rows were taken for.
        contents: One for each row, in their order.
        num_blank: Rows of plain text that are blank, which part the others.
        unread: The fields that hold something in any row and are not read, where no preset says what they are.
    """

    form: Form
    contents: list[Content]
    num_blank: int = 0
    unread: tuple[str, ...] = ()


def understand(rows: Rows, columns: Columns | None = None) -> Contents:
    """Find the form of the rows and read each of them.

    Args:
        rows: The rows, with their preset if the data set is a known one.
        columns: What a column is, where its name does not say: `{question: q, choices: [right, wrong]}`.

    Raises:
        UserError: The form is unknown, rows have several forms, or a row lacks a field; with its file and line.
    """
    if not rows.rows:
        raise UserError("there are no rows", key=("source",), mend="check source, split and max_examples")
    if columns:
        named = [_renamed(row, columns) for row in rows.rows]
        understood = _convert(named, _common_form(named, tuple(columns)))
        return replace(understood, unread=_unread(rows.rows, named[0], understood.form, columns))
    layout = _layout(rows)
    if layout is not None and rows.preset is not None:
        return _by_layout(rows, layout, rows.preset)
    understood = _convert(rows.rows, _common_form(rows.rows))
    return replace(understood, unread=_unread(rows.rows, rows.rows[0], understood.form))


def _unread(rows: Sequence[Row], first: Row, form: Form, columns: Columns | None = None) -> tuple[str, ...]:
    """The fields that hold something in any row, and of which nothing is read; `first` is the first row, renamed."""
    named = [name for column in (columns or {}).values() for name in ([column] if isinstance(column, str) else column)]
    read = {"id", "category", "cluster", *named, *(name.partition(".")[0] for name in named), *_FIELDS[form]}
    read.add("")  # a table's index column, as pandas writes it
    read |= read_fields(first) if form == "multiple_choice" else set()
    left: dict[str, None] = {}
    for row in rows:
        for name, value in row.values.items():
            if name not in read and name not in left and value not in (None, ""):
                left[name] = None
    return tuple(map(str, left))


def _by_layout(rows: Rows, layout: Layout, preset: Preset) -> Contents:
    if layout.chooses:
        return Contents("multiple_choice", preset_choices(rows.rows, layout, rows.origin, preset))
    asked = layout.question or "text"
    if layout.answer is None:
        kept = [row for row in rows.rows if not (layout.skips_blank and _is_blank(row.values.get(asked)))]
        if not kept:
            raise UserError("all rows are blank", where=rows.rows[0].where, mend="check source and split")
        texts = [Content(row, (), row_text(row, asked), verbatim="") for row in kept]
        joined = _joined(texts, preset.heading) if preset.heading else texts
        return Contents("text", joined, len(rows.rows) - len(kept))
    category = layout.category or "category"
    contents = [
        Content(row, (("user", row_text(row, asked)),), text_field(row, layout.answer), category_column=category)
        for row in rows.rows
    ]
    return Contents("question_answer", contents)


def _layout(rows: Rows) -> Layout | None:
    """The layout of the preset that the first row fits; None where the name alone suggested the preset."""
    if rows.preset is None:
        return None
    first = rows.rows[0]
    for layout in rows.preset.layouts:
        if all(name in first.values for name in layout.has):
            return layout
    if not rows.is_preset_stated:
        return None
    known = " or ".join(f"({', '.join(layout.has)})" for layout in rows.preset.layouts)
    raise UserError(
        f"the row has the fields {_names(first)}, which preset '{rows.preset.name}' does not know",
        where=first.where,
        mend=f"it reads rows with {known}; leave `preset` out or name the `columns`",
    )


def _renamed(row: Row, columns: Columns) -> Row:
    values = dict(row.values)
    for role, column in columns.items():
        if role not in ROLES:
            mend = f"use {', '.join(ROLES)}"
            raise UserError(f"'{role}' is nothing that a column can be", key=("columns",), mend=mend)
        if not isinstance(column, str) and role != "choices":
            raise UserError(f"'{role}' is one column, not several", key=("columns",), mend="only choices may be a list")
        found = [_column(row, role, name) for name in ([column] if isinstance(column, str) else column)]
        values[role] = found[0] if isinstance(column, str) else found
    return Row(values, row.path, row.line, row.category)


def _column(row: Row, role: str, column: str) -> Any:
    value = value_of(row, column)
    if value is None and column not in row.values:
        raise UserError(
            f"the row has no field '{column}', which `columns` names as {role}; it has {_names(row)}",
            where=row.where,
            key=("columns",),
            mend="name one of them, in the study file's `columns` or with `--columns` of `init`, or correct the row",
        )
    return value


def _common_form(rows: Sequence[Row], named: tuple[str, ...] = ()) -> Form:
    """The form of the first row, which the next ones must share; columns named by hand decide where they suffice."""
    first = _form({name: rows[0].values[name] for name in named}) or _form(rows[0].values)
    if first is None:
        raise UnnamedColumns(
            f"rows with the fields {_names(rows[0])} have no form that is known",
            where=rows[0].where,
            mend=_NAMING,
        )
    keys = rows[0].values.keys()
    for number, row in enumerate(rows[1:], start=2):
        if number > _MOST_LOOKED_AT and row.values.keys() == keys:
            continue
        other = _form({name: row.values[name] for name in named}) or _form(row.values)
        # A row that lacks a field of the first one's form is named with that field when it is read.
        if other is not None and other != first:
            raise UserError(
                f"the row has the form {other}, the first one {first}",
                where=row.where,
                mend="keep rows of one form in a file, and give each form a training set of its own",
            )
    return first


def _form(values: Mapping[str, Any]) -> Form | None:
    has = {name for name, value in values.items() if value is not None}
    if "messages" in has:
        return "messages"
    if has & {"conversations", "conversation"}:
        return "sharegpt"
    if has_choices(has):
        return "multiple_choice"
    pairs: tuple[tuple[Form, str, str], ...] = (
        ("prompt_completion", "prompt", "completion"),
        ("prompt_completion", "prompt", "response"),
        ("alpaca", "instruction", "output"),
        ("alpaca", "instruction", "response"),
        ("question_answer", "question", "answer"),
        ("question_answer", "question", "response"),
    )
    for form, asked, answered in pairs:
        if {asked, answered} <= has:
            return form
    return "text" if "text" in has else None


def _convert(rows: Sequence[Row], form: Form) -> Contents:
    if form == "multiple_choice":
        return Contents(form, choice_contents(rows))
    readers: dict[Form, Callable[[Row], Content]] = {
        "messages": lambda row: message_content(row, row.values.get("messages"), "messages"),
        "sharegpt": conversation_content,
        "prompt_completion": _prompt_completion,
        "alpaca": _alpaca,
        "question_answer": _question_answer,
        "text": _plain_text,
    }
    contents = [readers[form](row) for row in rows]
    if form == "question_answer" and (chosen := with_written_options(contents)) is not None:
        return Contents("multiple_choice", chosen)
    return Contents(form, contents)


def _prompt_completion(row: Row) -> Content:
    """TRL's form: strings are taken as they are written, lists of messages are put through the chat template."""
    answered = "completion" if row.values.get("completion") is not None else "response"
    prompt, completion = row.values.get("prompt"), row.values.get(answered)
    if isinstance(prompt, list) and isinstance(completion, list):
        return message_content(row, [*prompt, *completion], "prompt and completion")
    answer = text_field(row, "completion" if completion is None else answered)
    return Content(row, (), answer, verbatim=text_field(row, "prompt", may_be_empty=True))


def _alpaca(row: Row) -> Content:
    question = with_context(row, text_field(row, "instruction"))
    if row.values.get("input"):
        question = f"{question}\n\n{text_field(row, 'input')}"
    system = row.values.get("system")
    opening = (("system", text_field(row, "system")),) if system else ()
    answered = "response" if row.values.get("output") is None and "response" in row.values else "output"
    return Content(row, (*opening, ("user", question)), text_field(row, answered))


def _question_answer(row: Row) -> Content:
    answered = "answer" if row.values.get("answer") is not None or "response" not in row.values else "response"
    answer = row.values.get(answered)
    # A number is a fine answer.
    is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool)
    text = str(answer) if is_number else text_field(row, answered)
    return Content(row, (("user", with_context(row, text_field(row, "question"))),), text)


def _plain_text(row: Row) -> Content:
    return Content(row, (), text_field(row, "text"), verbatim="")


def _joined(contents: Sequence[Content], heading: str) -> list[Content]:
    """Plain text with every heading put before the paragraph that follows it."""
    joined: list[Content] = []
    headings: list[Content] = []
    for content in contents:
        headings.append(content)
        if not re.fullmatch(heading, content.answer):
            text = "\n \n".join(part.answer for part in headings)
            joined.append(replace(headings[0], answer=text))
            headings = []
    return joined or list(contents)


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _names(row: Row) -> str:
    return ", ".join(str(name) for name in row.values) or "none"
