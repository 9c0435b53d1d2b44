"""Everything that is known of a study's data before a model is loaded: examples, items, counts and warnings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankscope.data.content import Content
from rankscope.data.examples import Example, Item, TokenisedExample
from rankscope.data.forms import Contents, understand
from rankscope.data.prompts import PromptStyle, put
from rankscope.data.sources import Rows, read_rows
from rankscope.data.splits import held_out, num_duplicates
from rankscope.data.tasks import TaskOptions, contamination, content_id, distinct, make_task, prompt_style
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.runs import TaskSettings
from rankscope.spec import Data, Task, TrainingSet


@dataclass(frozen=True)
class Summary:
    """What was understood of one training set, its validation items or a task; the fields of plan's DataSummary."""

    base: str
    name: str
    role: Literal["train", "validation", "task"]
    source: str
    form: str
    num_rows: int
    num_used: int
    num_truncated: int
    num_duplicates: int
    num_tokens: int
    num_scored_tokens: int
    longest_tokens: int
    sample_prompt: str
    sample_trained: str


@dataclass(frozen=True)
class PreparedTraining:
    """A training set as one base sees it.

    Attributes:
        texts: What is trained on; `examples` are the same in tokens, the end token included.
        validation_texts: The rows held out (or the source of their own), for the loss during training.
        validation_items: The same rows as they are scored to choose a learning rate.
        fingerprint: A hash of the training tokens.
    """

    texts: list[Example]
    examples: list[TokenisedExample]
    validation_texts: list[Example]
    validation_examples: list[TokenisedExample]
    validation_items: list[Item]
    validation_settings: TaskSettings
    fingerprint: str
    summaries: list[Summary]
    warnings: list[str]


@dataclass(frozen=True)
class PreparedTask:
    """A task as one base sees it."""

    items: list[Item]
    settings: TaskSettings
    summary: Summary
    warnings: list[str]


@dataclass(frozen=True)
class _Part:
    """Rows that serve one purpose, with what was understood of all rows of their source."""

    rows: Rows
    understood: Contents
    contents: list[Content]
    source: str


@dataclass(frozen=True)
class _Tokenised:
    texts: list[Example]
    examples: list[TokenisedExample]
    num_truncated: int
    num_dropped: int


def prepare_training_set(
    base_name: str, name: str, spec: TrainingSet, tokenizer: Tokenizer, max_length: int, batch_size: int
) -> PreparedTraining:
    """Read, understand, split and tokenise a training set.

    Args:
        base_name: The base in the study file.
        name: The training set in the study file.
        spec: What the study file says of it.
        tokenizer: The base's.
        max_length: The longest example, in tokens; longer ones are cut on the right.
        batch_size: Examples in an optimizer step; there must be as many.

    Raises:
        UserError: The data is missing, malformed, or too small; with file and line where there are any.
    """
    train, validation = _parts(name, spec)
    trained = _tokenise(train, tokenizer, max_length)
    if len(trained.examples) < batch_size:
        raise UserError(
            f"the training set has {len(trained.examples)} examples, fewer than the batch of {batch_size}",
            where=f"train.{name}",
            mend=f"set optimization.batch_size to {max(1, len(trained.examples))} or less, or add data",
        )
    checked = _tokenise(validation, tokenizer, max_length)
    if not checked.examples:
        raise UserError(
            f"no validation row fits into {max_length} tokens", where=f"train.{name}", mend="raise max_length"
        )
    stated = spec.validation
    options = TaskOptions("validation", stated.scoring, None, stated.max_new_tokens)
    items, settings = make_task(options, validation.rows, validation.understood, validation.contents, tokenizer)
    summaries = [
        _summary((base_name, name, "train"), train, trained, tokenizer),
        _summary((base_name, name, "validation"), validation, checked, tokenizer),
    ]
    warnings = _training_warnings(f"train.{name}", trained, len(train.contents), max_length)
    if shared := contamination(_asked(trained.texts), items):
        warnings.append(f"train.{name}: {shared} of {len(items)} validation items are in the training set too")
    return PreparedTraining(
        texts=trained.texts,
        examples=trained.examples,
        validation_texts=checked.texts,
        validation_examples=checked.examples,
        validation_items=items,
        validation_settings=settings,
        fingerprint=_token_hash(trained.examples),
        summaries=summaries,
        warnings=warnings,
    )


