"""Figures: valid specifications, one look an arm, words beside each plot, and the numbers of the tables."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from dataclasses import replace
from types import SimpleNamespace

import altair as alt
import numpy as np
import polars as pl
import pytest

from rankscope.measures import MEASURES
from rankscope.report.figures import make_figures, make_glances
from rankscope.report.labels import Place, _box, _distance, _shared, places
from rankscope.report.marks import Style, data
from rankscope.report.palette import looks
from rankscope.report.rank_figures import rate_figure
from rankscope.report.scatter_figure import frontier
from rankscope.report.static import render_svgs
from rankscope.report.tables import make_tables
from rankscope.runs import ArmSettings
from report_study import with_losses_of


@pytest.fixture(scope="module")
def figures(reported):
    return make_figures(make_tables(reported.contents), reported.contents)


def rows_of(panel):
    """The largest table inside a panel's specification: what the page offers as a download."""
    return max(panel.spec["datasets"].values(), key=len)


def test_all_figures_are_there_in_the_reports_order(figures):
    assert list(figures) == [
        "learned_forgotten", "rank_curves", "learning_rates", "train_test", "one_task", "task_differences",
        "module_map", "spectra", "attention", "representations", "neurons", "explanations", "cost", "losses",
    ]  # fmt: skip


def test_specifications_are_valid_vega_lite(figures):
    count = 0
    for figure in figures.values():
        for panel in figure.panels:
            alt.Chart.from_dict(dict(panel.spec), validate=True)
            json.dumps(panel.spec, allow_nan=False)
            count += 1
    assert count == 33


def test_no_plot_without_its_words(figures):
    for figure in figures.values():
        for text in (figure.title, figure.shows, figure.reading, figure.caution):
            assert len(text) > 5
        assert set(figure.measures) <= set(MEASURES)
        assert figure.sources
        assert all(panel.label.endswith(".") for panel in figure.panels)


def test_every_plot_says_of_each_number_what_it_rests_on(figures):
    """By hover, and in the table of its numbers, which a keyboard reaches."""
    for figure in figures.values():
        for panel in figure.panels:
            found = re.findall(r'"tooltip": (\[[^]]*\])', json.dumps(panel.spec))
            hints = {hint["field"] for hints in found for hint in json.loads(hints)}
            # Losses are of one run each, whose folder is its name.
            rests = hints & {"evidence", "source", "run_id"}
            assert rests, (figure.key, panel.title)
            for row in rows_of(panel):
                assert any(re.search(r"\.json|\.parquet|-lr", str(row[name])) for name in rests), (figure.key, row)
                assert "evidence" in rests or "run_id" in rests or row.keys() & {"num_seeds", "num_runs"}, figure.key


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


def test_a_training_set_without_right_answers_has_plots_of_its_losses(reported):
    """Beside one with right answers it had empty frames, and its verdict no picture."""
    tables = with_losses_of(make_tables(reported.contents), "other")
    figure = make_figures(tables, reported.contents)["learned_forgotten"]
    assert [(panel.title.split(" against")[0], panel.groups) for panel in figure.panels] == [
        ("Learned (accuracy)", ("new",)), ("Learned (accuracy)", ("new",)),
        ("Learned (loss)", ("other",)), ("Learned (loss)", ("other",)),
    ]  # fmt: skip
    assert {"gain", "gain_nats", "forgetting", "forgetting_nats"} == set(figure.measures)
    glances = make_glances(tables, reported.contents)
    assert {group: "loss removed" in panel.label for group, panel in glances.items()} == {"new": False, "other": True}
    svgs = dict(render_svgs({figure.key: figure}, ["new", "other", "none"]))
    assert list(svgs) == ["learned_forgotten--new", "learned_forgotten--other"], "no figure of nothing"
    assert "Learned (loss)" in svgs["learned_forgotten--other"]
    assert "Learned (accuracy)" not in svgs["learned_forgotten--other"]


def test_the_budget_of_the_study_file_is_drawn(figures):
    text = json.dumps(figures["learned_forgotten"].panels[0].spec)
    assert "accepted forgetting: 2 points" in text
    assert "accepted forgetting: 0.05 nats" in json.dumps(figures["learned_forgotten"].panels[1].spec)


def test_beside_the_rates_it_is_said_that_forgetting_had_no_say(figures):
    assert figures["learning_rates"].caution.startswith("What was forgotten had no say in the choice")


