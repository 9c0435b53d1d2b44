"""From a row's content to the text that the model sees: its chat template, or a plain prompt where it has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.data.content import Content, Turns
from rankscope.data.tokens import Tokenizer

PLAIN = "Question: {question}\nAnswer:"
_FIELD = re.compile(r"\{(question|options)\}")


@dataclass(frozen=True)
class PromptStyle:
    """How questions are put.

    Attributes:
        plain: The prompt of models without a chat template.
        list_options: Show the options by letter; the letters, not the texts, are then the answers.
    """

    plain: str = PLAIN
    list_options: bool = False


@dataclass(frozen=True, slots=True)
class Prompted:
    """A row as the model sees it: prompt, and what may follow it, leading space included."""

    prompt: str
    options: tuple[str, ...]
    answer: str


def put(content: Content, style: PromptStyle, tokenizer: Tokenizer) -> Prompted:
    """The prompt of a row, and its answer and options as they continue it.

    A prompt that the data itself gives is taken as it is written. Answers follow a plain prompt after one blank, a chat
    template's generation prompt at once.

    Raises:
        UserError: The chat template refuses the turns.
    """
    if content.verbatim is not None:
        return Prompted(content.verbatim, (), content.answer)
    options, answer, shown = content.options, content.answer, ""
    if style.list_options and content.answer_index is not None:
        letters = tuple(chr(ord("A") + number) for number in range(len(options)))
        shown = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        options, answer = letters, letters[content.answer_index]
    if tokenizer.chat_template is None:
        lead, prompt = " ", _plain(content.turns, style.plain, shown)
    else:
        lead, prompt = "", tokenizer.render_chat(_messages(content.turns, shown), add_generation_prompt=True)
    return Prompted(prompt, tuple(lead + option for option in options), lead + answer)


def _plain(turns: Turns, template: str, options: str) -> str:
    """Turns without a chat template: each question in the plain prompt, each earlier answer after it."""
    if turns == (("user", ""),):  # nothing comes before a blank that opens a sentence
        return ""
    parts = []
    for role, text in turns:
        if role == "user":
            fields = {"question": text, "options": options}
            parts.append(_FIELD.sub(lambda found, fields=fields: fields[found[1]], template))
        elif role == "assistant":
            parts.append(f" {text}\n\n")
        else:
            parts.append(f"{text}\n\n")
    return "".join(parts)


def _messages(turns: Turns, options: str) -> list[Mapping[str, str]]:
    messages = [{"role": role, "content": text} for role, text in turns]
    if options:
        messages[-1]["content"] += f"\n{options}"
    return messages
