"""The items of a task and how they are scored, from the contents of its rows."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rankscope.data.content import Content
from rankscope.data.examples import Item
from rankscope.data.few_shot import Shots, no_shots
from rankscope.data.forms import Contents
from rankscope.data.prompts import PLAIN, Prompted, PromptStyle, put
from rankscope.data.sources import Rows
from rankscope.data.splits import normalised
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.runs import ScorerSettings, TaskSettings, settings_hash
from rankscope.spec import Kind, Scoring

_NUMBER = re.compile(r"(?s).*####\s*\S.*|\s*[-+]?[$]?\d[\d.,]*%?\s*")
_LETTER = re.compile(r"\s*\(?[A-Z]\)?[.:]?\s*")


@dataclass(frozen=True)
class TaskOptions:
    """What the study file says of a task, as far as its items depend on it; None where it says nothing."""

    name: str
    scoring: Scoring | None
    kind: Kind | None
    max_new_tokens: int
    system_prompt: str | None = None
    scorer: ScorerSettings | None = None
    shots: Shots = no_shots


def prompt_style(rows: Rows, system_prompt: str | None = None) -> PromptStyle:
    """How the questions of a source are put: as its preset says, else in the plain way."""
    preset = rows.preset
    if preset is None:
        return PromptStyle(system_prompt=system_prompt)
    return PromptStyle(preset.prompt, preset.list_options, rows.description, system_prompt)


def make_task(
    options: TaskOptions, rows: Rows, understood: Contents, contents: Sequence[Content], tokenizer: Tokenizer
) -> tuple[list[Item], TaskSettings]:
    """Items as they are scored, and the resolved settings of their task.

    Args:
        options: What the study file says.
        rows: Where the contents came from.
        understood: All of the source's contents, with their form.
        contents: Those that become items.
        tokenizer: The model's, for its chat template.

    Raises:
        UserError: The scoring that is asked for does not fit the rows.
    """
    scoring = options.scoring or ("generate" if options.scorer else default_scoring(rows, understood))
    if scoring == "multiple_choice" and not contents[0].options:
        raise UserError(
            f"{options.name}: there are no options to choose from, the rows are {understood.form}",
            where=contents[0].row.where,
            key=("scoring",),
            mend="set `scoring: generate` or `scoring: loss`",
        )
    style = prompt_style(rows, options.system_prompt)
    items = _items(contents, [put(each, style, tokenizer, options.shots(each)) for each in contents], scoring)
    if options.shots is not no_shots:  # worked examples differ by category, and make no other question
        bare = _clusters([put(each, style, tokenizer) for each in contents], contents)
        items = [replace(item, cluster=cluster) for item, cluster in zip(items, bare, strict=True)]
    fallback: Kind | None = "text" if understood.form == "text" else None
    settings = TaskSettings(
        name=options.name,
        scoring=scoring,
        kind=options.kind or (rows.preset.kind if rows.preset else rows.kind) or fallback,
        answer=_answer_kind(rows, items),
        max_new_tokens=options.max_new_tokens,
        stop=_stops(items, contents, style, tokenizer) if scoring == "generate" else (),
        fingerprint=fingerprint(items),
        num_items=len(items),
        scorer=options.scorer,
        data=rows.version,
    )
    return items, settings


def fingerprint(items: Sequence[Item]) -> str:
    """A hash of items as they are scored."""
    return settings_hash([[item.prompt, item.options, item.target] for item in items])


def content_id(*parts: str) -> str:
    """A short name made of the content: the same wherever the row stands in its file."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def distinct(names: Sequence[str]) -> list[str]:
    """Names made unique: the second of two equal ones gets `-2`."""
    seen: dict[str, int] = {}
    taken = set(names)
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        candidate = name if seen[name] == 1 else f"{name}-{seen[name]}"
        while seen[name] > 1 and candidate in taken:
            seen[name] += 1
            candidate = f"{name}-{seen[name]}"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _items(contents: Sequence[Content], prompted: Sequence[Prompted], scoring: Scoring) -> list[Item]:
    names = distinct(
        [
            content.row_id or content_id(text.prompt, *text.options, text.answer)
            for content, text in zip(contents, prompted, strict=True)
        ]
    )
    chooses = scoring == "multiple_choice"
    return [
        Item(
            item_id=name,
            prompt=text.prompt,
            options=text.options if chooses else (),
            target=text.answer,
            target_index=content.answer_index if chooses else None,
            category=content.category,
            cluster=cluster,
        )
        for name, content, text, cluster in zip(names, contents, prompted, _clusters(prompted, contents), strict=True)
    ]


def _clusters(prompted: Sequence[Prompted], contents: Sequence[Content]) -> list[str | None]:
    """What each item belongs to: what its row says, else itself if it stands there twice."""
    asked = [content_id(normalised(text.prompt), *sorted(text.options), text.answer) for text in prompted]
    times = Counter(asked)
    return [
        content.cluster or (name if times[name] > 1 else None) for content, name in zip(contents, asked, strict=True)
    ]


def default_scoring(rows: Rows, understood: Contents) -> Scoring:
    """How items are scored where the study does not say."""
    if rows.preset is not None and (rows.preset.scoring != "multiple_choice" or understood.contents[0].options):
        return rows.preset.scoring
    by_form: dict[str, Scoring] = {"multiple_choice": "multiple_choice", "question_answer": "generate"}
    # Open answers (instructions, conversations) have no one right wording: their loss is what can be said.
    return by_form.get(understood.form, "loss")


def _answer_kind(rows: Rows, items: Sequence[Item]) -> Literal["number", "letter", "text"]:
    """What a right answer is: the preset's word, else what all the right answers look like."""
    if rows.preset is not None and rows.preset.answer != "text":
        return rows.preset.answer
    if all(_NUMBER.fullmatch(item.target) for item in items):
        return "number"
    return "letter" if all(_LETTER.fullmatch(item.target) for item in items) else "text"


def _stops(
    items: Sequence[Item], contents: Sequence[Content], style: PromptStyle, tokenizer: Tokenizer
) -> tuple[str, ...]:
    """Where a plain model's answer ends: at its line's end if all answers are one line, else at the next question."""
    if tokenizer.chat_template is not None:
        return ()
    if not any("\n" in item.target.strip() for item in items):
        return ("\n",)
    opening = (style.plain or PLAIN).partition("{")[0].strip()
    return (opening,) if opening and contents[0].verbatim is None else ()
