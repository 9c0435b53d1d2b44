"""The decide stage on study directories with chosen truth: what it reads, what it writes, what it warns of."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from rankscope.data.contamination import Overlap
from rankscope.decide import stage
from rankscope.decide.rates import update_rates
from rankscope.errors import DamagedFile
from rankscope.records import ArmResult, DecideRecord, TaskComparison, Verdict
from rankscope.store import check_files, write_record
from synthetic import ARMS, TASKS, Arm, Synthetic, Task, write_study

ROOMY = {"forgetting_budget": 0.06, "margin": 0.08}


def decide(study: Synthetic) -> DecideRecord:
    update_rates(study.store, study.plan)
    return stage.run(study.store, study.study, study.plan)


def by_arm(verdict: Verdict) -> dict[str, ArmResult]:
    return {result.arm: result for result in verdict.arms}


def compared(record: DecideRecord, arm: str, task: str, category: str | None = None) -> TaskComparison:
    found = [row for row in record.comparisons if (row.arm, row.task, row.category) == (arm, task, category)]
    assert len(found) == 1
    return found[0]


def rewrite(folder: Path, frame: pl.DataFrame) -> None:
    """Put other items in place, as if they had been scored so."""
    from rankscope.records import EvaluateRecord
    from rankscope.store import read_model, write_parquet, write_record

    write_parquet(folder / "items.parquet", frame)
    write_record(folder, read_model(folder / "record.json", EvaluateRecord), ["items.parquet"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_study(tmp_path_factory.mktemp("study"), decide=ROOMY)


@pytest.fixture(scope="module")
def record(study: Synthetic) -> DecideRecord:
    return decide(study)


def test_the_truth_of_the_study_is_found(record: DecideRecord) -> None:
    (verdict,) = record.verdicts
    assert (verdict.decision, verdict.arm, verdict.learning_rate) == ("recommended", "lora-r16", 3e-4)
    eligible = {arm: result.eligible for arm, result in by_arm(verdict).items()}
    assert eligible == {"base": "yes", "lora-r4": "yes", "lora-r16": "yes", "lora-r64": "no", "full": "no"}
    assert verdict.gain.low < 0.45 < verdict.gain.high
    assert (verdict.gain.num_seeds, verdict.gain.num_items) == (3, 300)
    assert by_arm(verdict)["full"].num_trainable == 900_000


def test_the_record_is_as_others_read_it(study: Synthetic, record: DecideRecord) -> None:
    assert study.store.read_decide() == record
    check_files(study.store.decide, record)
    verdict = json.loads((study.store.decide / "record.json").read_text())["verdicts"][0]
    for key in ("base", "training_set", "decision", "arm", "learning_rate", "gain", "forgetting", "rule", "runner_up"):
        assert key in verdict
    assert verdict["needed"] is None
    assert set(verdict["gain"]) == {"value", "low", "high", "confidence", "num_items", "num_seeds"}


def test_comparisons_are_the_plain_means_over_seeds_and_items(study: Synthetic, record: DecideRecord) -> None:
    base = pl.read_parquet(study.store.base_task("small", "general") / "items.parquet")
    runs = [run for run in study.runs("lora-r64") if run.learning_rate == 3e-4]
    tuned = [pl.read_parquet(study.store.task(run.run_id, "general") / "items.parquet") for run in runs]
    row = compared(record, "lora-r64", "general")
    assert row.base_value == pytest.approx(base["is_correct"].mean())
    assert row.tuned_value == pytest.approx(np.mean([frame["is_correct"].mean() for frame in tuned]))
    assert row.difference.value == pytest.approx(row.tuned_value - row.base_value)
    before, after = base["is_correct"].to_numpy(), tuned[0]["is_correct"].to_numpy()
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    assert (row.num_lost, row.num_gained) == (lost, gained)
    assert row.p_value == pytest.approx(stats.binomtest(lost, lost + gained).pvalue)
    assert row.p_holm >= row.p_value


def test_losses_are_weighed_by_tokens(study: Synthetic, record: DecideRecord) -> None:
    row = compared(record, "full", "text")
    base = pl.read_parquet(study.store.base_task("small", "text") / "items.parquet")
    assert row.unit == "nats"
    assert row.base_value == pytest.approx(base["nll_nats"].sum() / base["num_scored_tokens"].sum())
    assert row.difference.value == pytest.approx(row.base_value - row.tuned_value)
    assert row.difference.low < -0.3 < row.difference.high
    assert row.p_value is None
    result = by_arm(record.verdicts[0])["full"]
    assert result.forgetting_nats.value == pytest.approx(-row.difference.value)
    assert result.forgetting_nats.low == pytest.approx(-row.difference.high)


def test_categories_are_compared_where_there_are_several(record: DecideRecord) -> None:
    names = [row.category for row in record.comparisons if row.arm == "full" and row.task == "general"]
    assert names == [None, "people", "towns", "work"]
    parts = [compared(record, "full", "general", name) for name in ("people", "towns", "work")]
    assert [part.difference.num_items for part in parts] == [100, 100, 100]
    whole = compared(record, "full", "general")
    assert np.mean([part.difference.value for part in parts]) == pytest.approx(whole.difference.value)


def test_small_single_and_too_many_categories_are_left_out(tmp_path: Path) -> None:
    tasks = [
        replace(TASKS[0], categories=("one",)),
        Task("wide", "out_of_domain", num_items=350, categories=tuple(f"c{i}" for i in range(61))),
        Task("thin", "retention", num_items=20, categories=tuple(f"c{i}" for i in range(10))),
    ]
    record = decide(write_study(tmp_path, tasks=tasks, arms=ARMS[:1]))
    assert {row.category for row in record.comparisons} == {None}


def test_thin_categories_are_compared_by_the_groups_of_their_preset(tmp_path: Path) -> None:
    """Of 57 subjects a few items each say nothing; MMLU's authors put them into four groups."""
    groups = {"stem": ("astronomy", "college_physics"), "other": ("marketing", "virology")}
    subjects = [*groups["stem"], *groups["other"]]
    for number, expected in ((4, {"stem", "other"}), (20, set(subjects))):
        task = Task("mmlu", "retention", num_items=len(subjects) * number, categories=tuple(subjects))
        written = write_study(tmp_path / str(number), tasks=[TASKS[0], task], arms=ARMS[:1])
        named = written.study.evaluate["mmlu"].model_copy(update={"preset": "mmlu"})
        study = written.study.model_copy(update={"evaluate": {**written.study.evaluate, "mmlu": named}})
        record = decide(replace(written, study=study))
        rows = [row for row in record.comparisons if row.task == "mmlu" and row.category is not None]
        assert {row.category for row in rows} == expected
        assert {row.difference.num_items for row in rows} == {2 * number if number == 4 else number}


