"""Whether test items are in the training data: the same question, or a run of thirteen words that both have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from rankscope.data.content import Content
from rankscope.data.splits import normalised
from rankscope.records import Frozen

# The run of words by which GPT-3 (Brown et al., arXiv 2005.14165) and lm-evaluation-harness call an item contaminated.
NUM_WORDS = 13
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's place in a run is lost
_CHUNK = 2_000


class Overlap(Frozen):
    """How much of a task's items is in a training set, for one base.

    Attributes:
        part: `train`, or `validation` for the rows on which learning rates are chosen.
        num_exact: Items whose question is asked there too, case and blanks aside.
        num_ngram: Items of which a run of 13 words, question and answer together, stands there too; the exact ones
            with as many words are among them.
    """

    base: str
    training_set: str
    part: str
    task: str
    num_items: int
    num_exact: int
    num_ngram: int

    @property
    def warning(self) -> str | None:
        """What is to be said of it, or None where nothing overlaps."""
        if not (self.num_exact or self.num_ngram):
            return None
        set_name = f"train.{self.training_set}"
        place = set_name if self.part == "train" else f"the validation rows of {set_name} (where rates are chosen)"
        return overlap_warning(
            f"evaluate.{self.task}", "items", self.num_items, (self.num_exact, self.num_ngram), place
        )


@dataclass(frozen=True, slots=True)
class Said:
    """What a row asks and answers, without any template, system turn or worked example.

    Attributes:
        rest: What follows the blank of a sentence that is to be filled; the answer ends with it too.
    """

    question: str
    answer: str
    rest: str = ""

    @classmethod
    def of(cls, content: Content) -> Said:
        """What a row says; of plain text, the text is the question."""
        if content.verbatim is not None:
            return cls(content.verbatim, content.answer) if content.verbatim else cls(content.answer, "")
        asked = "\n".join(text for role, text in content.turns if role != "system")
        return cls(asked, content.answer, content.rest)

    @property
    def asked(self) -> str:
        """What is asked, in the form in which it is compared: many sentences have the same words before a blank."""
        return normalised(f"{self.question} {self.rest}")

    @property
    def text(self) -> str:
        """Question and answer as one text."""
        return f"{self.question}\n{self.answer}"


class TrainingWords:
    """The words of a training set, to be compared with tasks."""

    def __init__(self, rows: Sequence[Said]) -> None:
        self._rows = rows
        self._questions = {row.asked for row in rows}
        self._vocabulary: dict[str, int] = {}

    def overlaps(self, tasks: Mapping[str, Sequence[Said]]) -> dict[str, tuple[int, int]]:
        """By task, how many items ask what a training row asks, and how many share thirteen words in a row with one."""
        runs = {name: [self._runs(item.text) for item in items] for name, items in tasks.items()}
        wanted = [run for of_task in runs.values() for run in of_task]
        found = self._found(np.unique(np.concatenate([np.empty(0, np.uint64), *wanted])))
        return {
            name: (
                sum(item.asked in self._questions for item in items),
                sum(bool(np.isin(run, found).any()) for run in runs[name]) if len(found) else 0,
            )
            for name, items in tasks.items()
        }

    def _found(self, wanted: UInt64[np.ndarray, " runs"]) -> UInt64[np.ndarray, " found"]:
        """Those of the wanted runs that a training row has; some rows at a time, so that memory stays small."""
        is_found = np.zeros(len(wanted), dtype=bool)
        if len(wanted):
            for start in range(0, len(self._rows), _CHUNK):
                chunk = np.concatenate([self._runs(row.text) for row in self._rows[start : start + _CHUNK]])
                places = np.searchsorted(wanted, chunk)
                places[places == len(wanted)] = 0
                is_found[places[wanted[places] == chunk]] = True
        return wanted[is_found]

    def _runs(self, text: str) -> UInt64[np.ndarray, " runs"]:
        """A hash of every run of thirteen words of a text, in its order."""
        known = self._vocabulary
        # A word's number is scrambled: neighbouring numbers would make sums of different runs collide.
        ids = [known.setdefault(word, len(known) + 1) for word in _WORD.findall(text.casefold())]
        if len(ids) < NUM_WORDS:
            return np.empty(0, dtype=np.uint64)
        words = np.asarray(ids, dtype=np.uint64)
        with np.errstate(over="ignore"):
            words = words * _FACTOR
            words ^= words >> np.uint64(29)
            words *= np.uint64(0xBF58476D1CE4E5B9)
            words ^= words >> np.uint64(32)
            hashes = np.zeros(len(ids) - NUM_WORDS + 1, dtype=np.uint64)
            for place in range(NUM_WORDS):
                hashes = hashes * _FACTOR + words[place : place + len(hashes)]
        return hashes


def overlap_warning(where: str, what: str, number: int, shared: tuple[int, int], place: str) -> str:
    """That items are in the training data: so many by their question, so many by thirteen words in a row."""
    exact, ngram = shared
    parts = [f"{exact} of {number} {what} are in {place} too"] if exact else []
    if ngram > exact or not exact:
        more = "of them " if exact else f"of {number} {what} "
        parts.append(f"{ngram} {'' if exact else more}share 13 words in a row with {'it' if exact else place}")
    return f"{where}: {', '.join(parts)}"


def overlap_warnings(overlaps: Sequence[Overlap]) -> list[str]:
    """What is to be said of those that there are."""
    return [overlap.warning for overlap in overlaps if overlap.warning]
