"""Options that are written inside a text: `A) yes B) no`, `a ) 38 , b ) 27`, or a line each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from rankscope.data.content import Content, field_error

_LABEL = r"[(\[]?(?P<label>[A-Za-z])\s?[).:\]]\s*(?=\S)"
_ON_LINES = re.compile(rf"^[ \t]*{_LABEL}", re.MULTILINE)
_ANYWHERE = re.compile(rf"(?:^|(?<=[\s,;|])){_LABEL}")
_ANSWER = re.compile(r"[(\[]?([A-Za-z])[).:\]]?")
_ANSWER_LINE = re.compile(r"(?P<before>[(\[]?)(?P<label>[A-Za-z])(?P<after>\s?[).:\]]\s*)(?P<text>\S.*)", re.DOTALL)


def written_options(text: str) -> list[tuple[str, str]]:
    """The options of a text, each with its letter, from A on without a gap; empty where it has not two of them.

    Examples:
        >>> written_options("Is it? (A) yes, it is (B) no")
        [('A', 'yes, it is'), ('B', 'no')]
        >>> written_options("a ) 38 , b ) 27.5")
        [('a', '38'), ('b', '27.5')]
        >>> written_options("Dr. A. Smith asks")
        []
    """
    for pattern in (_ON_LINES, _ANYWHERE):  # where options have lines of their own, letters inside of them are text
        found: list[re.Match[str]] = []
        for match in pattern.finditer(text):
            first = found[0]["label"] if found else "a" if match["label"].islower() else "A"
            if match["label"] == chr(ord(first) + len(found)):
                found.append(match)
        if len(found) > 1:
            ends = [*(match.start() for match in found[1:]), len(text)]
            return [(m["label"], text[m.end() : end].strip(" \t\r\n,;|")) for m, end in zip(found, ends, strict=True)]
    return []


def with_written_options(contents: Sequence[Content]) -> list[Content] | None:
    """Questions and answers as multiple choice, where every question has its options in its own text.

    Nothing is taken out of the text, and what is learned stays as it is written: letters where answers are letters.

    Args:
        contents: Questions with free answers.

    Returns:
        The same with options; None where a question has none, or an answer is a text that is none of them.

    Raises:
        UserError: Every question has options and every answer is a letter, and one is none of its options'.
    """
    written = []
    for content in contents:
        written.append(written_options(content.question))
        if not written[-1]:
            return None  # of most files the first row says it
    all_letters = all(_ANSWER.fullmatch(content.answer.strip()) for content in contents)
    made = []
    for content, options in zip(contents, written, strict=True):
        answers = _as_answered(options, content.answer.strip())
        if content.answer.strip() not in answers:
            if all_letters:
                what = f"is '{content.answer.strip()}', none of the {len(options)} options in its question"
                raise field_error(content.row, "answer", what, "correct the answer, or the question's options")
            return None
        index = answers.index(content.answer.strip())
        made.append(dataclasses.replace(content, answer=answers[index], options=answers, answer_index=index))
    return made


def _as_answered(options: Sequence[tuple[str, str]], answer: str) -> tuple[str, ...]:
    """The options as a row's answer writes them: as letters with their brackets, as texts, or as both: `B) no`."""
    line = _ANSWER_LINE.fullmatch(answer)
    if line and line["text"] in (text for label, text in options if label.upper() == line["label"].upper()):
        return tuple(f"{line['before']}{label}{line['after']}{text}" for label, text in options)
    letter = _ANSWER.fullmatch(answer)
    if letter is None or letter[1].upper() not in {label.upper() for label, _ in options}:
        return tuple(text for _, text in options)
    labels = [label.lower() if letter[1].islower() else label.upper() for label, _ in options]
    return tuple(answer.replace(letter[1], label) for label in labels)
