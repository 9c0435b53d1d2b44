"""Everything that is known of a study's data before a model is loaded: examples, items, counts and warnings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.data.contamination import Said, TrainingWords, overlap_warning
from rankscope.data.content import Content
from rankscope.data.examples import Example, Item, TokenisedExample
from rankscope.data.few_shot import few_shot
from rankscope.data.folders import says_split
from rankscope.data.forms import Contents
from rankscope.data.lm_eval_tasks import harness_task
from rankscope.data.parts import DataPart, read_contents, training_parts
from rankscope.data.paths import user_path
from rankscope.data.prompts import PromptStyle, put
from rankscope.data.scorers import find_scorer
from rankscope.data.sources import Rows, unknown_revision
from rankscope.data.summaries import (
    DataSummary,
    Label,
    Tokenised,
    task_summary,
    task_warnings,
    training_summary,
    training_warnings,
)
from rankscope.data.tasks import TaskOptions, content_id, distinct, make_task, prompt_style
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError, within
from rankscope.runs import DataOrigin, TaskSettings
from rankscope.spec import Task, TrainingSet


@dataclass(frozen=True)
class PreparedTraining:
    """A training set as one base sees it.

    Attributes:
        texts: What is trained on; `examples` are the same in tokens, the end token included.
        said: What the rows trained on ask and answer, without template.
        validation_texts: The rows held out (or the source of their own), for the loss during training.
        validation_items: The same rows as they are scored to choose a learning rate.
        validation_said: What they ask and answer.
        fingerprint: A hash of the training tokens.
        validation_fingerprint: A hash of the validation tokens.
        version: Which version of the data set was read.
    """

    texts: list[Example]
    examples: list[TokenisedExample]
    said: list[Said]
    validation_texts: list[Example]
    validation_examples: list[TokenisedExample]
    validation_items: list[Item]
    validation_said: list[Said]
    validation_settings: TaskSettings
    fingerprint: str
    validation_fingerprint: str
    version: DataOrigin | None
    summaries: list[DataSummary]
    warnings: list[str]


@dataclass(frozen=True)
class PreparedTask:
    """A task as one base sees it; `said` is what its items ask and answer, without template and worked examples."""

    items: list[Item]
    said: list[Said]
    settings: TaskSettings
    summary: DataSummary
    warnings: list[str]


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
    stated = spec.validation
    options = TaskOptions("validation", stated.scoring, None, stated.max_new_tokens, spec.system_prompt)
    with within("train", name):
        train, validation = training_parts(spec)
        trained = _tokenise(train, tokenizer, max_length)
        _check_size(trained, max_length, batch_size)
        checked = _tokenise(validation, tokenizer, max_length)
        if not checked.examples:
            raise UserError(f"no validation row fits into {max_length} tokens", mend="raise max_length")
        with within("validation"):
            items, settings = make_task(options, validation.rows, validation.understood, validation.contents, tokenizer)
    said = [[Said.of(content) for content in part.contents] for part in (train, validation)]
    summaries = [
        training_summary(part.label(base_name, name), part.understood, done, tokenizer)
        for part, done in ((train, trained), (validation, checked))
    ]
    warnings = _source_warnings(f"train.{name}", spec, train.rows.version)
    warnings += training_warnings(f"train.{name}", trained, len(train.contents), max_length)
    exact, ngram = TrainingWords(said[0]).overlaps({"validation": said[1]})["validation"]
    if exact or ngram:
        shared = (exact, ngram)
        warnings.append(overlap_warning(f"train.{name}", "validation items", len(items), shared, "the training set"))
    return PreparedTraining(
        texts=trained.texts,
        examples=trained.examples,
        said=said[0],
        validation_texts=checked.texts,
        validation_examples=checked.examples,
        validation_items=items,
        validation_said=said[1],
        validation_settings=settings,
        fingerprint=_token_hash(trained.examples),
        validation_fingerprint=_token_hash(checked.examples),
        version=train.rows.version,
        summaries=summaries,
        warnings=warnings,
    )


def prepare_task(
    base_name: str, name: str, spec: Task, tokenizer: Tokenizer, *, allow_code: bool = False
) -> PreparedTask:
    """Read and understand a task.

    Args:
        base_name: The base in the study file.
        name: The task in the study file.
        spec: What the study file says of it.
        tokenizer: The base's.
        allow_code: Whether the study allows code that it names to be run.

    Raises:
        UserError: The data is missing or malformed, or does not fit the scoring that is asked for.
    """
    with within("evaluate", name):
        if spec.lm_eval is not None:
            items, settings, said = harness_task(name, spec, tokenizer, allow_code=allow_code)
            understood, source = None, f"lm_eval:{spec.lm_eval}"
        else:
            rows, understood = read_contents(spec, "test")
            options = _options(name, spec, rows, understood)
            items, settings = make_task(options, rows, understood, understood.contents, tokenizer)
            said, source = [Said.of(each) for each in understood.contents], str(spec.source)
    summary = task_summary(Label(base_name, name, "task", source, spec.part), understood, items, tokenizer)
    warnings = _source_warnings(f"evaluate.{name}", spec, settings.data)
    warnings += task_warnings(f"evaluate.{name}", summary, items, tokenizer.context_length)
    return PreparedTask(items, said, settings, summary, warnings)


def _options(name: str, spec: Task, rows: Rows, understood: Contents) -> TaskOptions:
    scorer = None if spec.scorer is None else find_scorer(spec.scorer)
    shots = few_shot(spec, rows, understood)
    return TaskOptions(name, spec.scoring, spec.kind, spec.max_new_tokens, spec.system_prompt, scorer, shots)


def _source_warnings(where: str, data: TrainingSet | Task, version: DataOrigin | None) -> list[str]:
    """That a split or a revision is asked for and cannot be told apart in what was read."""
    if version is None or data.source is None:
        return []
    if unknown := unknown_revision(version):
        return [f"{where}: {unknown}"]
    is_file = version.sha256 is not None and version.split is None  # read whole; only its name can say what it holds
    if data.split is None or not is_file or says_split(user_path(data.source).stem, data.split):
        return []
    return [f"{where}: {data.source} is one file, read whole whatever `split: {data.split}` asks for"]


def _check_size(trained: Tokenised, max_length: int, batch_size: int) -> None:
    """Refuse a training set that fills no batch, for the reason why it does not."""
    number = len(trained.examples)
    if number >= batch_size:
        return
    if trained.num_dropped and number + trained.num_dropped >= batch_size:
        raise UserError(
            f"the prompts of {trained.num_dropped} of {number + trained.num_dropped} rows fill all of {max_length} "
            f"tokens, so there is nothing of them to learn and {number or 'no'} examples are left",
            mend="raise optimization.max_length, or shorten the prompts",
        )
    raise UserError(
        f"the training set has {number} examples, fewer than the batch of {batch_size}",
        mend=f"set optimization.batch_size to {number} or less, or add data" if number else "add data",
    )


# Tokens -------------------------------------------------------------------------------------------------------------


def _tokenise(part: DataPart, tokenizer: Tokenizer, max_length: int) -> Tokenised:
    """Contents as texts and tokens; what leaves nothing to learn after the cut is left out and counted."""
    texts = _texts(part.contents, prompt_style(part.rows, part.system_prompt), tokenizer)
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
