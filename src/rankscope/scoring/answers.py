r"""Reading the answer out of a generated text, and comparing it with the reference.

Numbers are read and compared as lm-eval scores GSM8K: strictly the number after `####`, flexibly the last number of the
text, as strings without commas, dollar signs and one final stop. Nothing is ever found inside a longer word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Answer = Literal["number", "letter", "text"]

# The two filters and the normalisation of lm-eval's task gsm8k.
_STRICT_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))

# A letter by itself: no letter, digit, apostrophe or joining sign touches it.
_ALONE = r"(?<![\w'\u2019-])(?:\(({0})\)|\[({0})\]|({0}))(?![\w'\u2019-])"
_STATED = re.compile(
    r"\b(?:answer|option|choice)\b\s*(?:is|:|=)?\s*:?\s*[*\s]*" + _ALONE.format("[A-Za-z]"), re.IGNORECASE
)
_UPPER = re.compile(_ALONE.format("[A-Z]"))
_ONLY = re.compile(r"\s*[(\[*]*([A-Za-z])[)\]*.:,;]*\s*")
_FIRST = re.compile(r"\s*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?:[).:,;]|\s*(?:\n|$)))(?!\w)")


@dataclass(frozen=True)
class Judgement:
    """What was read out of a generated text, and whether it is right.

    Attributes:
        prediction: The answer read, normalised; None where there is none.
        is_correct: Numbers flexibly, letters and texts exactly.
        is_correct_strict: Numbers only after `####`; the same as `is_correct` for the other forms.
    """

    prediction: str | None
    is_correct: bool
    is_correct_strict: bool

    @property
    def is_invalid(self) -> bool:
        """No answer could be read."""
        return self.prediction is None


def judge(text: str, target: str, answer: Answer) -> Judgement:
    """Compare a generated text with the reference answer.

    Args:
        text: The generation, cut at its stop text.
        target: The reference: for a number, a worked answer with `#### 42` or the number alone.
        answer: What a right answer is.

    Examples:
        >>> judge("so it is 1,200 in all", "1200", "number").is_correct
        True
    """
    if answer == "number":
        wanted = normalised_number(target)
        flexible, strict = flexible_number(text), strict_number(text)
        return Judgement(flexible, flexible == wanted, strict == wanted)
    read = option_letter if answer == "letter" else normalised_text
    prediction = read(text)
    is_correct = prediction is not None and prediction == read(target)
    return Judgement(prediction, is_correct, is_correct)


def strict_number(text: str) -> str | None:
    """The number after the first `#### `, normalised, or None."""
    found = _STRICT_NUMBER.search(text)
    return _number(found[1]) if found else None


def flexible_number(text: str) -> str | None:
    """The last number of a text, normalised, or None."""
    found = _FLEXIBLE_NUMBER.findall(text)
    return _number((found[-1][0] or found[-1][1]).strip()) if found else None


def normalised_number(text: str) -> str:
    """A number, or a worked answer that ends in one, in the form in which numbers are compared."""
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.strip().lower()


def option_letter(text: str) -> str | None:
    """The option that a text names, as a capital letter, or None where it names none or several.

    In this order: the text is one letter; it says `answer is B`; it begins with `B.`, `(B)` or a line that is `B`; or a
    single capital stands alone in it. `A` and `I` among other words are English, not options.
    """
    if only := _ONLY.fullmatch(text):
        return only[1].upper()
    stated = {_letter(match) for match in _STATED.finditer(text) if not _is_word(match, text, "aIi")}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    if first := _FIRST.match(text):
        return _letter(first)
    alone = {_letter(match) for match in _UPPER.finditer(text) if not _is_word(match, text, "AI")}
    return alone.pop() if len(alone) == 1 else None


def normalised_text(text: str) -> str | None:
    """A text without case, repeated blanks and a final stop, or None where nothing is left."""
    return " ".join(text.split()).casefold().removesuffix(".").strip() or None


def _number(text: str) -> str | None:
    # The flexible pattern also finds `...` and `$,`: lm-eval counts them as wrong, and nothing can be read from them.
    return normalised_number(text) if any(character.isdigit() for character in text) else None


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()


def _is_word(match: re.Match[str], text: str, words: str) -> bool:
    """Whether a bare letter reads as an English word: it is one, and another word follows.

    After `answer is` only a small `a` is an article; at the beginning of a sentence a capital one is.
    """
    return (match.groups()[2] or "-") in words and bool(re.match(r"\s+\w", text[match.end() :]))
