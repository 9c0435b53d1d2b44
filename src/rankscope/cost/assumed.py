"""The loads of data that cannot be tokenised here: from its characters, or from a table of well-known data sets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from rankscope.cost.loads import TaskLoad, TrainingLoad, typical_lengths
from rankscope.cost.model_shapes import known_model
from rankscope.data.forms import understand
from rankscope.data.paths import user_path
from rankscope.data.presets import Preset
from rankscope.data.sources import SMALL_WORLD, Role, check_source, preset_of, read_rows
from rankscope.spec import Data, Scoring, Task, TrainingSet

_TABLE = Path(__file__).parent / "datasets.yaml"
# What is taken for a data set of which nothing is known; said in a warning.
_UNKNOWN_ROWS, _UNKNOWN_QUESTION, _UNKNOWN_ANSWER = 1000, 600, 200
# What a chat template adds to a question, and what a plain prompt does, in tokens.
_TEMPLATE_TOKENS, _PROMPT_TOKENS = 30, 6
_CHARACTERS = 3.8
_OPTIONS = 4
_PARTS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class _Size(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: dict[str, int]
    question: float
    answer: float
    options: float


@dataclass(frozen=True)
class Tokens:
    """How a model's tokenizer cuts text, as far as is known without it.

    Attributes:
        characters: Of a mean token of English.
        template: Tokens that a prompt adds to a question.
    """

    characters: float
    template: int


def tokens_of(source: str) -> Tokens:
    """What is known of the tokenizer of a model, by its name."""
    entry = known_model(source)
    is_chat = any(part in source.lower() for part in ("instruct", "chat", "-it"))
    return Tokens(_CHARACTERS if entry is None else entry.characters, _TEMPLATE_TOKENS if is_chat else _PROMPT_TOKENS)


@dataclass(frozen=True)
class Rows:
    """What is known of some rows without a tokenizer.

    Attributes:
        number: Of rows.
        question: Characters of a mean question.
        answer: Of the right answer.
        options: Of all options together.
        note: Where the numbers are from, if not from the rows themselves.
    """

    number: int
    question: float
    answer: float
    options: float
    preset: Preset | None
    note: str | None = None


@functools.cache
def known_sizes() -> Mapping[str, _Size]:
    """The table of well-known data sets by preset."""
    document = YAML(typ="safe").load(_TABLE.read_text(encoding="utf-8"))
    return {name: _Size.model_validate(entry) for name, entry in document["datasets"].items()}


def rows_of(data: Data, role: Role) -> Rows:
    """How many rows a source has and how long they are; files are read, the hub is not."""
    preset = preset_of(data)
    if user_path(data.source).exists() or data.source.startswith(SMALL_WORLD):
        found = read_rows(data, role)
        contents = understand(found, data.columns).contents
        number = max(1, len(contents))
        rows = Rows(
            number=len(contents),
            question=sum(len(content.question) if content.turns else 0 for content in contents) / number,
            answer=sum(len(content.answer) for content in contents) / number,
            options=sum(sum(map(len, content.options)) for content in contents) / number,
            preset=found.preset or preset,
        )
        return _cut(rows, data)
    size = known_sizes().get(preset.name) if preset is not None else None
    if size is None:
        note = f"the size of '{data.source}' is not known here: {_UNKNOWN_ROWS:,} rows of "
        note += f"{_UNKNOWN_QUESTION + _UNKNOWN_ANSWER} characters are assumed"
        return _cut(Rows(_UNKNOWN_ROWS, _UNKNOWN_QUESTION, _UNKNOWN_ANSWER, 0.0, preset, note), data)
    split = data.split or role
    number = size.rows.get(split) or size.rows.get("train", _UNKNOWN_ROWS)
    return _cut(Rows(number, size.question, size.answer, size.options, preset), data)


def assumed_training(spec: TrainingSet, tokens: Tokens, max_length: int) -> tuple[TrainingLoad, TaskLoad, Rows]:
    """A training set: what is trained on, what rates are chosen on, and its rows."""
    stated = spec.validation
    for source in (spec.source, stated.source):
        check_source(source)
    rows = rows_of(spec, "train")
    has_own = bool(stated.source or stated.split or stated.part or spec.part)
    held = int(rows.number * (1 / 8 if spec.part else stated.fraction))
    number = rows.number if has_own else max(1, rows.number - held)
    checked = max(1, min(stated.max_examples, stated.max_examples if has_own else held))
    answer = max(1.0, rows.answer / tokens.characters)
    prompt = _prompt_tokens(rows, tokens)
    lengths = typical_lengths(prompt + answer + 1, max_length)
    mean = sum(lengths) / len(lengths)
    load = TrainingLoad(number, lengths, (answer + 1) / (prompt + answer + 1), checked, int(checked * mean))
    return load, _task(rows, tokens, checked, stated.scoring, stated.max_new_tokens), rows


def assumed_task(spec: Task, tokens: Tokens) -> tuple[TaskLoad, Rows]:
    """A task and its rows."""
    check_source(spec.source)
    # A task of lm_eval is taken to be as large as the data set that it is named after.
    rows = rows_of(spec if spec.lm_eval is None else spec.model_copy(update={"source": spec.lm_eval}), "test")
    load = _task(rows, tokens, rows.number, spec.scoring, spec.max_new_tokens)
    if spec.few_shot is None:
        return load, rows
    example = load.num_prompt_tokens + rows.answer / tokens.characters
    more = spec.few_shot.number * example
    prompt, longest = load.num_prompt_tokens + more, int(load.longest + 3 * more)
    return replace(load, num_prompt_tokens=prompt, longest=longest, num_shared_tokens=more), rows


def _task(rows: Rows, tokens: Tokens, number: int, scoring: Scoring | None, max_new_tokens: int) -> TaskLoad:
    is_choice = rows.options > 0
    if scoring is None:
        scoring = rows.preset.scoring if rows.preset else "multiple_choice" if is_choice else "loss"
    prompt = _prompt_tokens(rows, tokens)
    answer = max(1.0, (rows.options if scoring == "multiple_choice" and is_choice else rows.answer) / tokens.characters)
    longest = int(3 * (prompt + answer))
    return TaskLoad(number, scoring, prompt, answer, longest, max_new_tokens, num_options=_OPTIONS)


def _prompt_tokens(rows: Rows, tokens: Tokens) -> float:
    """A question with what a prompt adds to it; a text alone stands behind the beginning token."""
    if not rows.question:
        return 1.0
    return rows.question / tokens.characters + tokens.template


def _cut(rows: Rows, data: Data) -> Rows:
    number = int(rows.number * _PARTS[data.part]) if data.part else rows.number
    number = max(1, min(number, data.max_examples or number))
    return Rows(number, rows.question, rows.answer, rows.options, rows.preset, rows.note)