def test_items_of_one_cluster_count_once(tmp_path: Path) -> None:
    """Every item is given a twin that answers alike: nothing is known better than before."""
    plain, twins = write_study(tmp_path / "plain", decide=ROOMY), write_study(tmp_path / "twins", decide=ROOMY)
    base = twins.store.base_task("small", "taught")
    items = pl.read_parquet(base / "items.parquet")
    both = [items["item_id"], items["item_id"] + "-twin"]
    cells = {name: [None] * 2 * len(items) for name in ("category", "prompt", "target")}
    prompts = pl.DataFrame({"item_id": pl.concat(both), **cells, "cluster": pl.concat([both[0], both[0]])})
    prompts.write_parquet(base / "prompts.parquet")
    for path in [base, *(twins.store.task(run.run_id, "taught") for run in twins.plan.runs)]:
        if (path / "items.parquet").is_file():
            frame = pl.read_parquet(path / "items.parquet")
            rewrite(path, pl.concat([frame, frame.with_columns(pl.col("item_id") + "-twin")]))
    one, two = (compared(decide(study), "lora-r16", "taught") for study in (plain, twins))
    assert two.difference == one.difference
    assert (two.num_lost, two.num_gained) == (2 * one.num_lost, 2 * one.num_gained)
    assert two.p_value == one.p_value


def test_the_tidy_table_has_the_same_rows_with_each_seed(study: Synthetic, record: DecideRecord) -> None:
    frame = pl.read_parquet(study.store.decide / "comparisons.parquet")
    assert frame.height == len(record.comparisons)
    row = frame.row(0, named=True)
    assert row["seeds"] == [0, 1, 2]
    assert np.mean(row["seed_differences"]) == pytest.approx(row["difference"])
    assert row["difference"] == pytest.approx(record.comparisons[0].difference.value)
    assert row["low"] == pytest.approx(record.comparisons[0].difference.low)
    assert row["seed_sd"] >= 0


def test_an_edge_of_the_grid_is_warned_of(record: DecideRecord) -> None:
    (text,) = [text for text in record.verdicts[0].warnings if "the lowest of those tried" in text]
    assert text.endswith(": full (1e-05)")