def prepare_task(base_name: str, name: str, spec: Task, tokenizer: Tokenizer) -> PreparedTask:
    """Read and understand a task.

    Args:
        base_name: The base in the study file.
        name: The task in the study file.
        spec: What the study file says of it.
        tokenizer: The base's.

    Raises:
        UserError: The data is missing or malformed, or does not fit the scoring that is asked for.
    """
    rows = read_rows(spec, "test")
    understood = understand(rows, spec.columns)
    options = TaskOptions(name, spec.scoring, spec.kind, spec.max_new_tokens)
    items, settings = make_task(options, rows, understood, understood.contents, tokenizer)
    summary = _task_summary((base_name, name), spec.source, understood, items, tokenizer)
    warnings = []
    if summary.num_duplicates:
        warnings.append(f"evaluate.{name}: {summary.num_duplicates} of {len(items)} items are repetitions")
    if summary.num_truncated:
        longer = f"{summary.num_truncated} of {len(items)} items are longer"
        warnings.append(f"evaluate.{name}: {longer} than the model's {tokenizer.context_length} positions")
    if repeated := sum(len(set(item.options)) < len(item.options) for item in items):
        warnings.append(f"evaluate.{name}: {repeated} of {len(items)} items have two options with the same text")
    return PreparedTask(items, settings, summary, warnings)


def training_overlap(texts: Sequence[Example], items: Sequence[Item]) -> int:
    """How many items of a task are in a training set: their prompt (or text), case and blanks aside."""
    return contamination(_asked(texts), items)


# Rows ---------------------------------------------------------------------------------------------------------------


def _parts(name: str, spec: TrainingSet) -> tuple[_Part, _Part]:
    """The rows to train on and those to validate on."""
    rows = read_rows(spec, "train")
    understood = understand(rows, spec.columns)
    stated = spec.validation
    if stated.source is not None or stated.split is not None:
        own = _validation_source(spec)
        own_rows = read_rows(own, "validation")
        own_understood = understand(own_rows, own.columns)
        train = _Part(rows, understood, understood.contents, spec.source)
        return train, _Part(own_rows, own_understood, own_understood.contents, own.source)
    held = held_out([content.question for content in understood.contents], stated.fraction)
    kept = [content for content, is_held in zip(understood.contents, held, strict=True) if not is_held]
    validation = [content for content, is_held in zip(understood.contents, held, strict=True) if is_held]
    if not kept or not validation:
        raise UserError(
            f"a validation fraction of {stated.fraction} of {len(held)} rows leaves none to "
            f"{'validate' if kept else 'train'} on",
            where=f"train.{name}",
            mend="change validation.fraction, or name a validation source of its own",
        )
    # The rest of what is held out stays out of training, or the split would move when rows are added.
    part = _Part(rows, understood, validation[: stated.max_examples], spec.source)
    return _Part(rows, understood, kept, spec.source), part


def _validation_source(spec: TrainingSet) -> Data:
    """The validation rows' own source; another split of the same one is read in the same way."""
    stated = spec.validation
    is_same = stated.source is None or stated.source == spec.source
    return Data(
        source=stated.source or spec.source,
        subset=stated.subset or (spec.subset if is_same else None),
        revision=stated.revision or (spec.revision if is_same else None),
        split=stated.split,
        preset=stated.preset or (spec.preset if is_same else None),
        max_examples=stated.max_examples,
        columns=spec.columns if is_same else None,
    )


# Tokens -------------------------------------------------------------------------------------------------------------


def _tokenise(part: _Part, tokenizer: Tokenizer, max_length: int) -> _Tokenised:
    """Contents as texts and tokens; what leaves nothing to learn after the cut is left out and counted."""
    style = prompt_style(part.rows)
    texts = _texts(part.contents, style, tokenizer)
    pairs = tokenizer.encode_pairs([(text.prompt, text.completion) for text in texts])
    end = tokenizer.completion_end_id
    kept, examples, num_truncated = [], [], 0
    for text, (prompt, completion) in zip(texts, pairs, strict=True):
        closing = [] if end is None or completion[-1:] == [end] else [end]
        ids = (*prompt, *completion, *closing)
        num_truncated += len(ids) > max_length
        if len(prompt) < min(max_length, len(ids)):
            kept.append(text)
            examples.append(TokenisedExample(text.example_id, ids[:max_length], len(prompt)))
    return _Tokenised(kept, examples, num_truncated, len(texts) - len(kept))


