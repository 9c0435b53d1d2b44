"""Every number of a table is traced to the record or the items that it came from."""

from __future__ import annotations

import math
from dataclasses import replace

import polars as pl
import pytest

from rankscope.report.inside import not_available, remarks
from rankscope.report.losses import task_rows
from rankscope.report.tables import (
    arms,
    comparisons,
    differing_settings,
    make_tables,
    pooled,
    rates,
    scores,
    separate_rows,
)


@pytest.fixture(scope="module")
def tables(reported):
    return make_tables(reported.contents)


def chosen_runs(reported, arm, training_set="new"):
    """The completed runs of an arm at its chosen rate, by seed, read from the records directly."""
    rate = reported.contents.chosen_rate("small", training_set, arm)
    runs = [r for r in reported.study.runs(arm) if r.learning_rate == rate and r.training_set.name == training_set]
    return {r.seed: r for r in runs if reported.study.store.read_train(r.run_id).status == "complete"}


def test_arms_repeat_the_verdicts_intervals(reported):
    table = arms(reported.contents)
    seen = 0
    for verdict in reported.study.store.read_decide().verdicts:
        for arm in verdict.arms:
            for measure in ("gain", "gain_nats", "forgetting", "forgetting_nats", "behind_best"):
                interval = getattr(arm, measure)
                rows = table.filter(
                    (pl.col("training_set") == verdict.training_set)
                    & (pl.col("arm") == arm.arm)
                    & (pl.col("measure") == measure)
                ).to_dicts()
                assert len(rows) == (interval is not None)
                for row in rows:
                    seen += 1
                    assert {key: row[key] for key in interval.model_dump()} == interval.model_dump()
                    assert row["source"] == "decide/record.json"
    assert seen >= 2 * 5 * 3


def test_pairs_repeat_the_verdicts_and_agree_with_how_far_arms_are_behind(reported, tables):
    rows = {(row["training_set"], row["arm"], row["rival"], row["measure"]): row for row in tables["pairs"].to_dicts()}
    verdicts = reported.study.store.read_decide().verdicts
    assert len(rows) == sum(len(verdict.pairs) for verdict in verdicts) > 0
    for verdict in verdicts:
        for pair in verdict.pairs:
            row = rows[verdict.training_set, pair.arm, pair.rival, pair.measure]
            assert {key: row[key] for key in pair.difference.model_dump()} == pair.difference.model_dump()
        gains = {(pair.arm, pair.rival): pair.difference.value for pair in verdict.pairs if pair.measure == "gain"}
        means = {arm.arm: arm.gain.value for arm in verdict.arms if arm.gain is not None}
        for (arm, rival), difference in gains.items():
            seeds = {chosen: set(chosen_runs(reported, chosen, verdict.training_set)) for chosen in (arm, rival)}
            if seeds[arm] == seeds[rival]:
                assert difference == pytest.approx(means[arm] - means[rival], abs=1e-9)


def test_each_interval_says_whose_seeds_are_in_it(reported, tables):
    for name in ("arms", "pairs", "comparisons"):
        tuned = tables[name].filter(pl.col("num_items") > 0)
        assert tuned.height and set(tuned["seeds_part"]) == {"seeds pooled over arms"}
    alone = tables["arms"].drop("seeds_part").with_columns(pl.lit(1).alias("num_seeds"))
    assert pooled(alone)["seeds_part"].null_count() == alone.height
    assert reported.html.count("interval (seeds pooled over arms)") > 20


def test_an_interval_that_is_wider_than_possible_is_said_on_the_page(tables):
    whole = tables["comparisons"].filter(pl.col("category").is_null() & (pl.col("unit") == "accuracy"))
    ends = {"base_value": 0.2, "low": -0.3, "high": 0.1}
    for low, is_wide in ((-0.3, True), (-0.2, False)):
        table = whole.with_columns(pl.lit(value).alias(name) for name, value in (ends | {"low": low}).items())
        cells = [row.difference for rows in task_rows(table).values() for row in rows]
        assert cells and all(("wider than is possible" in cell.title) == is_wide for cell in cells)
        assert {cell.small for cell in cells} == {f"\N{MINUS SIGN}{-100 * low:.1f} to 10.0"}


def test_scores_are_the_means_of_the_items_they_name(reported):
    table = scores(reported.contents)
    checked = 0
    for row in table.filter(pl.col("measure") == "accuracy").iter_rows(named=True):
        items = pl.read_parquet(reported.study.store.root / row["source"].replace("record.json", "items.parquet"))
        assert row["value"] == pytest.approx(sum(items["is_correct"]) / items.height, abs=1e-12)
        assert row["num_items"] == items.height
        checked += 1
    assert checked > 30