def test_relations_make_the_families_of_holm(record: DecideRecord) -> None:
    # One task out of domain, four arms: a family of four.
    rows = sorted((compared(record, arm.label, "legal") for arm in ARMS), key=lambda row: row.p_value)
    assert rows[0].p_holm == pytest.approx(min(1.0, 4 * rows[0].p_value))


def test_the_order_of_items_and_arms_changes_nothing(tmp_path: Path, record: DecideRecord) -> None:
    study = write_study(tmp_path, decide=ROOMY)
    generator = np.random.default_rng(0)
    folders = [path.parent for path in tmp_path.glob("*/*/evaluate/*/items.parquet")]
    assert len(folders) > 20
    for folder in folders:
        frame = pl.read_parquet(folder / "items.parquet")
        rewrite(folder, frame[generator.permutation(frame.height)])
    plan = study.plan.model_copy(update={"arms": study.plan.arms[::-1], "runs": study.plan.runs[::-1]})
    shuffled = decide(Synthetic(study.store, study.study, plan)).verdicts[0]
    expected = record.verdicts[0]
    same = {"decision", "arm", "runner_up", "rule"}
    assert shuffled.model_dump(include=same) == expected.model_dump(include=same)
    for arm, result in by_arm(expected).items():
        assert by_arm(shuffled)[arm].eligible == result.eligible
        assert by_arm(shuffled)[arm].gain.low == pytest.approx(result.gain.low, abs=1e-12)


def test_an_arm_that_is_clearly_bad_changes_nothing(tmp_path: Path, record: DecideRecord) -> None:
    bad = Arm("lora", 256, num_trainable=1, shift={"taught": -0.25, "general": -0.7, "text": -2.0}, seed_sd=0.05)
    after = decide(write_study(tmp_path, arms=[*ARMS, bad], decide=ROOMY)).verdicts[0]
    before = record.verdicts[0]
    assert (after.decision, after.arm) == (before.decision, before.arm)
    for arm in ("lora-r4", "lora-r16"):
        one, two = by_arm(before)[arm], by_arm(after)[arm]
        assert two.eligible == one.eligible
        assert (two.gain.high - two.gain.low) < 1.5 * (one.gain.high - one.gain.low)


def test_failed_seeds_are_left_out_and_named(tmp_path: Path) -> None:
    arms = [ARMS[0], replace(ARMS[1], failed_seeds=(2,))]
    verdict = decide(write_study(tmp_path, arms=arms, decide=ROOMY)).verdicts[0]
    text = "lora-r16 seed 2: failed at the chosen rate; its numbers are those of its other seeds"
    assert text in verdict.warnings
    assert by_arm(verdict)["lora-r16"].gain.num_seeds == 2
    assert by_arm(verdict)["lora-r4"].gain.num_seeds == 3
    assert by_arm(verdict)["lora-r4"].behind_best.num_seeds == 2, "paired by the seeds that both have"


def test_an_arm_whose_every_rate_diverged_is_not_judged(tmp_path: Path) -> None:
    gone = Arm("lora", 64, rates=(1e-2,), best=0, num_trainable=64_000, diverged=(1e-2,))
    verdict = decide(write_study(tmp_path, arms=[*ARMS[:2], gone], decide=ROOMY)).verdicts[0]
    assert verdict.arm == "lora-r16"
    result = by_arm(verdict)["lora-r64"]
    assert (result.gain, result.learning_rate, result.num_trainable) == (None, None, 64_000)
    assert result.reason == "no rate can be chosen: 0.01 diverged"


def test_scores_that_are_missing_not_finite_or_of_other_items_are_left_out_and_named(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:2], decide=ROOMY)
    first, second, third = [run for run in study.runs("lora-r4") if run.learning_rate == 3e-4]
    (study.store.task(first.run_id, "legal") / "record.json").unlink()
    folder = study.store.task(second.run_id, "text")
    rewrite(folder, pl.read_parquet(folder / "items.parquet").with_columns(nll_nats=pl.lit(float("inf"))))
    folder = study.store.task(third.run_id, "general")
    rewrite(folder, pl.read_parquet(folder / "items.parquet")[:-1])
    record = decide(study)
    warnings = record.verdicts[0].warnings
    for seed, task in ((0, "legal"), (1, "text"), (2, "general")):
        assert f"lora-r4 seed {seed}: no usable scores of {task}; left out there" in warnings
        assert compared(record, "lora-r4", task).difference.num_seeds == 2
    assert by_arm(record.verdicts[0])["lora-r4"].forgetting.num_seeds == 2