def _texts(contents: Sequence[Content], style: PromptStyle, tokenizer: Tokenizer) -> list[Example]:
    prompted = [put(content, style, tokenizer) for content in contents]
    names = distinct([content_id(text.prompt, text.answer) for text in prompted])
    return [
        Example(name, text.prompt, text.answer, content.category, content.row.line)
        for name, content, text in zip(names, contents, prompted, strict=True)
    ]


def _token_hash(examples: Sequence[TokenisedExample]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.asarray([example.num_prompt_tokens, *example.input_ids], dtype="<i8").tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def _asked(texts: Sequence[Example]) -> list[str]:
    return [text.prompt or text.completion for text in texts]


# Counts -------------------------------------------------------------------------------------------------------------


def _summary(
    names: tuple[str, str, Literal["train", "validation"]], part: _Part, done: _Tokenised, tokenizer: Tokenizer
) -> Summary:
    base, name, role = names
    first = done.examples[0]
    return Summary(
        base=base,
        name=name,
        role=role,
        source=part.source,
        form=part.understood.form,
        num_rows=len(part.understood.contents),
        num_used=len(done.examples),
        num_truncated=done.num_truncated,
        num_duplicates=num_duplicates([(text.prompt, text.completion) for text in done.texts]),
        num_tokens=sum(len(example.input_ids) for example in done.examples),
        num_scored_tokens=sum(example.num_scored_tokens for example in done.examples),
        longest_tokens=max(len(example.input_ids) for example in done.examples),
        sample_prompt=tokenizer.decode(first.input_ids[: first.num_prompt_tokens], skip_special_tokens=False),
        sample_trained=tokenizer.decode(first.input_ids[first.num_prompt_tokens :], skip_special_tokens=False),
    )


def _task_summary(
    names: tuple[str, str], source: str, understood: Contents, items: Sequence[Item], tokenizer: Tokenizer
) -> Summary:
    # Prompt and options are counted apart: as they are scored, one token of an option may melt into its neighbour, but
    # counting them so would take as many encodings of each prompt as it has options.
    prompts = [max(1, len(ids)) for ids in tokenizer.encode_batch([item.prompt for item in items])]
    followed = [item.options or (item.target,) for item in items]
    scored = iter(tokenizer.count_bare([text for texts in followed for text in texts]))
    lengths = [[next(scored) for _ in texts] for texts in followed]
    longest = [prompt + max(own) for prompt, own in zip(prompts, lengths, strict=True)]
    limit = tokenizer.context_length
    shown, right = tokenizer.encode_pair(items[0].prompt, items[0].target)
    return Summary(
        base=names[0],
        name=names[1],
        role="task",
        source=source,
        form=understood.form,
        num_rows=len(understood.contents),
        num_used=len(items),
        num_truncated=0 if limit is None else sum(length > limit for length in longest),
        num_duplicates=num_duplicates([(item.prompt, item.options, item.target) for item in items]),
        num_tokens=sum(prompts) + sum(sum(own) for own in lengths),
        num_scored_tokens=sum(sum(own) for own in lengths),
        longest_tokens=max(longest),
        sample_prompt=tokenizer.decode(shown, skip_special_tokens=False),
        sample_trained=tokenizer.decode(right, skip_special_tokens=False),
    )


def _training_warnings(where: str, done: _Tokenised, num_rows: int, max_length: int) -> list[str]:
    warnings = []
    if repeated := num_duplicates([(text.prompt, text.completion) for text in done.texts]):
        warnings.append(f"{where}: {repeated} of {num_rows} examples are repetitions")
    if done.num_truncated:
        warnings.append(f"{where}: {done.num_truncated} of {num_rows} examples are longer than {max_length} tokens")
    if done.num_dropped:
        left_out = f"{done.num_dropped} of {num_rows} examples are left out"
        warnings.append(f"{where}: {left_out}, their prompts alone fill {max_length} tokens")
    return warnings