def test_scores_say_how_many_answers_have_no_end(reported):
    assert scores(reported.contents)["num_unfinished"].is_null().all()
    first = reported.contents.scored[0]
    record = first.record.model_copy(update={"num_unfinished": 7})
    table = scores(replace(reported.contents, scored=(replace(first, record=record),)))
    assert table["num_unfinished"].to_list() == [7] * table.height and table.height > 0


def test_a_difference_is_tuned_less_base_over_seeds(reported):
    table = comparisons(reported.contents).filter((pl.col("training_set") == "new") & pl.col("category").is_null())
    store, checked = reported.study.store, 0
    for arm in ("lora-r4", "lora-r16", "full"):
        for task in ("taught", "legal", "general"):
            base = sum(pl.read_parquet(store.base_task("small", task) / "items.parquet")["is_correct"])
            tuned = [
                pl.read_parquet(store.task(run.run_id, task) / "items.parquet")["is_correct"]
                for run in chosen_runs(reported, arm).values()
            ]
            expected = sum(sum(one) - base for one in tuned) / len(tuned) / len(tuned[0])
            row = table.row(by_predicate=(pl.col("arm") == arm) & (pl.col("task") == task), named=True)
            assert row["value"] == pytest.approx(expected, abs=1e-9)
            assert row["num_seeds"] == len(tuned)
            checked += 1
    assert checked == 9


def test_flipped_items_are_those_whose_answer_changed(reported, tables):
    flipped = tables["flipped_items"].filter((pl.col("training_set") == "new") & (pl.col("task") == "general"))
    store = reported.study.store
    base = pl.read_parquet(store.base_task("small", "general") / "items.parquet")
    was = dict(zip(base["item_id"], base["is_correct"], strict=True))
    for arm in ("lora-r16", "full"):
        counts: dict[tuple[str, str], int] = {}
        for run in chosen_runs(reported, arm).values():
            items = pl.read_parquet(store.task(run.run_id, "general") / "items.parquet")
            for item, is_correct in zip(items["item_id"], items["is_correct"], strict=True):
                if was[item] != is_correct:
                    key = (item, "lost" if was[item] else "gained")
                    counts[key] = counts.get(key, 0) + 1
        mine = flipped.filter(pl.col("arm") == arm)
        found = {(row["item_id"], row["change"]): row["num_flipped"] for row in mine.iter_rows(named=True)}
        assert found == counts
        assert set(mine["num_seeds"]) == {3}
        assert set(mine.filter(pl.col("change") == "lost")["before"]) == {" a"}
        assert set(mine.filter(pl.col("change") == "lost")["after"]) == {" b"}
        assert set(mine["relation"]) == {"retention"}


def test_spectra_are_means_over_matrices_then_seeds(tables):
    # update_norm_relative = layer + 10 * module + seed: 1 + 10 + the mean seed; lora-r4 lost seed 2.
    table = tables["spectra_by_arm"].filter(pl.col("measure") == "update_norm_relative")
    full = table.row(by_predicate=(pl.col("arm") == "full") & (pl.col("training_set") == "new"), named=True)
    assert (full["value"], full["lowest"], full["highest"]) == pytest.approx((12.0, 11.0, 13.0))
    assert (full["num_seeds"], full["num_matrices"]) == (3, 9)
    small = table.row(by_predicate=(pl.col("arm") == "lora-r4") & (pl.col("training_set") == "new"), named=True)
    assert (small["value"], small["num_seeds"]) == (pytest.approx(11.5), 2)
    by_module = tables["spectra_by_module"].filter(
        (pl.col("measure") == "update_norm_relative") & (pl.col("arm") == "full") & (pl.col("training_set") == "new")
    )
    cell = by_module.row(by_predicate=(pl.col("layer") == 2) & (pl.col("module") == "up_proj"), named=True)
    assert cell["value"] == pytest.approx(2 + 20 + 1.0)
    assert by_module.height == 9


