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
from rankscope.data.sources import Role, Rows, read_rows
from rankscope.data.splits import held_out, in_part
from rankscope.data.summaries import (
    Label,
    Summary,
    Tokenised,
    task_summary,
    task_warnings,
    training_summary,
    training_warnings,
)
from rankscope.data.tasks import TaskOptions, contamination, content_id, distinct, make_task, prompt_style
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.runs import TaskSettings
from rankscope.spec import Data, Task, TrainingSet


@dataclass(frozen=True)
class PreparedTraining:
    """A training set as one base sees it.

    Attributes:
        texts: What is trained on; `examples` are the same in tokens, the end token included.
        validation_texts: The rows held out (or the source of their own), for the loss during training.
        validation_items: The same rows as they are scored to choose a learning rate.
        fingerprint: A hash of the training tokens.
        validation_fingerprint: A hash of the validation tokens.
    """

    texts: list[Example]
    examples: list[TokenisedExample]
    validation_texts: list[Example]
    validation_examples: list[TokenisedExample]
    validation_items: list[Item]
    validation_settings: TaskSettings
    fingerprint: str
    validation_fingerprint: str
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

    role: Literal["train", "validation"]
    rows: Rows
    understood: Contents
    contents: list[Content]
    source: str

    def label(self, base: str, name: str) -> Label:
        return Label(base, name, self.role, self.source)


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
        training_summary(part.label(base_name, name), part.understood, done, tokenizer)
        for part, done in ((train, trained), (validation, checked))
    ]
    warnings = training_warnings(f"train.{name}", trained, len(train.contents), max_length)
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
        validation_fingerprint=_token_hash(checked.examples),
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
    rows, understood = _read(spec, "test", f"evaluate.{name}")
    options = TaskOptions(name, spec.scoring, spec.kind, spec.max_new_tokens)
    items, settings = make_task(options, rows, understood, understood.contents, tokenizer)
    summary = task_summary(Label(base_name, name, "task", spec.source), understood, items, tokenizer)
    warnings = task_warnings(f"evaluate.{name}", summary, items, tokenizer.context_length)
    return PreparedTask(items, settings, summary, warnings)


def training_overlap(texts: Sequence[Example], items: Sequence[Item]) -> int:
    """How many items of a task are in a training set: their prompt (or text), case and blanks aside."""
    return contamination(_asked(texts), items)


# Rows ---------------------------------------------------------------------------------------------------------------


def _read(data: Data, role: Role, where: str) -> tuple[Rows, Contents]:
    """The rows of a source, or of a part of it, with what they say."""
    rows = read_rows(data, role)
    understood = understand(rows, data.columns)
    if data.part is None:
        return rows, understood
    contents = [content for content in understood.contents if in_part(content.question, data.part)]
    if not contents:
        what = f"none of the {len(understood.contents)} rows falls into the part '{data.part}'"
        raise UserError(what, where=where, mend="add data, or name sources of their own instead of parts")
    return rows, Contents(understood.form, contents[: data.max_examples])


def _parts(name: str, spec: TrainingSet) -> tuple[_Part, _Part]:
    """The rows to train on and those to validate on."""
    rows, understood = _read(spec, "train", f"train.{name}")
    stated = spec.validation
    if stated.source is not None or stated.split is not None or stated.part is not None or spec.part is not None:
        own = _validation_source(spec)
        own_rows, own_understood = _read(own, "validation", f"train.{name}.validation")
        train = _Part("train", rows, understood, understood.contents, spec.source)
        return train, _Part("validation", own_rows, own_understood, own_understood.contents, own.source)
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
    part = _Part("validation", rows, understood, validation[: stated.max_examples], spec.source)
    return _Part("train", rows, understood, kept, spec.source), part


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
        columns=spec.columns if is_same else None,
    )


# Tokens -------------------------------------------------------------------------------------------------------------


def _tokenise(part: _Part, tokenizer: Tokenizer, max_length: int) -> Tokenised:
    """Contents as texts and tokens; what leaves nothing to learn after the cut is left out and counted."""
    texts = _texts(part.contents, prompt_style(part.rows), tokenizer)
    pairs = tokenizer.encode_pairs([(text.prompt, text.completion) for text in texts])
    if tokenizer.chat_template is not None:
        pairs = _kept_openings(texts, pairs, tokenizer)
    end = tokenizer.completion_end_id
    kept, examples, num_truncated = [], [], 0
    for text, (prompt, completion) in zip(texts, pairs, strict=True):
        closing = [] if end is None or completion[-1:] == [end] else [end]
        ids = (*prompt, *completion, *closing)
        num_truncated += len(ids) > max_length
        if len(prompt) < min(max_length, len(ids)):
            kept.append(text)
            examples.append(TokenisedExample(text.example_id, ids[:max_length], len(prompt)))
    return Tokenised(kept, examples, num_truncated, len(texts) - len(kept))


def _kept_openings(
    texts: Sequence[Example], pairs: Sequence[tuple[list[int], list[int]]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    """Pairs in which the blanks that end a chat template's generation prompt stay with the prompt.

    lm-eval gives them to the completion, which is right for scoring; trained on they would count as learned, and the
    loss would not be the one that TRL takes. The tokens are the same, only their border moves.
    """
    openings = tokenizer.encode_pairs([(text.prompt, "") for text in texts])
    moved = []
    for (prompt, completion), (before, blanks) in zip(pairs, openings, strict=True):
        is_same = before == prompt and completion[: len(blanks)] == blanks
        border = len(blanks) if is_same and prompt else 0
        moved.append(([*prompt, *completion[:border]], completion[border:]))
    return moved


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
