"""The neurons that changed most, with their texts, in the table and on the page."""

from __future__ import annotations

import re
from dataclasses import replace

import polars as pl
import pytest

from rankscope.report.changed_neurons import changed_neurons, neuron_rows
from rankscope.report.tables import make_tables
from report_study import EVIL


@pytest.fixture(scope="module")
def table(reported):
    return changed_neurons(reported.contents)


def test_each_arm_shows_the_first_seed_that_has_them(reported, table):
    assert make_tables(reported.contents)["changed_neurons"].equals(table)
    runs = {run.run_id: run for run in reported.contents.plan.runs}
    shown = table.select("training_set", "arm", "run_id").unique()
    assert shown.height == 8, "four arms on two training sets"
    for training_set, arm, run_id in shown.iter_rows():
        run = runs[run_id]
        assert (run.training_set.name, run.arm.label, run.seed) == (training_set, arm, 0)
        assert run.learning_rate == reported.contents.chosen_rate("small", training_set, arm)


def test_texts_are_those_of_the_probes_items(reported, table):
    prompts = pl.read_parquet(reported.study.store.base_task("small", "general") / "prompts.parquet")
    [(prompt, target)] = prompts.filter(pl.col("item_id") == "general-00001").select("prompt", "target").iter_rows()
    expected = prompt + target  # the model was shown both
    assert set(table.filter(pl.col("model") == "tuned")["text"]) == {expected}
    assert set(table.filter(pl.col("model") == "base")["text"]) == {"Question text-00000? Answer: a"}, "one of losses"
    assert set(table.filter(pl.col("model") == "base")["item_id"]) == {"text-00000"}


def test_a_row_has_the_text_that_excites_most_before_and_after(table):
    rows = neuron_rows(table.filter(pl.col("training_set") == "new"))
    assert len(rows) == 8
    assert {(row.place, row.shift) for row in rows} == {("2, 0", "\N{MINUS SIGN}2.50"), ("2, 1", "+2.50")}
    assert {row.before for row in rows} == {"Question text-00000? Answer: a (+0.50)"}
    assert {row.after for row in rows} == {f"{EVIL}{EVIL} (\N{MINUS SIGN}7.25)"}


def test_the_page_lists_them_and_their_texts_stay_texts(reported):
    part = re.search(r'<table class="neurons">.*?</table>', reported.html, re.DOTALL)[0]
    assert part.count("<tr data-arm=") == 8
    assert "Question text-00000? Answer: a (+0.50)" in part
    assert "&lt;script&gt;window.pwned" in part and "<script" not in part


def test_a_study_without_the_analysis_has_none(reported):
    assert changed_neurons(replace(reported.contents, most_changed=pl.DataFrame())).is_empty()
