"""Prompts that begin alike: what they share is found, and taken together only where it saves something."""

from __future__ import annotations

import random

from rankscope.scoring import prefixes
from rankscope.scoring.prefixes import Beginning, shared_beginnings, shared_length

SHOTS = tuple(range(100, 150))


def test_what_prompts_begin_with_together() -> None:
    assert shared_length([(1, 2, 3, 4), (1, 2, 9), (1, 2, 3, 5)]) == 2
    assert shared_length([(1, 2), (3, 4)]) == 0
    # Each keeps a token of its own, from which its options are predicted.
    assert shared_length([(1, 2, 3), (1, 2, 3)]) == 2
    assert shared_length([(1,), (1, 2)]) == 0


def test_the_rows_hold_what_is_shared_once() -> None:
    prompts = [(*SHOTS, 1, 2), (7, 8), (*SHOTS, 3), (*SHOTS, 1, 5, 6)]
    totals = [len(prompt) + 10 for prompt in prompts]
    groups = shared_beginnings(prompts, totals, 4096)
    assert sorted(index for group in groups for index in group.members) == [0, 1, 2, 3]
    assert Beginning((1,), 12) in groups
    # The first two in order share one token more than all three.
    (shared,) = (group for group in groups if group.length)
    assert (shared.length, set(shared.members)) == (50, {0, 2, 3})
    assert shared.total == 50 + sum(total - 50 for total in (totals[0], totals[2], totals[3]))


def test_a_short_beginning_is_not_worth_it() -> None:
    short = SHOTS[: prefixes.LEAST_SAVED - 1]
    assert all(not group.length for group in shared_beginnings([(*short, 1), (*short, 2)], [40, 40], 4096))
    long = SHOTS[: prefixes.LEAST_SAVED]
    assert [group.length for group in shared_beginnings([(*long, 1), (*long, 2)], [40, 40], 4096)] == [len(long)]


def test_a_row_grows_to_the_budget_and_no_further() -> None:
    prompts = [(*SHOTS, index) for index in range(40)]
    for budget in (100, 300, 10**6):
        groups = shared_beginnings(prompts, [71] * 40, budget)
        most = min(budget, prefixes.MOST_TOKENS)
        assert max(group.total for group in groups) <= most
        assert all(group.total + 21 > most for group in groups[:-1]), "full, but for the last"
    assert shared_beginnings([SHOTS], [5000], 100) == [Beginning((0,), 5000)]
    assert shared_beginnings([], [], 100) == []


def test_a_stranger_does_not_take_apart_what_others_share() -> None:
    """One prompt that shares little would cost a long group its beginning."""
    prompts = [*((*SHOTS, index, 9) for index in range(10)), (*SHOTS[:35], 999, 9)]
    groups = shared_beginnings(prompts, [60] * 11, 4096)
    assert {group.length for group in groups} == {0, 50}


def test_totals_are_those_of_the_rows_whatever_the_prompts() -> None:
    generator = random.Random(3)
    for _ in range(50):
        prompts = [tuple(generator.choices((1, 2), k=generator.randint(1, 60))) for _ in range(30)]
        prompts += [(*SHOTS[: generator.randint(1, 50)], *prompt) for prompt in prompts]
        totals = [len(prompt) + generator.randint(0, 9) for prompt in prompts]
        groups = shared_beginnings(prompts, totals, 400)
        assert sorted(index for group in groups for index in group.members) == [*range(len(prompts))]
        for group in groups:
            begins = {prompts[index][: group.length] for index in group.members}
            assert len(begins) == 1 and all(
                len(prompts[index]) > group.length or not group.length for index in group.members
            )
            assert group.total == group.length + sum(totals[index] - group.length for index in group.members)
