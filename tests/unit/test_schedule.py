"""Two waves: candidates on the search seeds, then the other seeds at the chosen rates; no test item before a choice."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from rankscope.board import Board, status_of
from rankscope.plan import VALIDATION, Grid, Pack, Plan, piece_key
from rankscope.records import Asked, RateChoice, Rates, Search, TrainRecord
from rankscope.schedule import pack_seconds, possible_work, ready_packs, shared_out, work_seconds
from rankscope.work import Work, all_work, needed_work, work_of
from synthetic import ARMS, write_study


def choice(arm: str, rate: float | None) -> RateChoice:
    return RateChoice(
        base="small",
        training_set="new",
        arm=arm,
        learning_rate=rate,
        scores={},
        losses={},
        score_key="accuracy",
        at_edge=None,
        reason="",
        chosen_at="",
    )


def finish(board: Board, pack: Pack, status: str = "complete") -> None:
    for work in work_of(pack):
        board.status[work] = status


def test_a_study_runs_in_two_waves(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    plan = made.plan
    board, rates, order = Board(), Rates(), []
    tuned = {}
    for _ in range(10_000):
        packs = ready_packs(plan, board, rates)
        if not packs:
            break
        pack = packs[0]
        order.append(pack)
        finish(board, pack)
        for arm in plan.arms:
            candidates = [run for run in plan.runs if run.arm.label == arm and run.seed in plan.search_seeds]
            scored = [board.is_complete(("evaluate", "small", run.run_id, VALIDATION)) for run in candidates]
            if all(scored) and arm not in tuned:
                tuned[arm] = len(order)
                rates = Rates(choices=(*rates.choices, choice(arm, candidates[-1].learning_rate)))
    assert set(tuned) == set(plan.arms)
    trained = [plan.run(pack.run_ids[0]) for pack in order if pack.stage == "train"]
    assert len(trained) == len({run.run_id for run in trained})
    for run in trained:
        last_rate = [r.learning_rate for r in plan.runs if r.arm.label == run.arm.label][-1]
        assert run.seed in plan.search_seeds or run.learning_rate == last_rate
    for place, pack in enumerate(order):
        if pack.stage == "evaluate" and pack.run_ids and VALIDATION not in pack.names:
            run = plan.run(pack.run_ids[0])
            assert place >= tuned[run.arm.label], "a test item was scored before the arm's rate was chosen"
    assert {work for pack in order for work in work_of(pack)} == set(needed_work(plan, rates))


def test_nothing_is_ready_without_its_inputs(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    packs = ready_packs(plan, Board(), Rates())
    assert {pack.stage for pack in packs if pack.run_ids} == {"train"}
    assert all(plan.run(pack.run_ids[0]).seed in plan.search_seeds for pack in packs if pack.run_ids)


def test_what_failed_or_diverged_is_not_tried_again_and_holds_nothing_up(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    board = Board()
    first, second = [pack for pack in ready_packs(plan, board, Rates()) if pack.stage == "train"][:2]
    finish(board, first, "failed")
    finish(board, second, "diverged")
    packs = ready_packs(plan, board, Rates())
    assert first not in packs and second not in packs
    assert not [pack for pack in packs if pack.stage == "evaluate" and pack.run_ids]
    assert board.failed() == work_of(first)


def test_what_can_no_longer_be_done_is_not_waited_for(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    run = plan.runs[0]
    rates = Rates(choices=(choice(run.arm.label, run.learning_rate),))
    for status in ("failed", "diverged"):
        board = Board({("train", "small", run.run_id, ""): status})
        left = [work for work in possible_work(plan, board, rates) if work[2] == run.run_id]
        assert left == [("train", "small", run.run_id, "")]
    board = Board({("analyse", "small", None, "attention"): "failed"})
    assert not [work for work in possible_work(plan, board, rates) if work[2] and work[3] == "attention"]


def test_an_arm_without_a_rate_is_not_scored(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    board = Board({work: "complete" for work in all_work(plan) if work[0] == "train" or work[3] == VALIDATION})
    arm = plan.arms[0]
    packs = ready_packs(plan, board, Rates(choices=(choice(arm, None),)))
    assert not [pack for pack in packs if pack.run_ids]


def test_candidates_that_were_not_chosen_are_scored_after_the_choice_where_the_study_asks(tmp_path: Path) -> None:
    plan = write_study(tmp_path, arms=ARMS[:1]).plan
    searched = {run.run_id for run in plan.runs if run.seed in plan.search_seeds}
    chosen = {run.run_id for run in plan.runs if run.learning_rate == 3e-4}
    assert searched - chosen and chosen - searched
    rates = Rates(choices=(choice("lora-r4", 3e-4),))

    def scored_and_analysed(plan: Plan, rates: Rates) -> set[str]:
        tests = {*plan.tasks["small"], *plan.analyses}
        return {run for stage, _, run, name in needed_work(plan, rates) if run and name in tests}

    assert scored_and_analysed(plan, rates) == chosen
    asked = plan.model_copy(update={"scores_all_candidates": True})
    assert scored_and_analysed(asked, Rates()) == set(), "no test item before the choice"
    assert scored_and_analysed(asked, rates) == chosen | searched


def test_work_that_is_left_is_only_what_is_left(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    run = plan.runs[0]
    rates = Rates(choices=(choice(run.arm.label, run.learning_rate),))
    done: Work = ("evaluate", "small", run.run_id, "legal")
    board = Board({("train", "small", run.run_id, ""): "complete", done: "complete"})
    packs = [pack for pack in ready_packs(plan, board, rates) if pack.run_ids == (run.run_id,)]
    names = {pack.stage: set(pack.names) for pack in packs if VALIDATION not in pack.names}
    assert names["evaluate"] == {"taught", "general", "text"}


def test_deleted_weights_are_trained_again_when_something_needs_them(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    run = plan.runs[0]
    trained: Work = ("train", "small", run.run_id, "")
    board = Board(dict.fromkeys(all_work(plan), "complete"), without_weights={run.run_id})
    rates = Rates(choices=(choice(run.arm.label, run.learning_rate),))
    assert ready_packs(plan, board, rates) == []
    del board.status["evaluate", "small", run.run_id, "legal"]
    assert [work for pack in ready_packs(plan, board, rates) for work in work_of(pack)] == [trained]
    board.without_weights.clear()
    assert [pack.names for pack in ready_packs(plan, board, rates)] == [("legal",)]


# Rounds and rates beyond the grid ------------------------------------------------------------------------------------


def rounds_plan(tmp_path: Path) -> Plan:
    """A plan in which the arms' rates are halved: of three after a few and after most of the steps."""
    plan = write_study(tmp_path, arms=ARMS[:1]).plan
    grid = Grid(rates=tuple(sorted({run.learning_rate for run in plan.runs})))
    assert len(grid.rates) == 3
    return plan.model_copy(update={"grids": {"lora-r4": grid}, "is_halving": True})