def test_warnings_of_rates_name_the_arm_and_its_group(figures):
    notes = figures["learning_rates"].notes
    assert any(note.startswith("The best rate is the lowest") and "full (1e-5)" in note for note in notes["new"])
    assert any(note.startswith("lora-r4: rate 0.001 gave no score") for note in notes["other"])


def test_losses_of_one_training_set_do_not_press_those_of_another_together(reported):
    """One had losses seven times another's: on the axis that held both, its arms lay on one line."""
    rates = make_tables(reported.contents)["rates"].with_columns(pl.col("training_set").alias("group"))
    losses = rates.filter(pl.col("measure") == "loss_nats_per_token")
    apart = losses.with_columns(pl.when(pl.col("group") == "new").then(pl.col("value") * 50).otherwise(pl.col("value")))
    wild = losses.with_columns(pl.when(pl.col("learning_rate") == pl.col("learning_rate").max())
                               .then(pl.col("value") * 50).otherwise(pl.col("value")))  # fmt: skip
    for table, is_log in ((losses, False), (apart, False), (wild, True)):
        [panel] = rate_figure(table, Style(looks(reported.contents.plan))).panels
        scales = [layer["encoding"]["y"]["scale"] for layer in panel.spec["layer"]]
        assert all((scale.get("type") == "log") == is_log and "domain" not in scale for scale in scales)


def test_where_halving_scored_the_last_rate_alone_only_losses_are_drawn(reported):
    rates = make_tables(reported.contents)["rates"].with_columns(pl.lit("new").alias("group"))
    style = Style(looks(reported.contents.plan))
    both = rate_figure(rates, style)
    assert [panel.title for panel in both.panels] == ["Validation accuracy", "Validation loss"]
    is_scored = pl.col("is_chosen") | (pl.col("measure") == "loss_nats_per_token")
    halved = rates.filter(is_scored).with_columns(
        pl.when(pl.col("is_chosen")).then(None).otherwise(pl.lit(2)).alias("after_step")
    )
    found = rate_figure(halved, style)
    assert [panel.title for panel in found.panels] == ["Validation loss"]
    assert "halving left behind" in found.shows and "halving" not in both.shows


def test_the_stepped_line_joins_the_arms_that_learned_most_for_what_they_forgot():
    points = pl.DataFrame({"arm": list("abcde"), "x": [0.0, 1.0, 1.0, 2.0, 3.0], "y": [0.0, 2.0, 3.0, 1.0, 4.0]})
    assert frontier(points)["arm"].to_list() == ["a", "c", "e"]


def test_the_noise_round_the_base_is_the_middle_interval(reported, figures):
    sets = figures["learned_forgotten"].panels[0].spec["datasets"].values()
    [boxes] = [rows for rows in sets if rows and "left" in rows[0]]
    for verdict in reported.study.store.read_decide().verdicts:
        [box] = [row for row in boxes if row["group"] == verdict.training_set]
        tuned = [arm for arm in verdict.arms if arm.arm != "base"]
        half = statistics.median((arm.gain.high - arm.gain.low) / 2 for arm in tuned)
        assert box["high"] == -box["low"] == pytest.approx(100 * half, abs=1e-4)
        half = statistics.median((arm.forgetting.high - arm.forgetting.low) / 2 for arm in tuned)
        assert box["right"] == -box["left"] == pytest.approx(100 * half, abs=1e-4)


def test_each_verdict_has_its_own_small_picture(reported):
    found = make_glances(make_tables(reported.contents), reported.contents)
    assert list(found) == ["new", "other"]
    for group, panel in found.items():
        alt.Chart.from_dict(dict(panel.spec), validate=True)
        assert {row["group"] for row in rows_of(panel)} == {group} == {panel.group}


def test_names_of_points_neither_cover_each_other_nor_the_points():
    points = [(100.0, 100.0, "lora-r16"), (108.0, 104.0, "lora-r64"), (100.0, 118.0, "full")]
    found = places(points)
    boxes = [_box(x, y, name, (p.dx, p.dy, p.align)) for (x, y, name), p in zip(points, found, strict=True)]
    spots = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    for one, other in itertools.combinations([*boxes, *spots], 2):
        assert (one in spots and other in spots) or _shared(one, other) == 0
    assert places(points[:1]) == [Place(10, -10, "left")]


