"""Which rows serve which purpose: to train on, to validate on, to be asked in a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from rankscope.data.content import Content
from rankscope.data.conversations import answered_turns
from rankscope.data.forms import Contents, understand
from rankscope.data.sources import Role, Rows, read_rows
from rankscope.data.splits import held_out, in_part, normalised
from rankscope.data.summaries import Label
from rankscope.errors import UserError, within
from rankscope.spec import Data, Part, TrainingSet


@dataclass(frozen=True)
class DataPart:
    """Rows that serve one purpose, with what was understood of all rows of their source."""

    role: Literal["train", "validation"]
    rows: Rows
    understood: Contents
    contents: list[Content]
    source: str
    system_prompt: str | None
    part: Part | None  # of rows without splits

    def label(self, base: str, name: str) -> Label:
        """What tables call the part."""
        return Label(base, name, self.role, self.source, self.part)


def read_contents(data: Data, role: Role) -> tuple[Rows, Contents]:
    """The rows of a source, or of a part of it, with what they say.

    Raises:
        UserError: They are missing or malformed, or there are none in the part.
    """
    with within(default="source"):
        rows = read_rows(data, role)
        understood = understand(rows, data.columns)
    if data.system_prompt and understood.form in ("text", "prompt_completion") and not understood.contents[0].turns:
        raise UserError(
            f"a system prompt has no place in rows of the form {understood.form}, which are taken as they are written",
            key=("system_prompt",),
            mend="write it into the rows' prompts, or bring them into the form messages or question/answer",
        )
    contents = understood.contents
    if data.part is not None:
        contents = [content for content in contents if in_part(content.question, data.part)]
        if not contents:
            what = f"none of the {len(understood.contents)} rows falls into the part '{data.part}'"
            mend = "add data, or name sources of their own for training, validation and test"
            raise _none_in(understood.contents, f"for the part '{data.part}'", UserError(what, mend=mend))
    return rows, replace(understood, contents=first_rows(contents, data.max_examples))


def first_rows(contents: list[Content], number: int | None) -> list[Content]:
    """The first so many; where rows stand sorted by category, the first of each category in turn.

    The first rows of MMLU are all abstract algebra: they would be a score of one subject under the name of 57.
    """
    names = [content.category for content in contents]
    num_blocks = 1 + sum(name != after for name, after in pairwise(names))
    is_sorted = 1 < len(set(names)) == num_blocks
    if number is None or number >= len(contents) or not is_sorted:
        return contents[:number]
    seen: Counter[str | None] = Counter()
    turns = []
    for name in names:
        turns.append(seen[name])
        seen[name] += 1
    in_turn = sorted(range(len(contents)), key=turns.__getitem__)[:number]
    return [contents[index] for index in sorted(in_turn)]


def _none_in(contents: Sequence[Content], part: str, otherwise: UserError) -> UserError:
    """Why a part of the rows has none: they all ask the same few things, or else what `otherwise` says."""
    different = len({normalised(content.question) for content in contents})
    if different > len(contents) // 2:
        return otherwise
    return UserError(
        f"the {len(contents)} rows ask only {different} different things, and rows that ask the same stay together, so "
        f"none is left {part}",
        mend="if the rows differ in another column, name it: `columns: {input: ...}`; or name sources of their own for "
        "training, validation and test",
    )


def training_parts(spec: TrainingSet) -> tuple[DataPart, DataPart]:
    """The rows to train on and those to validate on.

    Raises:
        UserError: They are missing or malformed, or there are none for one of the two.
    """
    rows, understood = read_contents(spec, "train")
    stated = spec.validation
    if stated.source is not None or stated.split is not None or stated.part is not None or spec.part is not None:
        own = _validation_source(spec)
        with within("validation"):
            own_rows, own_understood = read_contents(own, "validation")
        kept, validation = understood.contents, own_understood.contents
        part = DataPart("validation", own_rows, own_understood, validation, own.source, spec.system_prompt, own.part)
    else:
        kept, validation = _held_apart(understood.contents, stated.fraction)
        # The rest of what is held out stays out of training, or the split would move when rows are added.
        validation = first_rows(validation, stated.max_examples)
        part = DataPart("validation", rows, understood, validation, spec.source, spec.system_prompt, None)
    if spec.assistant_turns == "all":
        kept = [turn for content in kept for turn in answered_turns(content)]
    return DataPart("train", rows, understood, kept, spec.source, spec.system_prompt, spec.part), part


def _held_apart(contents: list[Content], fraction: float) -> tuple[list[Content], list[Content]]:
    """The rows to train on, and those that are held out."""
    held = held_out([content.question for content in contents], fraction)
    kept = [content for content, is_held in zip(contents, held, strict=True) if not is_held]
    validation = [content for content, is_held in zip(contents, held, strict=True) if is_held]
    if kept and validation:
        return kept, validation
    purpose = f"to {'validate' if kept else 'train'} on"
    none = UserError(
        f"a validation fraction of {fraction:g} of {len(held)} rows leaves none {purpose}",
        mend="change validation.fraction, or name a validation source of its own",
    )
    raise _none_in(contents, purpose, none) if 0 < fraction < 1 else none


def _validation_source(spec: TrainingSet) -> Data:
    """The validation rows' own source; another split of the same one is read in the same way."""
    stated = spec.validation
    is_same = stated.source is None or stated.source == spec.source
    return Data(
        source=stated.source or spec.source,
        subset=stated.subset or (spec.subset if is_same else None),
        revision=stated.revision or (spec.revision if is_same else None),
        split=stated.split or (spec.split if is_same else None),
        # Training on a part leaves another of the same rows to validate on.
        part=stated.part or ("validation" if is_same and spec.part and not stated.split else None),
        preset=stated.preset or (spec.preset if is_same else None),
        max_examples=stated.max_examples,
        columns=stated.columns or (spec.columns if is_same else None),
        system_prompt=spec.system_prompt,
    )