def search(plan: Plan, *steps: int) -> Rates:
    rates = plan.grids["lora-r4"].rates
    asked = tuple(Asked(learning_rate=rate, step=step) for rate, step in zip(rates, steps, strict=False))
    return Rates(searches=(Search(base="small", training_set="new", arm="lora-r4", asked=asked),))


def of_runs(works: Iterable[Work]) -> set[tuple[str, float, str]]:
    """Work on runs as stage, rate and name."""
    return {(stage, float(run.split("-lr")[1].split("-seed")[0]), name) for stage, _, run, name in works if run}


def test_a_search_in_rounds_trains_every_rate_as_far_as_the_first_round(tmp_path: Path) -> None:
    plan = rounds_plan(tmp_path)
    first, _ = plan.round_steps(plan.runs[0])
    expected = {("train", rate, str(first)) for rate in plan.grids["lora-r4"].rates}
    assert of_runs(needed_work(plan, Rates())) == expected
    assert {pack.names for pack in ready_packs(plan, Board(), Rates()) if pack.run_ids} == {(str(first),)}
    assert set(needed_work(plan, Rates())) <= set(all_work(plan))


def test_what_goes_on_is_trained_further_and_the_last_one_whole(tmp_path: Path) -> None:
    plan = rounds_plan(tmp_path)
    first, second = plan.round_steps(plan.runs[0])
    low, middle, high = plan.grids["lora-r4"].rates
    works = of_runs(needed_work(plan, search(plan, first, second, second)))
    assert ("train", low, str(first)) in works and ("train", middle, str(second)) in works
    works = of_runs(needed_work(plan, search(plan, first, plan.runs[0].num_steps, second)))
    assert ("train", middle, "") in works and ("evaluate", middle, VALIDATION) in works
    assert ("train", high, "") not in works


