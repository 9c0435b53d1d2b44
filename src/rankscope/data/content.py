"""The content of a row before any template: what is asked, what is right, what can be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankscope.data.readers import Row
from rankscope.errors import UserError

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Content:
    """One row, understood.

    Attributes:
        row: Where it came from.
        turns: Role and text of what comes before the answer; empty where `verbatim` is given.
        answer: The right answer, or the text itself.
        options: What can be chosen; empty for free answers.
        answer_index: The right option's index.
        verbatim: A prompt that is taken as it is written, without a template; empty for plain text.
        category_column: The column that holds the row's category.
        rest: What follows the blank of a sentence, where the options fill it; each option ends with it.
    """

    row: Row
    turns: Turns
    answer: str
    options: tuple[str, ...] = ()
    answer_index: int | None = None
    verbatim: str | None = None
    category_column: str = "category"
    rest: str = ""

    @property
    def category(self) -> str | None:
        """The row's subject or topic: its own field's, else what the file's name says."""
        return _label(value_of(self.row, self.category_column)) or self.row.category

    @property
    def cluster(self) -> str | None:
        """What the row shares with others of its file (a passage, a patient), where it says so."""
        return _label(self.row.values.get("cluster"))

    @property
    def row_id(self) -> str | None:
        """The row's own id, where it has one."""
        return _label(self.row.values.get("id"))

    @property
    def question(self) -> str:
        """What is asked, all of it but the system turn, under which twins are twins still; else the text itself."""
        if self.verbatim is not None:
            return self.verbatim or self.answer
        asked = [text for role, text in self.turns if role != "system"]
        return "\n".join(asked or [text for _, text in self.turns])


def value_of(row: Row, name: str) -> Any:
    """What a row has in a field, or inside it: `question.stem` is `stem` in `question`. None where there is nothing."""
    if name in row.values or "." not in name:
        return row.values.get(name)
    value: Any = row.values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def text_field(row: Row, name: str, may_be_empty: bool = False) -> str:
    """A row's field that must be text.

    Raises:
        UserError: It is missing, no text, or empty; with file, line and field.
    """
    value = value_of(row, name)
    if value is None:
        raise field_error(row, name, "is null" if name in row.values else "is missing")
    if not isinstance(value, str):
        raise field_error(row, name, f"is {type(value).__name__}, not text")
    if not value.strip() and not may_be_empty:
        raise field_error(row, name, "is empty")
    return value


def with_context(row: Row, question: str) -> str:
    """A question with the passage that it is about, where the row has one."""
    context = row.values.get("context")
    return f"{context.strip()}\n\n{question}" if isinstance(context, str) and context.strip() else question


def field_error(row: Row, name: str, problem: str, mend: str = "correct the row, or take it out") -> UserError:
    """The error for a field of a row, with its file and line."""
    return UserError(f"the field '{name}' {problem}", where=row.where, mend=mend)


def _label(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "" else None
