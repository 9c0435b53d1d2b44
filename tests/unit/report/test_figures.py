"""Figures: valid specifications, one look an arm, words beside each plot, and the numbers of the tables."""

from __future__ import annotations

import itertools
import json

import altair as alt
import polars as pl
import pytest

from rankscope.measures import MEASURES
from rankscope.report.figures import make_figures
from rankscope.report.marks import data
from rankscope.report.palette import looks
from rankscope.report.tables import make_tables


@pytest.fixture(scope="module")
def figures(reported):
    return make_figures(make_tables(reported.contents), reported.contents)


def rows_of(panel):
    """The largest table inside a panel's specification: what the page offers as a download."""
    return max(panel.spec["datasets"].values(), key=len)


def test_all_figures_are_there_in_the_reports_order(figures):
    assert list(figures) == [
        "learned_forgotten", "rank_curves", "learning_rates", "train_test", "one_task", "task_differences",
        "module_map", "spectra", "attention", "explanations", "cost", "losses",
    ]  # fmt: skip


def test_specifications_are_valid_vega_lite(figures):
    count = 0
    for figure in figures.values():
        for panel in figure.panels:
            alt.Chart.from_dict(dict(panel.spec), validate=True)
            json.dumps(panel.spec, allow_nan=False)
            count += 1
    assert count == 28


def test_no_plot_without_its_words(figures):
    for figure in figures.values():
        for text in (figure.title, figure.shows, figure.reading, figure.caution):
            assert len(text) > 5
        assert set(figure.measures) <= set(MEASURES)
        assert figure.sources
        assert all(panel.label.endswith(".") for panel in figure.panels)


def test_the_scatter_draws_the_verdicts_numbers(reported, figures):
    rows = {(row["group"], row["arm"]): row for row in rows_of(figures["learned_forgotten"].panels[0])}
    for verdict in reported.study.store.read_decide().verdicts:
        for arm in verdict.arms:
            row = rows[verdict.training_set, arm.arm]
            assert row["y"] == pytest.approx(100 * arm.gain.value, abs=1e-4)
            assert row["x"] == pytest.approx(100 * arm.forgetting.value, abs=1e-4)
            assert (row["x_low"], row["x_high"]) == pytest.approx(
                (100 * arm.forgetting.low, 100 * arm.forgetting.high), abs=1e-4
            )
    assert len(rows) == 10
    assert rows["new", "base"]["x"] == rows["new", "base"]["y"] == 0


def test_the_budget_of_the_study_file_is_drawn(figures):
    text = json.dumps(figures["learned_forgotten"].panels[0].spec)
    assert "accepted forgetting: 2 points" in text
    assert "accepted forgetting: 0.05 nats" in json.dumps(figures["learned_forgotten"].panels[1].spec)


def test_warnings_of_rates_name_the_arm_and_its_group(figures):
    notes = figures["learning_rates"].notes
    assert any(note.startswith("full: the best rate, 1e-5, is the lowest") for note in notes["new"])
    assert any(note.startswith("lora-r4: rate 0.001 gave no score") for note in notes["other"])


def test_numbers_that_are_not_finite_are_left_out_not_zero():
    values = data(pl.DataFrame({"x": [1.23456789, float("nan"), float("inf")]})).to_dict()["values"]
    assert values == [{"x": 1.23457}, {"x": None}, {"x": None}]


def test_each_arm_has_one_look_that_can_be_told_apart(reported):
    found = looks(reported.contents.plan)
    assert set(found) == {"lora-r4", "lora-r16", "lora-r64", "full", "base"}
    assert found["full"].shape == "diamond"
    assert len({look.colour for look in found.values()}) == len(found)
    ranks = [luminance(found[f"lora-r{rank}"].colour) for rank in (4, 16, 64)]
    assert ranks == sorted(ranks, reverse=True)
    for look, paper in itertools.product(found.values(), ("#fcfcfb", "#14161a")):
        assert contrast(look.colour, paper) >= 3


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
