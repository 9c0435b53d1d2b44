"""What goes through the model together, and which positions predict what, by hand."""

from __future__ import annotations

import pytest
import torch

from rankscope.data.examples import TokenisedExample
from rankscope.train.batches import iter_micro_batches, num_scored, split_rows


def example(length: int, num_prompt_tokens: int = 1) -> TokenisedExample:
    return TokenisedExample(str(length), tuple(range(10, 10 + length)), num_prompt_tokens)


@pytest.mark.parametrize(
    ("is_joined", "budget", "groups"),
    [
        (False, 40, [[3, 4, 5], [19, 20]]),  # a fourth row of 19 would make 76
        (True, 40, [[3, 4, 5, 19], [20]]),
        (False, 15, [[3, 4, 5], [19], [20]]),
        (True, 11, [[3, 4], [5], [19], [20]]),
    ],
)
def test_rows_of_like_length_share_a_budget(is_joined: bool, budget: int, groups: list[list[int]]) -> None:
    batches = [(0, [example(3), example(20), example(5)]), (1, [example(19), example(4)])]
    found = split_rows(batches, budget, is_joined=is_joined)
    assert [[len(one.input_ids) for _, one in rows] for rows in found] == groups


@pytest.mark.parametrize(("is_joined", "second"), [(False, 4), (True, 3)])
def test_without_a_prompt_the_first_token_has_nothing_that_predicts_it(is_joined: bool, second: int) -> None:
    examples = [example(3, num_prompt_tokens=0), example(4, num_prompt_tokens=2)]
    assert [num_scored(one) for one in examples] == [2, 2]
    (micro,) = iter_micro_batches([(0, examples)], 100, torch.device("cpu"), is_joined=is_joined)
    assert micro.positions.tolist() == [0, 1, second + 1, second + 2]
    assert micro.targets.tolist() == [11, 12, 12, 13]
