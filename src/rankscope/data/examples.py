"""What rows become: a training example, a task's item, and the tokenised form of the first."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Example:
    """One text to train on: nothing is learned from the prompt, everything from the completion.

    Attributes:
        example_id: Stable under reordering and growth of the file: made of the content.
        prompt: As the model sees it, template applied; empty for plain text.
        completion: What follows, with its leading space where the template has one, without the end token.
        category: A subject or topic, where the data has one.
        line: The 1-based line or row of the source, for messages.
    """

    example_id: str
    prompt: str
    completion: str
    category: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Item:
    """One question of a task, as it is scored.

    Attributes:
        item_id: Unique in its task.
        prompt: As the model sees it; empty for plain text.
        options: The continuations compared, each with its leading space; empty where nothing is chosen.
        target: The right option's text, the reference answer of a generation, or the text whose loss is taken.
        target_index: The right option's index, for multiple choice.
        category: A subject or topic, where the data has one.
        cluster: What items share that are no independent evidence: a passage, a question asked twice. None: alone.
    """

    item_id: str
    prompt: str
    options: tuple[str, ...]
    target: str
    target_index: int | None = None
    category: str | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class TokenisedExample:
    """An example as token ids: `input_ids[num_prompt_tokens:]` is learned, the end token included."""

    example_id: str
    input_ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_scored_tokens(self) -> int:
        """How many tokens the loss is taken over."""
        return len(self.input_ids) - self.num_prompt_tokens


def items_frame(items: list[Item]) -> pl.DataFrame:
    """Items as the table that prompts.parquet holds."""
    return pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "category": [item.category for item in items],
            "prompt": [item.prompt for item in items],
            "options": [list(item.options) for item in items],
            "target": [item.target for item in items],
            "target_index": [item.target_index for item in items],
            "cluster": [item.cluster for item in items],
        },
        schema={
            "item_id": pl.String,
            "category": pl.String,
            "prompt": pl.String,
            "options": pl.List(pl.String),
            "target": pl.String,
            "target_index": pl.Int32,
            "cluster": pl.String,
        },
    )


def items_from_frame(frame: pl.DataFrame) -> list[Item]:
    """The items of a prompts.parquet table."""
    return [Item(**{**row, "options": tuple(row["options"])}) for row in frame.iter_rows(named=True)]


def examples_frame(examples: list[TokenisedExample], texts: list[Example], split: str) -> pl.DataFrame:
    """Tokenised examples and their texts as the rows of examples.parquet."""
    return pl.DataFrame(
        {
            "example_id": [example.example_id for example in examples],
            "split": [split] * len(examples),
            "prompt": [text.prompt for text in texts],
            "completion": [text.completion for text in texts],
            "input_ids": [list(example.input_ids) for example in examples],
            "num_prompt_tokens": [example.num_prompt_tokens for example in examples],
        },
        schema={
            "example_id": pl.String,
            "split": pl.String,
            "prompt": pl.String,
            "completion": pl.String,
            "input_ids": pl.List(pl.Int32),
            "num_prompt_tokens": pl.Int32,
        },
    )


def examples_from_frame(frame: pl.DataFrame) -> list[TokenisedExample]:
    """The tokenised examples of an examples.parquet table."""
    columns = frame.select("example_id", "input_ids", "num_prompt_tokens").iter_rows()
    return [TokenisedExample(name, tuple(ids), prompt) for name, ids, prompt in columns]
