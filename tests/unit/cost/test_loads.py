"""Numbers of examples, tokens and batches in closed form."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rankscope.cost.counted import counted_training, counted_validation
from rankscope.cost.loads import TrainingLoad, sample_of, typical_lengths
from rankscope.runs import TaskSettings


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