def test_a_run_in_the_middle_has_come_as_far_as_its_steps(tmp_path: Path) -> None:
    plan = rounds_plan(tmp_path)
    first, second = plan.round_steps(plan.runs[0])
    record = TrainRecord(
        status="paused", run=plan.runs[0], num_steps=first, settings_hash="", provenance={}, started_at="", seconds=0.0
    )
    work = ("train", "small", plan.runs[0].run_id)
    assert status_of((*work, str(first)), record) == "complete"
    assert status_of((*work, str(second)), record) == "interrupted"
    assert status_of((*work, ""), record) == "paused"
    board = Board()
    board.note((*work, str(first)), record)
    assert not [pack for pack in ready_packs(plan, board, Rates()) if plan.runs[0].run_id in pack.run_ids]


def test_a_rate_beyond_the_grid_waits_until_it_is_asked_for(tmp_path: Path) -> None:
    plan = write_study(tmp_path, arms=ARMS[:1]).plan
    low, middle, high = sorted({run.learning_rate for run in plan.runs})
    plan = plan.model_copy(update={"grids": {"lora-r4": Grid(rates=(low, middle), above=(high,))}})
    assert {rate for _, rate, _ in of_runs(needed_work(plan, Rates()))} == {low, middle}
    asked = tuple(Asked(learning_rate=rate, step=plan.runs[0].num_steps) for rate in (low, middle, high))
    rates = Rates(searches=(Search(base="small", training_set="new", arm="lora-r4", asked=asked),))
    assert ("train", high, "") in of_runs(needed_work(plan, rates))