def test_attention_is_the_mean_over_heads_with_the_base_beside_it(tables):
    table = tables["attention_by_layer"]
    entropy = table.filter((pl.col("measure") == "attention_entropy") & (pl.col("layer") == 2))
    assert entropy["value"].to_list() == pytest.approx([0.205] * entropy.height)
    assert entropy.filter(pl.col("arm").is_null()).height == 1
    divergence = table.filter((pl.col("measure") == "attention_divergence") & (pl.col("arm") == "full"))
    row = divergence.row(by_predicate=(pl.col("layer") == 2) & (pl.col("training_set") == "other"), named=True)
    assert row["value"] == pytest.approx(0.01 * 2 * 2)  # 0.01 * (seed + 1) * layer, mean over seeds 0, 1, 2
    assert divergence.filter(pl.col("training_set").is_null()).is_empty()


def test_runs_say_what_became_of_them(reported, tables):
    runs = tables["runs"].filter(pl.col("training_set") == "new")
    small = {(r["learning_rate"], r["seed"]): r["state"] for r in runs.filter(pl.col("arm") == "lora-r4").to_dicts()}
    assert small[1e-3, 0] == "diverged"
    assert small[3e-4, 2] == "failed"
    assert small[1e-4, 0] == "complete"
    assert small[1e-4, 1] == small[1e-4, 2] == "not needed"
    assert runs.height == len(reported.study.runs("full")) / 2 + 3 * 9
    assert "RuntimeError: out of memory" in tables["troubles"]["cause"].to_list()
    diverged = "the loss rose above twice that of guessing every token alike at step 3"
    assert diverged in tables["troubles"]["cause"].to_list()


def test_a_rate_that_diverged_has_no_score(reported):
    table = rates(reported.contents).filter((pl.col("training_set") == "new") & (pl.col("arm") == "lora-r4"))
    assert table.filter(pl.col("learning_rate") == 1e-3)["value"].to_list() == [None, None]
    assert set(table.filter("is_chosen")["learning_rate"]) == {3e-4}


def test_only_settings_that_differ_are_listed(reported):
    table = differing_settings(reported.contents)
    assert set(table["setting"]) == {"method", "learning_rate", "r", "lora_alpha", "lora_dropout", "use_rslora",
                                     "target_modules"}  # fmt: skip
    row = table.row(by_predicate=(pl.col("arm") == "lora-r16") & (pl.col("setting") == "lora_alpha"), named=True)
    assert row["value"] == "32"
    assert table.filter((pl.col("arm") == "full") & (pl.col("setting") == "r"))["value"].to_list() == [None]


def test_every_table_names_its_sources_and_they_exist(reported, tables):
    for name, table in tables.items():
        assert "source" in table.columns, name
        for source in set(table["source"]):
            assert (reported.study.store.root / source).is_file(), (name, source)


def test_losses_that_are_not_finite_stay_so(reported, tmp_path):
    from rankscope.report.reading import _ndjson

    path = tmp_path / "steps.jsonl"
    path.write_text('{"step":1,"loss_nats_per_token":2.5}\n{"step":2,"loss_nats_per_token":"NaN"}\n')
    values = _ndjson(path)["loss_nats_per_token"].to_list()
    assert values[0] == 2.5
    assert math.isnan(values[1])


def test_why_options_were_scored_in_separate_rows_is_said_once(reported):
    def noted(one):
        subject = one.record.subject
        own = "its texts are longer" if subject.arm == "full" else None
        return replace(one, record=one.record.model_copy(update={"note": own or "its masks were not tried"}))

    assert separate_rows(reported.contents).is_empty()
    table = separate_rows(replace(reported.contents, scored=tuple(map(noted, reported.contents.scored))))
    assert table.select("base", "training_set", "arm", "reason").rows() == [
        ("small", None, None, "its masks were not tried"),
        ("small", "new", "full", "its texts are longer"),
        ("small", "other", "full", "its texts are longer"),
    ]
    for row in table.iter_rows(named=True):
        assert reported.study.store.root.joinpath(row["source"]).is_file()


def test_remarks_on_an_analysis_are_listed_and_what_it_cannot_say_is_not_among_them(reported):
    def noted(one):
        notes = ("not available: of no use", "it doubles the rank") if one.record.analysis == "spectra" else ()
        return replace(one, record=one.record.model_copy(update={"notes": notes}))

    assert remarks(reported.contents).is_empty()
    contents = replace(reported.contents, analysed=tuple(map(noted, reported.contents.analysed)))
    table = remarks(contents)
    assert set(table["remark"]) == {"it doubles the rank"} and set(table["analysis"]) == {"spectra"}
    assert table.height == table.select("training_set", "arm").n_unique() == 2 * 4
    assert set(not_available(contents)["reason"]) == {"of no use"}