def test_a_task_that_the_base_was_not_scored_on_is_left_out(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:2])
    (study.store.base_task("small", "text") / "record.json").unlink()
    verdict = decide(study).verdicts[0]
    assert "text: the base has no usable scores, so the task is left out" in verdict.warnings
    assert by_arm(verdict)["lora-r4"].forgetting_nats is None
    # The study asks for this budget, so what could not be measured is unknown; it is not waived.
    assert "nats per token (mean over text)" in verdict.rule
    assert by_arm(verdict)["lora-r4"].eligible == "unknown"


def test_without_a_usable_task_in_domain_no_arm_is_judged(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:2])
    folder = study.store.base_task("small", "taught")
    rewrite(folder, pl.read_parquet(folder / "items.parquet").with_columns(is_correct=pl.lit(None, dtype=pl.Boolean)))
    verdict = decide(study).verdicts[0]
    assert "taught: the base has no usable scores, so the task is left out" in verdict.warnings
    assert by_arm(verdict)["lora-r16"].reason == "no seed has been scored on all tasks in domain"
    assert "mean over no task" in verdict.rule


def test_changed_scores_are_noticed(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:1])
    path = study.store.base_task("small", "text") / "items.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DamagedFile, match="checksum"):
        decide(study)


def test_an_untrained_adapter_forgets_exactly_nothing(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:1])
    for run, task in itertools.product(study.runs("lora-r4"), TASKS):
        folder = study.store.task(run.run_id, task.name)
        if folder.exists():
            rewrite(folder, pl.read_parquet(study.store.base_task("small", task.name) / "items.parquet"))
    record = decide(study)
    result = by_arm(record.verdicts[0])["lora-r4"]
    assert (result.gain.value, result.forgetting.value, result.forgetting_nats.value) == (0.0, 0.0, 0.0)
    assert result.forgetting.high == pytest.approx(3 / 300, rel=0.01)
    assert (result.forgetting_nats.low, result.forgetting_nats.high) == (0.0, 0.0)
    assert record.verdicts[0].arm == "base"


def test_arms_of_a_single_rate_are_warned_of(tmp_path: Path, record: DecideRecord) -> None:
    arms = [replace(ARMS[0], rates=(3e-4,), best=0), replace(ARMS[1], rates=(1e-3,), best=0, diverged=(1e-3,)), ARMS[3]]
    (verdict,) = decide(write_study(tmp_path, arms=arms)).verdicts
    (text,) = [text for text in verdict.warnings if "only one learning rate" in text]
    assert text.endswith("of lora-r4 (0.0003): each might do better at another, and the order of the arms might change")
    assert not any("only one learning rate" in text for text in record.verdicts[0].warnings)


def test_more_rows_are_asked_for_only_where_there_may_be_more(tmp_path: Path) -> None:
    arms = [replace(ARMS[0], shift={"taught": 0.1, "general": -0.04}, seed_sd=0.0)]
    written = write_study(tmp_path, arms=arms, seeds=(0,), decide={"forgetting_budget": 0.085})
    (verdict,) = decide(written).verdicts
    assert "a larger source for general" in verdict.needed
    for limit, advised in ((300, "a larger `max_examples` for general"), (301, "a larger source for general")):
        general = written.study.evaluate["general"].model_copy(update={"max_examples": limit})
        study = written.study.model_copy(update={"evaluate": {**written.study.evaluate, "general": general}})
        (verdict,) = decide(replace(written, study=study)).verdicts
        assert advised in verdict.needed


def test_one_seed_is_warned_of(tmp_path: Path) -> None:
    verdict = decide(write_study(tmp_path, seeds=(7,), decide=ROOMY)).verdicts[0]
    assert any(text.startswith("num_seeds=1") for text in verdict.warnings)
    assert by_arm(verdict)["lora-r16"].gain.num_seeds == 1


def test_where_all_in_domain_is_text_the_loss_decides(tmp_path: Path) -> None:
    tasks = [Task("ours", "in_domain", scoring="loss", num_items=100), replace(TASKS[2])]
    arms = [
        Arm("lora", 4, num_trainable=4, shift={"ours": 0.1}, seed_sd=0.001),
        Arm("lora", 16, num_trainable=16, shift={"ours": 0.3}, seed_sd=0.001),
    ]
    verdict = decide(write_study(tmp_path, tasks=tasks, arms=arms, decide={"forgetting_budget": 0.06})).verdicts[0]
    assert verdict.arm == "lora-r16"
    assert verdict.gain is None
    assert verdict.gain_nats.value == pytest.approx(0.3, abs=0.02)


