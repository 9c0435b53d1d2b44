"""The search of a learning rate: rounds of halving, rates beyond the grid, and the choice at the end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest

from rankscope.decide.search import Progress, Trial, advance, choose_rate
from rankscope.expansion import rates_beyond
from rankscope.plan import Grid, halved_search, round_steps

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
# By rate, the score after 15, 70 and 100 steps.
SCORES = {1e-4: (0.1, 0.2, 0.3), 3e-4: (0.3, 0.5, 0.6), 1e-3: (0.5, 0.7, 0.8), 3e-3: (0.4, 0.4, 0.4)}


class World:
    """Runs that can be trained, and a search that asks for them one round at a time."""

    def __init__(self, scores: Mapping[float, Sequence[float | str]], grid: Grid, *, halving: bool = True) -> None:
        self.scores, self.grid = scores, grid
        self.steps = round_steps(len(grid.rates), 100) if halving else ()
        self.trained: dict[float, int] = {}
        self.asked: list[dict[float, int]] = []

    def trials(self, rates: Sequence[float], step: int) -> list[Trial] | None:
        if any(self.trained.get(rate, 0) < step for rate in rates):
            return None
        return [self._trial(rate, step) for rate in rates]

    def _trial(self, rate: float, step: int) -> Trial:
        value = self.scores[rate][{15: 0, 70: 1, 100: 2}[step]]
        if isinstance(value, str):
            return Trial(rate, value)
        return Trial(rate, "complete", value if step == 100 else None, -value)

    def search(self) -> Progress:
        """Train what is asked for until there is a choice."""
        known = ()
        for _ in range(20):
            progress = advance(self.grid, self.steps, 100, self.trials, known)
            self.asked.append(dict(progress.asked))
            if progress.choice is not None:
                return progress
            self.trained |= progress.asked
            known = progress.rounds
        raise AssertionError("the search does not end")


def world(scores: Mapping[float, Sequence[float | str]] = SCORES, **options: bool) -> World:
    return World(scores, Grid(rates=RATES), **options)


def test_the_better_half_goes_on_from_round_to_round() -> None:
    one = world()
    found = one.search()
    assert one.asked[0] == dict.fromkeys(RATES, 15)
    assert one.asked[1] == {1e-4: 15, 3e-4: 15, 1e-3: 70, 3e-3: 70}
    assert one.asked[-1] == {1e-4: 15, 3e-4: 15, 1e-3: 100, 3e-3: 70}
    assert found.choice.learning_rate == 1e-3
    assert found.choice.steps == {"0.0001": 15, "0.0003": 15, "0.003": 70}
    assert found.choice.scores == {"0.0001": None, "0.0003": None, "0.001": 0.8, "0.003": None}
    assert found.choice.losses == {"0.0001": -0.1, "0.0003": -0.3, "0.001": -0.8, "0.003": -0.4}
    assert [item.kept for item in found.rounds] == [(1e-3, 3e-3), (1e-3,)]
    assert "left behind: 0.0001 after 15 of 100 steps" in found.choice.reason


def test_a_round_goes_by_the_loss_and_keeps_the_rate_above_the_best() -> None:
    """The score of the two best rates comes late, and the higher one's loss comes later than a lower rate's."""
    losses = {1e-4: (0.9, 0.8, 0.7), 3e-4: (0.7, 0.6, 0.5), 1e-3: (0.6, 0.5, 0.4), 3e-3: (0.8, 0.4, 0.3)}
    scores = {1e-4: (0.3, 0.3, 0.3), 3e-4: (0.4, 0.4, 0.4), 1e-3: (0.2, 0.5, 0.6), 3e-3: (0.2, 0.4, 0.7)}
    one = world(scores)
    place = {15: 0, 70: 1, 100: 2}
    one._trial = lambda rate, step: Trial(rate, "complete", scores[rate][place[step]], losses[rate][place[step]])
    found = one.search()
    assert [item.kept for item in found.rounds] == [(1e-3, 3e-3), (3e-3,)]
    assert found.choice.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("num_rates", "steps", "cost"),
    [(3, (15, 70), 185), (4, (15, 70), 200), (5, (7, 15, 70), 199), (8, (7, 15, 70), 228)],
)
def test_four_rates_cost_half_and_more_cost_less(num_rates: int, steps: tuple[int, ...], cost: int) -> None:
    assert round_steps(num_rates, 100) == steps
    assert halved_search(num_rates, 100)[0] == cost
    assert cost <= 50 * num_rates or num_rates == 3
    one = World({rate: SCORES[1e-3] for rate in range(1, num_rates + 1)}, Grid(rates=tuple(range(1, num_rates + 1))))
    one._trial = lambda rate, step: Trial(rate, "complete", rate * step, -rate * step)
    assert one.search().choice.learning_rate == num_rates
    assert sum(one.trained.values()) == cost


def test_two_rates_are_not_halved() -> None:
    assert round_steps(2, 100) == ()
    assert halved_search(2, 100) == (200, 2)
    assert halved_search(4, 100) == (200, 1), "only the last is scored"
    assert round_steps(4, 2) == (1,), "no round without a step"


def test_a_tie_goes_to_the_lower_loss_and_then_to_the_lower_rate() -> None:
    one = world(dict.fromkeys(RATES, (0.5, 0.5, 0.5)))
    assert one.search().choice.learning_rate == 1e-4
    one = world(dict.fromkeys(RATES, (0.5, 0.5, 0.5)))
    one._trial = lambda rate, step: Trial(rate, "complete", 0.5, 1.0 - rate)
    assert one.search().choice.learning_rate == 3e-3


def test_a_rate_that_diverges_in_a_round_is_out() -> None:
    found = world({**SCORES, 1e-3: ("diverged",) * 3}).search()
    assert found.rounds[0].losses["0.001"] is None
    assert found.choice.learning_rate == 3e-4
    assert found.choice.scores["0.001"] is None


def test_the_next_best_follows_where_the_last_one_ends_badly() -> None:
    one = world({**SCORES, 1e-3: (0.5, 0.7, "diverged")})
    found = one.search()
    assert found.choice.learning_rate == 3e-3, "the one left behind in the last round, though it is no longer so good"
    assert found.choice.scores["0.001"] is None
    assert one.asked[-1] == {1e-4: 15, 3e-4: 15, 1e-3: 100, 3e-3: 100}


def test_a_rate_that_is_added_is_compared_with_those_that_came_further() -> None:
    """Five rates have a round more than four; of the old ones no loss was taken there."""
    one = world()
    one.search()
    rates = (*RATES, 1e-2)
    one.grid, one.steps = Grid(rates=rates), round_steps(5, 100)
    assert one.steps == (7, 15, 70)
    one.scores = {**SCORES, 1e-2: (0.05, 0.1, 0.2)}
    taken = {rate: {step for step in (15, 70, 100) if step <= one.trained[rate]} for rate in RATES}

    def trial(rate: float, step: int) -> Trial:
        if step not in taken.get(rate, {7, 15, 70, 100}):
            return Trial(rate, "complete")
        place = {7: 0, 15: 0, 70: 1, 100: 2}[step]
        value = one.scores[rate][place]
        return Trial(rate, "complete", value if step == 100 else None, -value)

    one._trial = trial
    found = one.search()
    assert found.choice.learning_rate == 1e-3
    assert found.rounds[0].kept == tuple(sorted(rates)), "nothing is known of the old ones there"
    assert 1e-2 not in found.rounds[1].kept


def test_where_every_rate_diverges_nothing_is_chosen() -> None:
    early = world(dict.fromkeys(RATES, ("diverged",) * 3)).search()
    assert early.choice.reason.startswith("no rate can be chosen: 0.0001 diverged, 0.0003 diverged")
    found = world(dict.fromkeys(RATES, ("diverged",) * 3)).search()
    assert found.choice.learning_rate is None
    assert set(found.choice.scores.values()) == {None}


def test_rounds_that_were_decided_stay_so() -> None:
    one = world()
    first = one.search()
    one.scores = {**SCORES, 1e-4: (0.9, 0.9, 0.9)}
    assert advance(one.grid, one.steps, 100, one.trials, first.rounds).choice == first.choice


def test_the_order_in_which_trials_come_in_changes_nothing() -> None:
    expected = world().search().choice
    for order in itertools.permutations(RATES):
        assert World(SCORES, Grid(rates=order)).search().choice == expected


# Beyond the grid -----------------------------------------------------------------------------------------------------


def beyond(scores: Mapping[float, Sequence[float | str]], rates: tuple[float, ...]) -> World:
    below, above = rates_beyond(rates)
    return World(scores, Grid(rates=rates, below=below, above=above), halving=False)


def test_the_rates_beyond_go_on_in_the_grid_s_last_ratio() -> None:
    assert rates_beyond((1e-3, 3e-3, 4e-3)) == ((3.33e-4, 1.11e-4, 3.70e-5), (5.33e-3, 7.11e-3, 9.48e-3))
    assert rates_beyond((1e-3,)) == ((), ())


def test_a_best_rate_at_the_edge_asks_for_the_next_until_it_is_inside() -> None:
    scores = {1e-3: (0, 0, 0.2), 2e-3: (0, 0, 0.3), 4e-3: (0, 0, 0.5), 8e-3: (0, 0, 0.4)}
    one = beyond(scores, (1e-3, 2e-3))
    found = one.search()
    assert [set(asked) for asked in one.asked] == [{1e-3, 2e-3}, {1e-3, 2e-3, 4e-3}, {*scores}, {*scores}]
    assert (found.choice.learning_rate, found.choice.at_edge) == (4e-3, None)
    assert found.choice.added == (4e-3, 8e-3)
    assert "beyond the grid: 0.004, 0.008" in found.choice.reason


def test_a_grid_is_extended_downwards_too_and_a_divergence_is_an_end() -> None:
    found = beyond({1e-3: (0, 0, 0.5), 2e-3: (0, 0, 0.3), 5e-4: ("", "", "diverged")}, (1e-3, 2e-3)).search()
    assert (found.choice.learning_rate, found.choice.at_edge) == (1e-3, None)


def test_after_three_rates_on_one_side_the_edge_is_warned_of() -> None:
    scores = {rate: (0, 0, rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)}
    found = beyond(scores, (1e-3, 2e-3)).search()
    assert (found.choice.learning_rate, found.choice.at_edge) == (1.6e-2, "highest")


def test_the_edge_is_that_of_all_rates_tried_not_of_those_that_were_left() -> None:
    found = world().search()
    assert found.choice.at_edge is None
    assert choose_rate([Trial(1e-3, "complete", 0.5, 0.1)], RATES).at_edge is None
    assert choose_rate([Trial(3e-3, "complete", 0.5, 0.1)], RATES).at_edge == "highest"


def test_halving_and_extending_go_together() -> None:
    scores = {1e-3: (0.1, 0.1, 0.1), 2e-3: (0.2, 0.2, 0.2), 4e-3: (0.3, 0.3, 0.3), 8e-3: (0, 0, 0.2)}
    below, above = rates_beyond((1e-3, 2e-3, 4e-3))
    one = World(scores, Grid(rates=(1e-3, 2e-3, 4e-3), below=below, above=above))
    found = one.search()
    assert found.choice.learning_rate == 4e-3
    assert one.asked[-1] == {1e-3: 15, 2e-3: 70, 4e-3: 100, 8e-3: 100}