def test_of_equally_urgent_packs_the_longest_comes_first(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    seconds = {piece_key("train", run.base.name, run, ""): float(place) for place, run in enumerate(plan.runs)}
    plan = plan.model_copy(update={"estimate": plan.estimate.model_copy(update={"seconds_by_piece": seconds})})
    trained = [pack for pack in ready_packs(plan, Board(), Rates()) if pack.stage == "train"]
    lengths = [pack_seconds(plan, pack) for pack in trained]
    assert len(set(lengths)) > 1 and lengths == sorted(lengths, reverse=True)
    run = plan.runs[-1]
    half = ("train", run.base.name, run.run_id, str(run.num_steps // 2))
    assert work_seconds(plan, half) * 2 == pytest.approx(seconds[piece_key("train", run.base.name, run, "")], rel=0.2)


def test_runs_that_share_a_base_are_trained_together_and_no_worker_idles(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    alone = [pack for pack in ready_packs(plan, Board(), Rates()) if pack.stage == "train"]
    methods = [plan.run(pack.run_ids[0]).arm.method for pack in alone]
    number = methods.count("lora")
    assert number >= 3 and methods.count("full") >= 1
    layout = plan.layout.model_copy(update={"num_workers": 1})
    plan = plan.model_copy(update={"layout": layout})
    packs = [pack for pack in ready_packs(plan, Board(), Rates(), pack_size=2) if pack.stage == "train"]
    sizes = [len(pack.run_ids) for pack in packs]
    assert max(sizes) == 2 and sum(sizes) == len(alone)
    assert {run for pack in packs for run in pack.run_ids} == {run for pack in alone for run in pack.run_ids}
    for pack in packs:
        assert len(pack.run_ids) == 1 or {plan.run(run).arm.method for run in pack.run_ids} == {"lora"}
    busy = work_of(next(pack for pack in packs if len(pack.run_ids) == 2))
    rest = {run for pack in ready_packs(plan, Board(), Rates(), busy, pack_size=2) for run in pack.run_ids}
    assert rest == {run for pack in alone for run in pack.run_ids} - {work[2] for work in busy}
    many = plan.model_copy(update={"layout": layout.model_copy(update={"num_workers": number})})
    packs = [pack for pack in ready_packs(many, Board(), Rates(), pack_size=16) if pack.stage == "train"]
    assert {len(pack.run_ids) for pack in packs} == {1}


@pytest.mark.parametrize("is_halving", [False, True])
def test_who_trains_with_whom_does_not_depend_on_who_is_fast(tmp_path: Path, is_halving: bool) -> None:
    plan = write_study(tmp_path).plan
    layout = plan.layout.model_copy(update={"num_workers": 2})
    plan = plan.model_copy(update={"layout": layout, "is_halving": is_halving, "grids": {}})
    found = [_trained_packs(plan, random.Random(number)) for number in range(6)]
    assert all(packs == found[0] for packs in found)
    assert max(len(runs) for runs in found[0]) == 3
    later = [run for runs in found[0] for run in runs if plan.run(run).seed not in plan.search_seeds]
    assert len(later) == len(set(later)) == 2 * len(plan.arms)


def _trained_packs(plan: Plan, chance: random.Random) -> set[tuple[str, ...]]:
    """The packs of a study whose work takes as long as chance says, on two workers."""
    board, rates, in_flight, trained = Board(), Rates(), [], set()
    while True:
        busy = [work for pack in in_flight for work in work_of(pack)]
        for pack in ready_packs(plan, board, rates, busy, pack_size=3)[: 2 - len(in_flight)]:
            in_flight.append(pack)
            trained |= {pack.run_ids} if pack.stage == "train" else set()
        if not in_flight:
            return trained
        finish(board, in_flight.pop(chance.randrange(len(in_flight))))
        settled = {each.arm for each in rates.choices}
        for arm in set(plan.arms) - settled:
            candidates = [run for run in plan.runs if run.arm.label == arm and run.seed in plan.search_seeds]
            if all(board.is_complete(("evaluate", "small", run.run_id, VALIDATION)) for run in candidates):
                rates = Rates(choices=(*rates.choices, choice(arm, candidates[-1].learning_rate)))


def test_trained_together_generated_together_once_the_rates_are_known(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    name, *_ = plan.tasks["small"]
    task = plan.tasks["small"][name].model_copy(update={"scoring": "generate"})
    plan = plan.model_copy(update={"tasks": {"small": {name: task}}, "analyses": ()})
    board = Board({work: "complete" for work in all_work(plan) if work[0] == "train"})
    board.status |= {("evaluate", "small", run.run_id, VALIDATION): "complete" for run in plan.runs}
    rates = Rates(choices=tuple(choice(arm, next(r.learning_rate for r in plan.runs if r.arm.label == arm))
                                for arm in plan.arms))  # fmt: skip
    packs = [pack for pack in ready_packs(plan, board, rates, pack_size=16) if pack.run_ids]
    sizes = sorted(len(pack.run_ids) for pack in packs)
    methods = [plan.run(pack.run_ids[0]).arm.method for pack in packs if len(pack.run_ids) == 1]
    assert set(methods) == {"full"} and sizes[-1] > 2
    alone = [pack for pack in ready_packs(plan, board, rates) if pack.run_ids]
    assert {run for pack in packs for run in pack.run_ids} == {run for pack in alone for run in pack.run_ids}
    assert all(len(pack.run_ids) == 1 for pack in alone)


def test_the_last_models_are_scored_task_by_task_so_that_no_worker_idles(tmp_path: Path) -> None:
    made = write_study(tmp_path).plan
    first, second = (run.run_id for run in made.runs[:2])
    names = tuple(made.tasks["small"])
    times = {piece_key("evaluate", "small", made.run(first), name): float(place) for place, name in enumerate(names)}
    layout = made.layout.model_copy(update={"num_workers": 2})
    estimate = made.estimate.model_copy(update={"seconds_by_piece": times})
    plan = made.model_copy(update={"layout": layout, "estimate": estimate})
    packs = [Pack("evaluate", "small", (run_id,), names) for run_id in (first, second)]
    looked_into = Pack("analyse", "small", (first,), ("spectra", "norms"))
    assert len(names) > 1
    assert shared_out(plan, [*packs, looked_into]) == [*packs, looked_into], "more packs than workers are not the end"
    assert [pack.names for pack in shared_out(plan, packs)[:2]] == [(names[-1],)] * 2
    last = shared_out(plan, packs[:1])
    assert [pack.names for pack in last] == [(name,) for name in reversed(names)], "the longest first"
    assert {pack.run_ids for pack in last} == {(first,)}
    assert shared_out(plan, [looked_into]) == [looked_into]
    assert shared_out(made, packs[:1]) == packs[:1], "one worker gains nothing by it"
    searched = next(run.run_id for run in plan.runs if run.seed in plan.search_seeds)
    trained, validated = ("train", "small", second, ""), ("evaluate", "small", searched, VALIDATION)
    assert all(shared_out(plan, packs[:1], [work]) == packs[:1] for work in (trained, validated)), "more is to come"


def test_a_task_that_is_being_scored_holds_up_no_other_task_of_its_model(tmp_path: Path) -> None:
    plan = write_study(tmp_path).plan
    (base,) = [pack for pack in ready_packs(plan, Board(), Rates()) if pack.stage == "evaluate"]
    first, *others = work_of(base)
    left = [pack for pack in ready_packs(plan, Board(), Rates(), [first]) if pack.stage == "evaluate"]
    assert [work for pack in left for work in work_of(pack)] == others
    assert not [pack for pack in ready_packs(plan, Board(), Rates(), work_of(base)) if pack.stage == "evaluate"]