def test_a_name_does_not_stand_nearer_to_another_point():
    """Left above its own point it stood beside its neighbour's, and each arm read as the other."""
    points = [(100.0, 100.0, "lora-r32"), (110.0, 106.0, "lora-r64"), (90.0, 124.0, "lora-r8")]
    for (x, y, name), place in zip(points, places(points), strict=True):
        box = _box(x, y, name, place_of(place))
        nearest = min(points, key=lambda point: _distance(box, point))
        assert nearest[2] == name


def test_a_name_is_not_cut_off_at_the_right_in_any_width_of_the_plot():
    """It fits on a desk, and ran out of the plot on a phone."""
    points = [(260.0, 100.0, "lora-r16")]
    assert places(points, widths=(325.0,)) == [Place(10, -10, "left")]
    [place] = places(points, widths=(325.0, 245.0))
    for x, width in ((260.0, 325.0), (260.0 * 245.0 / 325.0, 245.0)):
        left, _, right, _ = _box(x, 100.0, "lora-r16", place_of(place))
        assert 0 <= left and right <= width


def test_no_line_of_an_interval_goes_through_a_name():
    points, bars = [(100.0, 100.0, "full"), (130.0, 60.0, "lora-r1")], [(120.0, 20.0, 120.0, 140.0)]
    assert _shared(_box(100.0, 100.0, "full", (10, -10, "left")), (119.0, 20.0, 121.0, 140.0)) > 0
    for (x, y, name), place in zip(points, places(points, bars=bars), strict=True):
        assert _shared(_box(x, y, name, place_of(place)), (119.0, 20.0, 121.0, 140.0)) == 0


def test_the_arm_farthest_right_has_its_name_inside_the_plot(reported):
    tables = make_tables(reported.contents)
    is_last = (pl.col("arm") == "lora-r64") & (pl.col("measure") == "forgetting")
    moved = [pl.when(is_last).then(0.4).otherwise(pl.col(name)).alias(name) for name in ("value", "low", "high")]
    found = make_glances({**tables, "arms": tables["arms"].with_columns(moved)}, reported.contents)
    [align] = {row["_align"] for row in rows_of(found["new"]) if row["arm"] == "lora-r64"}
    assert align == "right"


def place_of(place):
    return place.dx, place.dy, place.align


def test_the_bases_directions_are_drawn_with_intruders_summed(reported, figures):
    assert "subspaces" not in figures, "this study did not look for them"
    place = reported.contents.matrices.select("base", "run_id", "name", "layer", "module", "source")
    looked = place.with_columns(intruder_dimensions=pl.col("layer"), rho_16=0.25 + 0.25 * pl.col("layer"))
    contents = replace(reported.contents, subspaces=looked)
    figure = make_figures(make_tables(contents), contents)["subspaces"]
    assert figure.measures == ["intruder_dimensions", "rho_16"]
    intruders, share = (rows_of(panel) for panel in figure.panels)
    assert {row["arm"] for row in intruders} == {"lora-r4", "lora-r16", "lora-r64", "full"}
    # Three modules in each of the layers 0, 1 and 2: nine intruders in all, and a share of a half on average.
    assert {row["value"] for row in intruders} == {9.0}
    assert {row["value"] for row in share} == {0.5}
    assert "sum over matrices" in figure.panels[0].label and "mean over matrices" in figure.panels[1].label


def test_layers_are_means_over_tasks_and_seeds(reported, figures):
    rows = [row for row in rows_of(figures["representations"].panels[2]) if row["group"] == "new"]
    assert figures["representations"].measures == ["procrustes_residual", "residual_cosine", "cka"]
    for row in rows:  # 1 - 0.1 * layer, and 0.02 less for each seed, on two tasks 0.02 apart
        seeds = (0, 1) if row["arm"] == "lora-r4" else (0, 1, 2)
        expected = [1 - 0.1 * row["layer"] - 0.02 * seed - 0.01 for seed in seeds]
        assert row["value"] == pytest.approx(sum(expected) / len(expected))
        assert (row["lowest"], row["highest"]) == pytest.approx((min(expected), max(expected)))
        assert (row["num_seeds"], row["num_tasks"], row["num_positions"]) == (len(seeds), 2, 30)
        assert row["source"].startswith("runs/")
    assert {row["arm"] for row in rows} == {"lora-r4", "lora-r16", "lora-r64", "full"}


