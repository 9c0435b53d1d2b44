"""What plan, run and status print: lines that can be read, and counts that agree with one another."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rankscope.board import Board
from rankscope.display import PlainDisplay
from rankscope.execute.events import Finished
from rankscope.plan import Layout, Pack
from rankscope.planning import make_plan
from rankscope.records import ArmResult, DecideRecord, Interval, Rates, Verdict
from rankscope.status import study_status
from rankscope.study_file import load_study
from rankscope.terminal import forecast_line, plan_lines, print_verdicts, status_lines, verdict_tables
from rankscope.work import needed_work
from studies import write_study as write_tiny
from synthetic import STARTED, Synthetic, write_study


def said_by_run(study: Synthetic, *packs: Pack) -> list[str]:
    """What a log has of a run that finishes these packs."""
    stream = io.StringIO()
    shown = PlainDisplay(Console(file=stream, width=80))
    shown.planned(study.plan, [])
    shown.update(Board(), list(needed_work(study.plan, Rates())), [], [Finished(pack) for pack in packs], [])
    return stream.getvalue().splitlines()


def test_what_all_arms_share_stands_in_lines_that_can_be_read(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    lines = plan_lines(study.study, study.plan)
    start = next(index for index, line in enumerate(lines) if "the same for all that have it: " in line)
    shared = [lines[start], *(line for line in lines[start + 1 : lines.index("", start)])]
    assert len(shared) > 2 and all(60 < len(line) <= 100 for line in shared[:-1]) and len(shared[-1]) <= 100
    text = " ".join(line.strip() for line in shared)
    for part in ("num_train_epochs 1.0, ", "lr_scheduler_type cosine, ", ", num_validations 4"):
        assert part in text


def test_plan_run_and_status_count_the_same_runs(tmp_path: Path) -> None:
    """Not all that may be made: of an arm one rate goes on to the later seeds."""
    study = write_study(tmp_path)
    shutil.rmtree(study.store.root / "runs")
    made = {run.run_id for run in study.plan.runs if run.seed == 0}
    arms = {run.arm.label for run in study.plan.runs}
    first, later = len(made), 2 * len(arms)
    assert study.plan.num_runs == (first, later) and first + later < len(study.plan.runs)
    words = f"{first} in the search for rates, then {later} more at the chosen ones: {first + later} in all"
    assert f"runs: {words}" in plan_lines(study.study, study.plan)
    head = said_by_run(study)[0]
    words = f"{first + later} runs, {first} in the search for rates and {later} more at the chosen ones"
    assert re.fullmatch(rf"\w+: {words}; on cpu, .*", head)
    state = study_status(study.store)
    assert state["counts"] == {"waiting": first + later}
    assert status_lines(state)[0].endswith(f"({first + later} waiting)")


def test_a_gain_in_nats_is_not_called_points(tmp_path: Path) -> None:
    """Of a training set that is judged by loss; it stands in the column of those that have right answers."""
    interval = Interval(value=10.2, low=9.8, high=10.6, confidence=0.95, num_items=19, num_seeds=2)
    right = ArmResult(
        arm="full", method="full", rank=None, learning_rate=1e-3, num_trainable=1, gain=interval, gain_nats=None,
        forgetting=None, forgetting_nats=None, eligible="yes",
    )  # fmt: skip
    by_loss = right.model_copy(update={"gain": None, "gain_nats": interval})
    for arm, is_said in ((right, False), (by_loss, True)):
        verdict = Verdict(
            base="b", training_set="s", decision="undecided", arm=None, learning_rate=None, gain=None, forgetting=None,
            rule="", runner_up=None, needed=None, arms=(arm,),
        )  # fmt: skip
        record = DecideRecord(
            status="complete", settings_hash="0" * 64, provenance={}, started_at=STARTED, seconds=1.0,
            verdicts=(verdict,), comparisons=(),
        )  # fmt: skip
        assert ("a gain with ± is in nats per token" in verdict_tables(record)[-1]) == is_said
        assert ("in points of accuracy" in verdict_tables(record)[-1]) != is_said, (
            "of what there is none nothing is said"
        )


def test_what_one_arm_of_a_method_leaves_out_is_a_difference(tmp_path: Path) -> None:
    rate = "learning_rate: 1.0e-3"
    lora = f"{{method: lora, rank: 4, {rate}}}, {{method: lora, name: dora, rank: 4, use_dora: true, {rate}}}"
    study = load_study(write_tiny(tmp_path), [f"arms=[{{method: full, {rate}}}, {lora}]"])
    lines = plan_lines(study, make_plan(study)[0])
    start = lines.index("arms (the fields on which they differ)")
    assert lines[start + 1].split() == ["arm", "use_dora"]
    assert [line.split()[-1] for line in lines[start + 2 : start + 5]] == ["-", "-", "True"]
    assert "use_dora" not in " ".join(lines[start + 5 :])


def test_no_number_of_a_verdict_is_cut_on_a_narrow_terminal(tmp_path: Path) -> None:
    interval = Interval(value=-0.1234, low=-0.329, high=0.079, confidence=0.95, num_items=19, num_seeds=2)
    arm = ArmResult(
        arm="lora-r16-all-linear-and-experts", method="lora", rank=16, learning_rate=3e-4, num_trainable=1,
        gain=interval, gain_nats=None, forgetting=interval, forgetting_nats=interval, eligible="unknown",
    )  # fmt: skip
    verdict = Verdict(
        base="b", training_set="s", decision="undecided", arm=None, learning_rate=None, gain=None, forgetting=None,
        rule="", runner_up=None, needed="one two three four five six seven eight nine ten", arms=(arm,),
    )  # fmt: skip
    record = DecideRecord(
        status="complete", settings_hash="0" * 64, provenance={}, started_at=STARTED, seconds=1.0,
        verdicts=(verdict,), comparisons=(),
    )  # fmt: skip
    stream = io.StringIO()
    print_verdicts(Console(file=stream, width=40), record)
    (line,) = [line for line in stream.getvalue().splitlines() if line.startswith("lora-r16-all-linear-and-experts ")]
    assert "0.0003" in line and "-12.3 [-32.9, 7.9]" in line and line.split()[-1] == "unknown"
    assert "…" not in stream.getvalue()
    said = [line for line in stream.getvalue().splitlines() if "three" in line or "nine" in line]
    assert len(said) == 2, "text is wrapped as before"


def test_a_round_of_halving_says_how_far_it_came(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    run = study.plan.runs[0]
    said = said_by_run(
        study, Pack("train", "small", (run.run_id,), ("3",)), Pack("train", "small", (run.run_id,)),
        Pack("evaluate", "small", (run.run_id,), ("validation",)),
    )  # fmt: skip
    trained = [line for line in said if line.startswith("trained")]
    assert trained == [f"trained {run.run_id} to step 3 of {run.num_steps}", f"trained {run.run_id}"]


def test_packs_are_said_where_runs_share_a_forward(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    estimate = study.plan.estimate.model_copy(update={"seconds": 60.0})
    for size, words in ((1, ""), (4, ", LoRA runs in packs of up to 4")):
        layout = Layout(device="cpu", num_workers=2, threads_per_worker=1, pack_size=size)
        plan = study.plan.model_copy(update={"layout": layout, "estimate": estimate})
        (line,) = [line for line in said_by_run(replace(study, plan=plan)) if "in the search for rates" in line]
        assert line.endswith(f"; on cpu, 2 processes with 1 thread each{words}")
        assert forecast_line(plan).endswith(f" x 1 threads{words} (a forecast)")
