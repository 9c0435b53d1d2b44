"""From a row's content to the text that the model sees: its chat template, or a plain prompt where it has none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankscope.data.content import Content
from rankscope.data.tokens import Tokenizer

PLAIN = "Question: {question}\nAnswer:"
_FIELD = re.compile(r"\{(question|options)\}")


@dataclass(frozen=True)
class PromptStyle:
    """How questions are put.

    Attributes:
        plain: The prompt of models without a chat template.
        list_options: Show the options by letter; the letters, not the texts, are then the answers.
        description: Said once, before the first question.
        system_prompt: Said before conversations that have no system turn of their own.
    """

    plain: str = PLAIN
    list_options: bool = False
    description: str | None = None
    system_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Prompted:
    """A row as the model sees it: prompt, and what may follow it, leading space included."""

    prompt: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn, and the options that are shown with it."""

    role: str
    text: str
    shown: str = ""


def put(content: Content, style: PromptStyle, tokenizer: Tokenizer, shots: Sequence[Content] = ()) -> Prompted:
    """The prompt of a row, and its answer and options as they continue it.

    A prompt that the data itself gives is taken as it is written. Answers follow a plain prompt after one blank, a chat
    template's generation prompt at once.

    Args:
        content: The row.
        style: How questions are put.
        tokenizer: The model's.
        shots: Worked examples that come before it, of the same form; with a chat template they are turns.

    Raises:
        UserError: The chat template refuses the turns.
    """
    if content.verbatim is not None:
        before = "".join(f"{shot.verbatim or ''}{shot.answer}\n\n" for shot in shots)
        return Prompted(before + content.verbatim, (), content.answer)
    turns, options, answer = _turns(content, style)
    number = next((index for index, turn in enumerate(turns) if turn.role != "system"), len(turns))
    for shot in reversed(shots):
        asked, _, answered = _turns(shot, style)
        turns[number:number] = [*(turn for turn in asked if turn.role != "system"), _Turn("assistant", answered)]
    if style.system_prompt and not (turns and turns[0].role == "system"):
        turns.insert(0, _Turn("system", style.system_prompt))
    if tokenizer.chat_template is None:
        lead, prompt = " ", _plain(turns, style)
    else:
        lead, prompt = "", tokenizer.render_chat(_messages(turns, style), add_generation_prompt=True)
    return Prompted(prompt, tuple(lead + option for option in options), lead + answer)


def _turns(content: Content, style: PromptStyle) -> tuple[list[_Turn], tuple[str, ...], str]:
    """The turns before the answer, the options, and the answer, as letters where options are listed."""
    turns = [_Turn(role, text) for role, text in content.turns]
    if not style.list_options or content.answer_index is None:
        return turns, content.options, content.answer
    letters = tuple(chr(ord("A") + number) for number in range(len(content.options)))
    shown = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, content.options, strict=True))
    turns[-1] = _Turn(turns[-1].role, turns[-1].text, shown)
    return turns, letters, letters[content.answer_index]


def _plain(turns: Sequence[_Turn], style: PromptStyle) -> str:
    """Turns without a chat template: each question in the plain prompt, each earlier answer after it."""
    parts = []
    description = style.description
    for turn in turns:
        if turn.role == "user" and description:
            parts.append(f"{description}\n\n")
            description = None
        if turn.role == "user" and (turn.text or turn.shown):
            fields = {"question": turn.text, "options": turn.shown}
            parts.append(_FIELD.sub(lambda found, fields=fields: fields[found[1]], style.plain))
        elif turn.role == "assistant":
            parts.append(f" {turn.text}\n\n")
        elif turn.role != "user":  # a user's empty turn: nothing comes before a blank that opens a sentence
            parts.append(f"{turn.text}\n\n")
    return "".join(parts)


def _messages(turns: Sequence[_Turn], style: PromptStyle) -> list[Mapping[str, str]]:
    messages = []
    description = style.description
    for turn in turns:
        text = "\n".join(part for part in (turn.text, turn.shown) if part)
        if turn.role == "user" and description:
            text, description = f"{description}\n\n{text}", None
        messages.append({"role": turn.role, "content": text})
    return messages
