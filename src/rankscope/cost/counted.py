"""The loads of data that has been read and tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import polars as pl

from rankscope.cost.loads import TaskLoad, TrainingLoad, sample_of
from rankscope.data.examples import Item
from rankscope.data.prefixes import common_length
from rankscope.data.summaries import DataSummary
from rankscope.runs import TaskSettings


def counted_training(examples: pl.DataFrame) -> TrainingLoad:
    """A training set from its table of examples."""
    counted = examples.with_columns(
        pl.col("input_ids").list.len().alias("length"),
        (pl.col("input_ids").list.len() - pl.col("num_prompt_tokens").clip(1)).alias("scored"),
    )
    train = counted.filter(pl.col("split") == "train")
    validation = counted.filter(pl.col("split") == "validation")
    return TrainingLoad(
        num_examples=train.height,
        lengths=sample_of(train["length"].to_list()),
        scored_fraction=train["scored"].sum() / max(1, train["length"].sum()),
        num_validation_examples=validation.height,
        num_validation_tokens=validation["length"].sum(),
    )


def counted_task(
    summary: DataSummary, settings: TaskSettings, items: Sequence[Item], context: int | None = None
) -> TaskLoad:
    """A task from what was understood of its items.

    Args:
        summary: What was understood.
        settings: How it is scored.
        items: Its items.
        context: The positions that the model has; None: not known.
    """
    is_compared = settings.scoring == "multiple_choice" and context is not None
    num_prompt_tokens = (summary.num_tokens - summary.num_scored_tokens) / max(1, summary.num_used)
    return TaskLoad(
        num_items=summary.num_used,
        scoring=settings.scoring,
        num_prompt_tokens=num_prompt_tokens,
        num_answer_tokens=summary.num_scored_tokens / max(1, summary.num_used),
        longest=summary.longest_tokens,
        max_new_tokens=settings.max_new_tokens,
        num_shared_tokens=_shared_part([item.prompt for item in items]) * num_prompt_tokens,
        cut_fraction=summary.num_truncated / max(1, summary.num_used) if is_compared else 0.0,
        num_options=sum(len(set(item.options)) for item in items) / max(1, len(items)),
        context=context or 0,
    )


def _shared_part(prompts: Sequence[str]) -> float:
    """How much of a mean prompt it begins with together with the next one, in the order of their characters."""
    ordered = sorted(prompts)
    shared = sum(common_length(pair) for pair in pairwise(ordered))
    return shared / max(1, sum(map(len, ordered)))


def counted_validation(examples: pl.DataFrame, options: Sequence[Sequence[str]], settings: TaskSettings) -> TaskLoad:
    """Validation items: their prompts are those of the examples, but all of their options are scored.

    Args:
        examples: The training set's table, of which the validation rows count.
        options: Of each item.
        settings: How they are scored.
    """
    validation = examples.filter(pl.col("split") == "validation")
    lengths = validation["input_ids"].list.len()
    prompts = validation["num_prompt_tokens"].mean() or 0.0
    answers = (lengths.mean() or 0.0) - prompts
    numbers = [len(of_item) for of_item in options]
    number = max(1.0, sum(numbers) / max(1, len(numbers))) if settings.scoring == "multiple_choice" else 1.0
    longest = lengths.max() or 0
    return TaskLoad(
        num_items=settings.num_items,
        scoring=settings.scoring,
        num_prompt_tokens=prompts,
        num_answer_tokens=answers * number,
        longest=longest,
        max_new_tokens=settings.max_new_tokens,
        num_options=number,
    )