def test_neurons_are_counted_by_layer(figures):
    assert figures["neurons"].measures == ["neuron_shift", "neurons_newly_dead"]  # none woke, which needs no plot
    shift, dead = ({(row["arm"], row["layer"]): row for row in rows_of(panel)} for panel in figures["neurons"].panels)
    for layer in range(3):
        assert shift["full", layer]["value"] == pytest.approx(layer + 0.5)  # of the sizes, one of them negative
        assert dead["full", layer]["value"] == layer
        assert dead["full", layer]["num_neurons"] == 4


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


def test_the_legend_of_a_static_figure_has_the_shapes_of_the_marks(reported, figures):
    """Once for each arm; colour alone would tell them apart nowhere else."""
    found = looks(reported.contents.plan)
    paths = {
        "circle": "A5,5", "diamond": "L0,-5L5,0L0,5Z", "cross": "L-5,2L-2,2L-2,5", "square": "h10v10h-10Z",
        "triangle-up": "L-5,4.33L5,4.33Z",
    }  # fmt: skip
    seen = 0
    some = {key: figures[key] for key in ("learned_forgotten", "rank_curves", "losses")}
    for name, svg in render_svgs(some, ["new"]):
        drawn = re.findall(r'role-legend-symbol".*?<path[^>]* d="([^"]+)".*?<text[^>]*>([^<]+)<', svg)
        assert [arm for _, arm in drawn] == [arm for arm in found if arm != "base" or "learned" in name]
        assert all(paths[found[arm].shape] in path for path, arm in drawn), name
        seen += len(drawn)
    assert seen == 13


def test_many_arms_of_many_methods_each_look_different():
    arms = [ArmSettings(label=f"lora-r8-{name}", method="lora", options={"r": 8}) for name in "abcdefghijklmnop"] + [
        ArmSettings(label=name, method="ia3", options={}) for name in "uvwxyz"
    ]
    found = looks(SimpleNamespace(runs=[SimpleNamespace(arm=arm) for arm in arms]))
    assert len(set(found.values())) == len(arms) + 1


def test_arms_of_one_rank_differ_in_colour_and_shape():
    """Lines have no shape but at their ends."""
    arms = [
        ArmSettings(label=f"lora-r{rank}{end}", method="lora", options={"r": rank})
        for end in ("", "-dora")
        for rank in (8, 32)
    ]
    found = looks(SimpleNamespace(runs=[SimpleNamespace(arm=arm) for arm in arms]))
    assert (
        len({look.colour for look in found.values()}) == len({look.shape for look in found.values()}) == len(arms) + 1
    )
    lightness = [luminance(found[label].colour) for label in ("lora-r8", "lora-r8-dora", "lora-r32", "lora-r32-dora")]
    assert lightness == sorted(lightness, reverse=True), "in the order of ranks"


# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: full protanopia, deuteranopia and tritanopia, on linear light.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("ranks", [(1, 4, 16, 64), (1, 2, 4, 8, 16, 32, 64, 128), tuple(range(1, 13))])
def test_a_colour_blind_reader_tells_arms_of_one_shape_apart(kind, ranks):
    arms = [ArmSettings(label=f"lora-r{rank}", method="lora", options={"r": rank}) for rank in ranks]
    arms.append(ArmSettings(label="full", method="full", options={}))
    found = looks(SimpleNamespace(runs=[SimpleNamespace(arm=arm) for arm in arms]))
    seen = [(look.shape, lightness_and_hue(look.colour, BLINDNESS[kind])) for look in found.values()]
    pairs = list(itertools.combinations(seen, 2))
    apart = [float(np.linalg.norm(one - other)) for (_, one), (_, other) in pairs]
    same = [distance for ((shape, _), (form, _)), distance in zip(pairs, apart, strict=True) if shape == form]
    assert bool(same) == (len(ranks) > 6)
    assert all(distance > 12 for distance in same), "2 is just noticeable side by side"
    assert min(apart) > 10 or len(ranks) > 4


def lightness_and_hue(colour, as_seen):
    """CIELAB (D65) of a colour as someone sees it."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    light = np.clip(np.array(as_seen) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ light / np.array([0.95047, 1.0, 1.08883]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
