"""Rates: by validation score, then loss, then the lower; and never changed once made on the same runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rankscope.decide.rates import later_work, update_rates
from rankscope.decide.search import Trial, choose_rate
from rankscope.records import Rates, Subject
from rankscope.work import needed_work
from synthetic import ARMS, Arm, Task, items_frame, write_scores, write_study


def trial(rate: float, score: float | None, loss: float | None = 1.0, outcome: str = "complete") -> Trial:
    return Trial(rate, outcome, score, loss)


def test_the_best_mean_score_over_the_search_seeds_wins() -> None:
    chosen = choose_rate([trial(1e-4, 0.5), trial(1e-4, 0.7), trial(3e-4, 0.66), trial(3e-4, 0.6), trial(1e-3, 0.1)])
    assert chosen.learning_rate == 3e-4
    assert chosen.scores == {"0.0001": 0.6, "0.0003": 0.63, "0.001": 0.1}
    assert chosen.at_edge is None
    assert chosen.reason == "best validation score"


def test_tied_scores_go_to_the_lower_loss_then_to_the_lower_rate() -> None:
    by_loss = choose_rate([trial(1e-4, 0.5, 0.9), trial(3e-4, 0.5, 0.8), trial(1e-3, 0.4, 0.1)])
    assert (by_loss.learning_rate, by_loss.reason) == (3e-4, "tied score, lower loss")
    by_rate = choose_rate([trial(3e-4, 0.5, 0.8), trial(1e-4, 0.5, 0.8)])
    assert (by_rate.learning_rate, by_rate.reason) == (1e-4, "tied score and loss, the lower rate")


def test_scores_within_a_standard_error_are_a_tie_that_the_loss_decides() -> None:
    """Of 100 items, 0.5 has a standard error of 0.05."""
    trials = [(1e-4, 0.44, 0.1), (3e-4, 0.46, 0.3), (1e-3, 0.5, 0.4), (3e-3, 0.49, 0.5)]
    chosen = choose_rate([Trial(rate, "complete", score, loss, 100) for rate, score, loss in trials])
    assert chosen.learning_rate == 3e-4
    assert chosen.reason == "lowest loss of those whose score is within a standard error of the best"
    more = choose_rate([Trial(rate, "complete", score, loss, 10_000) for rate, score, loss in trials])
    assert (more.learning_rate, more.reason) == (1e-3, "best validation score")
    seeds = choose_rate([Trial(rate, "complete", score, loss, 100) for rate, score, loss in trials for _ in range(9)])
    assert seeds.learning_rate == 3e-4, "seeds share the items"


def test_a_missing_loss_loses_a_tie() -> None:
    assert choose_rate([trial(1e-4, 0.5, None), trial(3e-4, 0.5, 2.0)]).learning_rate == 3e-4


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_a_rate_that_diverged_or_failed_on_any_seed_is_out_and_named(outcome: str) -> None:
    chosen = choose_rate([trial(1e-4, 0.2), trial(1e-3, 0.9), trial(1e-3, None, None, outcome)])
    assert chosen.learning_rate == 1e-4
    assert chosen.scores["0.001"] is None
    assert f"0.001 {outcome}" in chosen.reason


def test_a_score_that_is_not_finite_is_out() -> None:
    chosen = choose_rate([trial(1e-4, float("nan")), trial(1e-3, -5.0)])
    assert chosen.learning_rate == 1e-3
    assert "0.0001 has no finite validation score" in chosen.reason


def test_where_every_rate_is_out_there_is_none() -> None:
    chosen = choose_rate([trial(1e-4, None, None, "diverged"), trial(1e-3, None, None, "failed")])
    assert (chosen.learning_rate, chosen.at_edge) == (None, None)
    assert chosen.reason == "no rate can be chosen: 0.0001 diverged, 0.001 failed"


@pytest.mark.parametrize(("best", "edge"), [(0, "lowest"), (1, None), (2, "highest")])
def test_the_edge_of_the_grid_is_flagged(best: int, edge: str | None) -> None:
    assert choose_rate([trial(10.0**-k, 0.9 if 4 - k == best else 0.1) for k in (2, 3, 4)]).at_edge == edge


def test_a_single_rate_is_no_edge() -> None:
    chosen = choose_rate([trial(1e-4, 0.5)])
    assert (chosen.learning_rate, chosen.at_edge, chosen.reason) == (1e-4, None, "the only rate")


# In a study directory ------------------------------------------------------------------------------------------------


def test_every_arm_gets_the_rate_that_validation_favours(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    rates = update_rates(study.store, study.plan)
    assert [choice.learning_rate for choice in rates.choices] == [arm.rates[arm.best] for arm in ARMS]
    assert study.store.read_rates() == rates
    assert rates.choices[0].run_ids == tuple(run.run_id for run in study.runs("lora-r4", seed=0))
    assert rates.choices[3].at_edge == "lowest"


def test_an_arm_waits_until_all_its_candidates_are_done(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    waiting = study.runs("lora-r16", seed=0)[2]
    record = study.store.task(waiting.run_id, "validation") / "record.json"
    text = record.read_text()
    record.unlink()
    first = update_rates(study.store, study.plan)
    assert "lora-r16" not in {choice.arm for choice in first.choices}
    record.write_text(text)
    second = update_rates(study.store, study.plan)
    assert {choice.arm for choice in second.choices} == {arm.label for arm in ARMS}
    kept = {choice.arm: choice for choice in second.choices}
    assert all(kept[choice.arm] == choice for choice in first.choices)


def test_a_choice_is_not_made_twice_nor_the_file_written_twice(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    first = update_rates(study.store, study.plan)
    stamp = (study.store.decide / "rates.json").stat().st_mtime_ns
    assert update_rates(study.store, study.plan) == first
    assert (study.store.decide / "rates.json").stat().st_mtime_ns == stamp


def test_a_choice_is_made_anew_for_other_candidates_only(tmp_path: Path) -> None:
    before = write_study(tmp_path)
    first = {choice.arm: choice for choice in update_rates(before.store, before.plan).choices}
    changed = [replace(ARMS[0], rates=(1e-4, 3e-4, 2e-3)), *ARMS[1:]]
    after = write_study(tmp_path, arms=changed)
    second = {choice.arm: choice for choice in update_rates(after.store, after.plan).choices}
    assert second["lora-r4"].run_ids != first["lora-r4"].run_ids
    assert "0.002" in second["lora-r4"].scores
    assert all(second[arm.label] == first[arm.label] for arm in ARMS[1:])


def test_a_choice_is_made_anew_when_a_failed_candidate_was_run_again(tmp_path: Path) -> None:
    failed = replace(ARMS[1], failed=(3e-4,))
    before = write_study(tmp_path, arms=[failed])
    first = update_rates(before.store, before.plan).choices[0]
    assert first.learning_rate != 3e-4
    after = write_study(tmp_path, arms=[ARMS[1]])
    assert update_rates(after.store, after.plan).choices[0].learning_rate == 3e-4


def test_an_arm_whose_every_rate_diverged_says_so(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=[Arm("lora", 4, rates=(1e-2, 1e-1), diverged=(1e-2, 1e-1))])
    choice = update_rates(study.store, study.plan).choices[0]
    assert choice.learning_rate is None
    assert choice.reason == "no rate can be chosen: 0.01 diverged, 0.1 diverged"


def test_validation_by_loss_prefers_the_lower_and_records_it_as_measured(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=[ARMS[1]], validation_scoring="loss")
    task = Task("validation", "in_domain", scoring="loss")
    for index, run in enumerate(study.runs("lora-r16", seed=0)):
        tokens = pl.Series([10, 10]).to_numpy()
        frame = items_frame(task, None, tokens * (0.9, 0.7, 0.8)[index], tokens)
        write_scores(study.store.task(run.run_id, "validation"), frame, Subject(base="small"), task)
    choice = update_rates(study.store, study.plan).choices[0]
    assert choice.learning_rate == 3e-4
    assert choice.score_key == "loss_nats_per_token"
    assert choice.scores == {"0.0001": pytest.approx(0.9), "0.0003": pytest.approx(0.7), "0.001": pytest.approx(0.8)}


def test_two_search_seeds_are_averaged(tmp_path: Path) -> None:
    study = write_study(tmp_path, search_seeds=2)
    choice = update_rates(study.store, study.plan).choices[0]
    assert len(choice.run_ids) == 6
    scores = [
        study.store.read_evaluate(study.store.task(run.run_id, "validation")).values["accuracy"]
        for run in study.runs("lora-r4")
        if run.learning_rate == 3e-4 and run.seed in (0, 1)
    ]
    assert choice.scores["0.0003"] == pytest.approx(sum(scores) / 2)


def test_every_base_and_training_set_chooses_for_itself(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:1], bases=("one", "two"), training_sets=("new", "old"))
    found = [(choice.base, choice.training_set) for choice in update_rates(study.store, study.plan).choices]
    assert found == [("one", "new"), ("one", "old"), ("two", "new"), ("two", "old")]


@pytest.mark.parametrize("search_seeds", [1, 2])
def test_what_choices_will_ask_for_is_counted_before_they_are_made(tmp_path: Path, search_seeds: int) -> None:
    arms = [*ARMS[:3], replace(ARMS[3], diverged=ARMS[3].rates)]
    study = write_study(tmp_path, arms=arms, search_seeds=search_seeds, training_sets=("new", "old"))
    made = update_rates(study.store, study.plan).choices

    def counted(number: int) -> tuple[Counter[str], int]:
        rates = Rates(choices=made[:number])
        later = later_work(study.plan, rates)
        return Counter(work[0] for work in [*needed_work(study.plan, rates), *later]), len(later)

    found = [counted(number) for number in range(len(made) + 1)]
    assert [number for _, number in found] == sorted((number for _, number in found), reverse=True)
    assert found[0][1] > 0 and found[-1][1] == 0
    totals = [total for total, _ in found]
    # The total stays, but for the arm of each training set that has no rate after all: its later seeds are not made.
    assert totals[0] == totals[1] == totals[2] == totals[3] != totals[4] == totals[7] != totals[8]
    assert totals[0]["train"] - totals[8]["train"] == 2 * (3 - search_seeds)
