"""Numbers of examples, tokens and batches in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from rankscope.cost.counted import counted_task, counted_training, counted_validation
from rankscope.cost.loads import Loads, TrainingLoad, sample_of, typical_lengths
from rankscope.data.examples import Item
from rankscope.data.summaries import DataSummary
from rankscope.runs import TaskSettings
from rankscope.scoring.prefixes import shared_beginnings
from rankscope.scoring.rows import completion_rows


def test_the_longest_of_a_few_is_what_drawing_them_gives() -> None:
    lengths = tuple(range(1, 101))
    load = TrainingLoad(100, lengths, 0.5, 0, 0)
    assert load.longest_of(1) == pytest.approx(50.5)
    drawn = np.random.default_rng(0).choice(lengths, size=(20_000, 8)).max(axis=1).mean()
    assert load.longest_of(8) == pytest.approx(drawn, rel=0.01)


def test_a_step_that_does_not_fit_is_split() -> None:
    load = TrainingLoad(100, (100,) * 10, 0.5, 0, 0)
    assert load.micro_batches(8, 1000, is_joined=False) == (1, pytest.approx(800))
    number, positions = load.micro_batches(32, 1000, is_joined=False)
    assert number == 4 and positions == pytest.approx(3520)
    assert load.micro_batches(32, 1000, is_joined=True) == (4, 3200)


def test_typical_lengths_have_the_mean_and_the_limit() -> None:
    assert np.mean(typical_lengths(200, None)) == pytest.approx(200, rel=0.03)
    assert max(typical_lengths(200, 256)) == 256
    assert sample_of(list(range(5000))[::-1]) == tuple(range(0, 5000, 5))


def test_loads_are_counted_from_the_examples() -> None:
    frame = pl.DataFrame(
        {
            "split": ["train", "train", "validation", "validation"],
            "input_ids": [[1, 2, 3, 4], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]],
            "num_prompt_tokens": [2, 0, 1, 3],
        }
    )
    load = counted_training(frame)
    # Without a prompt the first token has nothing that predicts it: two and one of six tokens are learned.
    assert (load.num_examples, load.lengths, load.scored_fraction) == (2, (2, 4), 0.5)
    assert (load.num_validation_examples, load.num_validation_tokens) == (2, 8)
    settings = TaskSettings(
        name="v", scoring="multiple_choice", kind=None, answer="text", max_new_tokens=9, fingerprint="f", num_items=2
    )
    task = counted_validation(frame, [("a", "b", "c"), ("a", "b", "c")], settings)
    assert (task.num_prompt_tokens, task.num_answer_tokens, task.longest) == (2.0, 6.0, 5)


@pytest.mark.parametrize("num_shots", [0, 1, 4, 30])
def test_items_behind_worked_examples_are_counted_as_they_are_scored(num_shots: int) -> None:
    """With characters for tokens: what the rows hold that scoring makes of the same prompts."""
    generator = np.random.default_rng(num_shots)
    texts = ["".join(generator.choice(list("abcdefgh"), generator.integers(30, 60))) for _ in range(100 + 2 * 30)]
    subjects = ["".join(texts[100 : 100 + num_shots]), "".join(texts[130 : 130 + num_shots])]  # examples of their own
    prompts = [subjects[index % 2] + text for index, text in enumerate(texts[:100])]
    size = sum(map(len, prompts))
    summary = DataSummary.model_construct(
        num_used=100, num_truncated=0, num_tokens=size + 2000, num_scored_tokens=2000, longest_tokens=0
    )
    settings = TaskSettings(
        name="t", scoring="multiple_choice", kind=None, answer="text", max_new_tokens=9, fingerprint="f", num_items=100
    )
    items = [Item(str(number), prompt, ("x" * 10, "y" * 10), "x" * 10, 0) for number, prompt in enumerate(prompts)]
    load = counted_task(summary, settings, items, 4096)
    assert load.num_tokens == pytest.approx(size + 2000)
    rows = shared_beginnings(
        [[*map(ord, prompt)] for prompt in prompts], [len(prompt) + 20 for prompt in prompts], 4096
    )
    assert load.num_read_tokens == pytest.approx(sum(row.total for row in rows), rel=0.1)
    if num_shots == 4:
        assert load.num_read_tokens < 0.6 * load.num_tokens
    generated = counted_task(summary, settings.model_copy(update={"scoring": "generate"}), items, 4096)
    assert generated.num_read_tokens == generated.num_tokens


def test_of_items_that_do_not_fit_each_option_is_counted_as_a_row_as_long_as_the_model_takes() -> None:
    """With characters for tokens: CaseHOLD's five options behind prompts of 700 tokens, in a model of 512 positions."""
    context, options = 512, ("a" * 50, "b" * 60, "c" * 40)
    lengths = [700, 700, 700, 200]
    items = [
        Item(str(number), "pqrs"[number] * length, options, options[0], 0) for number, length in enumerate(lengths)
    ]
    summary = DataSummary.model_construct(
        num_used=4, num_truncated=3, num_tokens=sum(lengths) + 4 * 150, num_scored_tokens=4 * 150, longest_tokens=760
    )
    settings = TaskSettings(
        name="t", scoring="multiple_choice", kind=None, answer="text", max_new_tokens=9, fingerprint="f", num_items=4
    )
    load = counted_task(summary, settings, items, context)
    cut = [
        row
        for length in lengths[:3]
        for option in options
        for row in completion_rows(list(range(length)), list(range(len(option))), 0, context)
    ]
    whole = lengths[3] + 150
    assert sum(len(row.input_ids) for row in cut) == 9 * context
    # Which items are cut is not known of each, so a whole one counts as long as a mean one.
    mean = sum(lengths) / 4 + 150
    assert load.num_read_tokens == pytest.approx(9 * context + mean)
    assert load.num_read_tokens == pytest.approx(9 * context + whole, rel=0.1)
    assert load.row_length == pytest.approx(0.75 * context + 0.25 * mean)
    unknown = counted_task(summary, settings, items)
    assert unknown.num_read_tokens == unknown.num_tokens


def test_without_trees_every_option_has_the_whole_prompt_before_it() -> None:
    """With characters for tokens: what the rows hold that scoring makes of each option by itself."""
    prompts, options = ["p" * 40, "q" * 60], ("a" * 5, "b" * 7, "c" * 3)
    items = [Item(str(number), prompt, options, options[0], 0) for number, prompt in enumerate(prompts)]
    summary = DataSummary.model_construct(
        num_used=2, num_truncated=0, num_tokens=100 + 2 * 15, num_scored_tokens=2 * 15, longest_tokens=75
    )
    settings = TaskSettings(
        name="t", scoring="multiple_choice", kind=None, answer="text", max_new_tokens=9, fingerprint="f", num_items=2
    )
    task = counted_task(summary, settings, items, 128)
    loads = Loads({}, {}, {"t": task}, ())
    rows = [
        row
        for prompt in prompts
        for option in options
        for row in completion_rows(list(range(len(prompt))), list(range(len(option))), 0, 128)
    ]
    read = sum(len(row.input_ids) + 1 for row in rows)  # the last token is predicted and never read
    for alone in (loads.scored(task, in_trees=False), replace(loads, in_trees=False).scored(task)):
        assert alone.num_read_tokens == read == 3 * 100 + 2 * 15
        assert alone.row_length == 50 + 5
    assert loads.scored(task) == task and task.num_read_tokens == 130
    texts = replace(task, scoring="loss")
    assert loads.scored(texts, in_trees=False) == texts, "a text has no options"