def test_there_is_one_verdict_per_base_and_training_set(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:2], bases=("one", "two"), training_sets=("new", "old"))
    found = [(verdict.base, verdict.training_set) for verdict in decide(study).verdicts]
    assert found == [("one", "new"), ("one", "old"), ("two", "new"), ("two", "old")]


def test_before_any_rate_is_chosen_the_stage_says_so(tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=ARMS[:1])
    verdict = stage.run(study.store, study.study, study.plan).verdicts[0]
    assert verdict.warnings == ("lora-r4: its learning rate is not chosen yet; not judged",)
    assert verdict.decision == "undecided"


def test_retention_that_could_not_be_scored_is_unknown_not_absent(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    update_rates(made.store, made.plan)
    for name in ("general", "text"):
        (made.store.base_task("small", name) / "items.parquet").unlink()
        (made.store.base_task("small", name) / "record.json").unlink()
    (verdict,) = stage.run(made.store, made.study, made.plan).verdicts
    assert verdict.decision == "undecided"
    assert {arm.eligible for arm in verdict.arms if arm.arm != "base"} == {"unknown"}
    assert not any("no retention task" in text for text in verdict.warnings)
    assert any(text.startswith("general: the base has no usable scores") for text in verdict.warnings)
    assert "does not apply" not in verdict.rule


def set_unfinished(study: Synthetic, task: str, base: int | None, tuned: int, arm: str = "lora-r16") -> None:
    """Put the number of unfinished answers into the records of the base and of every run of an arm."""
    counts = {study.store.base_task("small", task): base}
    counts |= {study.store.task(run.run_id, task): tuned for run in study.runs(arm)}
    for folder, count in counts.items():
        if (record := study.store.read_evaluate(folder)) is not None:
            write_record(folder, record.model_copy(update={"num_unfinished": count}), ["items.parquet"])


def test_an_arm_that_does_not_stop_writing_is_warned_of(tmp_path: Path) -> None:
    study = write_study(tmp_path, decide=ROOMY)
    update_rates(study.store, study.plan)
    # Of 300 items: a tenth more than the base is not warned of, nor what the base does as well, nor what is not known.
    for base, tuned, is_warned in ((0, 30, False), (0, 31, True), (290, 300, False), (None, 300, False)):
        set_unfinished(study, "taught", base, tuned)
        (verdict,) = stage.run(study.store, study.study, study.plan).verdicts
        assert verdict.arm == "lora-r16"
        found = [text for text in verdict.warnings if "have no end" in text]
        assert len(found) == is_warned
        if found:
            assert found[0].startswith("taught: 93 of 900 answers of lora-r16 have no end, of the base's 0 of 300:")
            assert "raise evaluate.taught.max_new_tokens" in found[0]


def test_so_is_one_that_is_safe_while_it_is_undecided(tmp_path: Path) -> None:
    alike = (ARMS[1], replace(ARMS[1], rank=64, num_trainable=64_000))
    study = write_study(tmp_path, arms=alike, decide={"forgetting_budget": 0.06, "margin": 0.001})
    update_rates(study.store, study.plan)
    set_unfinished(study, "taught", 0, 300, "lora-r64")
    (verdict,) = stage.run(study.store, study.study, study.plan).verdicts
    assert (verdict.arm, verdict.safe_arm) == (None, "lora-r64")
    assert any("900 of 900 answers of lora-r64 have no end" in text for text in verdict.warnings)


def test_test_items_in_the_training_data_are_in_the_verdict(tmp_path: Path) -> None:
    study = write_study(tmp_path, decide=ROOMY)
    assert not any("in train." in warning for warning in decide(study).verdicts[0].warnings)
    (base,), (name,) = study.plan.bases, study.plan.relations
    found = {"part": "train", "task": "t", "num_items": 9, "num_exact": 2, "num_ngram": 0}
    overlaps = [Overlap(base=base, training_set=each, **found) for each in (name, "another")]
    plan = study.plan.model_copy(update={"overlaps": tuple(overlaps)})
    warnings = stage.run(study.store, study.study, plan).verdicts[0].warnings
    assert f"evaluate.t: 2 of 9 items are in train.{name} too" in warnings
    assert not any("another" in warning for warning in warnings)
