"""What a person is shown of the data before anything is trained: counts, a sample, and what is unusual."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rankscope.data.examples import Example, Item, TokenisedExample
from rankscope.data.forms import Contents
from rankscope.data.splits import num_duplicates, part_words
from rankscope.data.tokens import Tokenizer
from rankscope.records import Frozen
from rankscope.spec import Part

_SHOWN = 600  # characters of a sample's prompt, and of what is trained on


@dataclass(frozen=True)
class Label:
    """Of what a summary is."""

    base: str
    name: str
    role: Literal["train", "validation", "task"]
    source: str
    part: Part | None = None


@dataclass(frozen=True)
class Tokenised:
    """Examples as texts and as tokens, with how many were cut on the right or left out."""

    texts: list[Example]
    examples: list[TokenisedExample]
    num_truncated: int
    num_dropped: int


class DataSummary(Frozen):
    """What was understood of one training set, its validation rows or a task, for one base, before anything is trained.

    Attributes:
        name: The training set's or task's name in the study file.
        role: `train`, `validation` or `task`.
        part: Which part of the source's rows it is, where they have no splits and are cut by what is asked.
        form: What the rows were taken for, for example `question_answer` or `multiple_choice`.
        num_rows: Rows read. A malformed one would have ended everything.
        num_used: Examples or items made of them.
        num_refused: Rows that nothing could be made of: blank ones that part texts, prompts that leave no room.
        num_truncated: Examples cut on the right, or items whose prompt is cut from the left when it is scored.
        median_tokens, p95_tokens: Of examples, or of items with their longest option.
        unread_fields: What holds something in any row and is not read, where no preset says what its fields are.
        sample_prompt, sample_trained: The first one decoded from its tokens; the second part is what is learned.
        is_estimate: The rows were not read, or there was no tokenizer for them: numbers are from a table.
    """

    base: str
    name: str
    role: Literal["train", "validation", "task"]
    source: str
    part: Part | None = None
    form: str
    num_rows: int
    num_used: int
    num_refused: int = 0
    num_truncated: int
    num_duplicates: int
    num_tokens: int
    num_scored_tokens: int
    median_tokens: int = 0
    p95_tokens: int = 0
    longest_tokens: int
    unread_fields: tuple[str, ...] = ()
    sample_prompt: str
    sample_trained: str
    is_estimate: bool = False


def training_summary(label: Label, understood: Contents, done: Tokenised, tokenizer: Tokenizer) -> DataSummary:
    """The counts of training or validation examples, with the first of them decoded from its tokens."""
    first = done.examples[0]
    return DataSummary(
        **vars(label),
        form=understood.form,
        num_rows=len(understood.contents) + understood.num_blank,
        num_used=len(done.examples),
        num_refused=understood.num_blank + done.num_dropped,
        num_truncated=done.num_truncated - done.num_dropped,
        num_duplicates=num_duplicates([(text.prompt, text.completion) for text in done.texts]),
        num_tokens=sum(len(example.input_ids) for example in done.examples),
        num_scored_tokens=sum(example.num_scored_tokens for example in done.examples),
        **_lengths([len(example.input_ids) for example in done.examples]),
        unread_fields=understood.unread,
        sample_prompt=tokenizer.decode(first.input_ids[: first.num_prompt_tokens], skip_special_tokens=False),
        sample_trained=tokenizer.decode(first.input_ids[first.num_prompt_tokens :], skip_special_tokens=False),
    )


def _lengths(tokens: Sequence[int]) -> dict[str, int]:
    """The middle, nearly the longest, and the longest of some lengths."""
    ordered = sorted(tokens)
    last = len(ordered) - 1
    return {
        "median_tokens": ordered[last // 2],
        "p95_tokens": ordered[math.ceil(0.95 * last)],
        "longest_tokens": ordered[last],
    }


def task_summary(label: Label, understood: Contents | None, items: Sequence[Item], tokenizer: Tokenizer) -> DataSummary:
    """The counts of a task's items, with the first of them decoded from its tokens.

    Args:
        label: Of what.
        understood: What its rows say; None where lm_eval made the items.
        items: The items.
        tokenizer: The base's.
    """
    num_blank = 0 if understood is None else understood.num_blank
    # Prompt and options are counted apart: as they are scored, one token of an option may melt into its neighbour, but
    # counting them so would take as many encodings of each prompt as it has options.
    prompts = [max(1, len(ids)) for ids in tokenizer.encode_batch([item.prompt for item in items])]
    followed = [item.options or (item.target,) for item in items]
    scored = iter(tokenizer.count_bare([text for texts in followed for text in texts]))
    lengths = [[next(scored) for _ in texts] for texts in followed]
    longest = [prompt + max(own) for prompt, own in zip(prompts, lengths, strict=True)]
    limit = tokenizer.context_length
    shown, right = tokenizer.encode_pair(items[0].prompt, items[0].target)
    return DataSummary(
        **vars(label),
        form="lm_eval" if understood is None else understood.form,
        num_rows=(len(items) if understood is None else len(understood.contents)) + num_blank,
        num_used=len(items),
        num_refused=num_blank,
        num_truncated=0 if limit is None else sum(length > limit for length in longest),
        num_duplicates=_num_repeated(understood, items),
        num_tokens=sum(prompts) + sum(sum(own) for own in lengths),
        num_scored_tokens=sum(sum(own) for own in lengths),
        **_lengths(longest),
        unread_fields=() if understood is None else understood.unread,
        sample_prompt=tokenizer.decode(shown, skip_special_tokens=False),
        sample_trained=tokenizer.decode(right, skip_special_tokens=False),
    )


def _num_repeated(understood: Contents | None, items: Sequence[Item]) -> int:
    """How many items came before already; worked examples, which differ by category, make no other item."""
    if understood is None:
        return num_duplicates([(item.prompt, item.options, item.target) for item in items])
    return num_duplicates([(content.question, content.options, content.answer) for content in understood.contents])


def num_independent(items: Sequence[Item]) -> int:
    """How many items intervals and the verdict count: those of one cluster are one."""
    return len({("cluster", item.cluster) if item.cluster else ("item", item.item_id) for item in items})


def task_warnings(where: str, summary: DataSummary, items: Sequence[Item], context_length: int | None) -> list[str]:
    """What is unusual about a task's items: those that count as one, items that do not fit, options that repeat."""
    warnings = []
    counted = num_independent(items)
    rest = f"; intervals and the verdict count {counted} items" if counted < len(items) else ""
    if summary.num_duplicates:
        warnings.append(f"{where}: {summary.num_duplicates} of {len(items)} items are repetitions{rest}")
    elif rest:
        warnings.append(f"{where}: the {len(items)} items are of {counted} clusters{rest}")
    if summary.num_truncated:
        longer = f"{summary.num_truncated} of {len(items)} items are longer"
        warnings.append(f"{where}: {longer} than the model's {context_length} positions")
    if repeated := sum(len(set(item.options)) < len(item.options) for item in items):
        warnings.append(f"{where}: {repeated} of {len(items)} items have two options with the same text")
    return warnings


def training_warnings(where: str, done: Tokenised, num_rows: int, max_length: int) -> list[str]:
    """What is unusual about a training set: repetitions, examples that are cut or left out."""
    warnings = []
    if repeated := num_duplicates([(text.prompt, text.completion) for text in done.texts]):
        warnings.append(f"{where}: {repeated} of {num_rows} examples are repetitions")
    if done.num_truncated:
        warnings.append(f"{where}: {done.num_truncated} of {num_rows} examples are longer than {max_length} tokens")
    if done.num_dropped:
        left_out = f"{done.num_dropped} of {num_rows} examples are left out"
        warnings.append(f"{where}: {left_out}, their prompts alone fill {max_length} tokens")
    return warnings


def data_lines(summaries: Iterable[DataSummary]) -> list[str]:
    """The lines of several summaries; where there are several bases, under the name of each, for tokens are its own."""
    summaries = list(summaries)
    lines, base = [], None
    has_bases = len({summary.base for summary in summaries}) > 1
    for summary in summaries:
        if has_bases and summary.base != base:
            lines.append(f"as base {summary.base} reads them:")
            base = summary.base
        lines += summary_lines(summary)
    return lines


def summary_lines(summary: DataSummary) -> list[str]:
    """What was understood, for a terminal: counts, lengths, and of a training set an example with its learned part."""
    if summary.is_estimate:
        sizes = f"{summary.num_used:,} rows, about {summary.num_tokens:,} tokens (an estimate, not counted)"
        return [f"  {summary.role} {summary.name} ({summary.source}): {sizes}"]
    counts = [f"{summary.num_rows:,} rows read as {summary.form}"]
    if summary.num_used != summary.num_rows - summary.num_refused:
        counts.append(f"{summary.num_used:,} used")
    counts += [
        f"{number:,} {word}"
        for number, word in (
            (summary.num_refused, "refused"), (summary.num_truncated, "cut"), (summary.num_duplicates, "duplicates")
        )
        if number or summary.role == "train"
    ]  # fmt: skip
    lengths = f"{summary.median_tokens} in the middle, 95% up to {summary.p95_tokens}, longest {summary.longest_tokens}"
    learned = f", {summary.num_scored_tokens:,} learned" if summary.role == "train" else ""
    source = f"{summary.source}; {part_words(summary.part)}" if summary.part else summary.source
    lines = [
        f"  {summary.role} {summary.name} ({source}): {', '.join(counts)}",
        f"    {summary.num_tokens:,} tokens{learned}; each {lengths}",
    ]
    if summary.unread_fields:
        lines.append(f"    not read of its rows: {', '.join(summary.unread_fields)}")
    if summary.role == "train":
        lines.append(f"    one example, what is trained on in >>> <<<: {_marked(summary)}")
    return lines


def _marked(summary: DataSummary) -> str:
    """The sample on one line, from both ends where it is long: the trained part is shown whole as far as it can be."""
    prompt, trained = summary.sample_prompt, summary.sample_trained
    if len(prompt) > _SHOWN:
        prompt = f"{prompt[: _SHOWN // 2]} [...] {prompt[-_SHOWN // 2 :]}"
    if len(trained) > _SHOWN:
        trained = f"{trained[: _SHOWN // 2]} [...] {trained[-_SHOWN // 2 :]}"
    return repr(f"{prompt}>>>{trained}<<<")
