"""Derived models and explanations in the report, from records whose numbers a reader can work out."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from rankscope.correlations import partial_rank_correlation, rank_correlation
from rankscope.decide import stage as decide
from rankscope.decide.rates import update_rates
from rankscope.records import AnalyseRecord, DeriveRecord, Subject
from rankscope.report.causes_figures import derived_figure
from rankscope.report.derived import derived_models, sentences
from rankscope.report.explained import explaining_runs, explanations
from rankscope.report.figures import make_figures
from rankscope.report.marks import Style
from rankscope.report.palette import looks
from rankscope.report.reading import read_contents
from rankscope.report.tables import make_tables
from rankscope.runs import DerivedPoint
from rankscope.store import write_parquet, write_record, write_text
from synthetic import Arm, write_study

COMMON = {"status": "complete", "provenance": {}, "started_at": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
POINTS = tuple(DerivedPoint(kind=kind, amount=amount) for kind, amount in (("truncate", 2), ("rewind", 0.5)))


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Two arms of rank 8 and 4; cut to rank 2 the first three items of retention are right again, and nothing else."""
    arms = [Arm("lora", rank, (1e-3,), best=0) for rank in (8, 4)]
    study = write_study(tmp_path_factory.mktemp("study"), arms=arms, seeds=(0, 1))
    plan = study.plan.model_copy(update={"derived": dict.fromkeys(study.plan.arms, POINTS)})
    write_text(study.store.plan_file, plan.model_dump_json())
    update_rates(study.store, plan)
    for run in plan.runs:
        subject = Subject(
            base="small", training_set=run.training_set.name, arm=run.arm.label, learning_rate=run.learning_rate,
            seed=run.seed, run_id=run.run_id,
        )  # fmt: skip
        for point in POINTS:
            folder = study.store.derived(run.run_id, point.name)
            files = []
            for task in plan.derive_tasks(run.run_id):
                own = pl.read_parquet(study.store.task(run.run_id, task) / "items.parquet")
                base = pl.read_parquet(study.store.base_task("small", task) / "items.parquet")
                if point.kind == "truncate" and task == "general":
                    mended = [*base["is_correct"][:3], *own["is_correct"][3:]]
                    own = own.with_columns(pl.Series("is_correct", mended))
                write_parquet(folder / task / "items.parquet", own)
                files.append(f"{task}/items.parquet")
            scores = {task: {"accuracy": 0.5} for task in plan.derive_tasks(run.run_id)}
            record = DeriveRecord(**COMMON, settings_hash="0" * 64, subject=subject, point=point, scores=scores, rank=2)
            write_record(folder, record, files)
        summary = {"update_norm": float(run.arm.rank), "cka": 0.9, "intruder_dimensions": float(run.seed)}
        record = AnalyseRecord(**COMMON, settings_hash="0" * 64, subject=subject, analysis="spectra", summary=summary)
        write_record(study.store.analysis(run.run_id, "spectra"), record)
    decide.run(study.store, study.study, plan)
    return study, read_contents(study.store)


def means(study, arm, task, count=None):
    """The mean of base less tuned over items, each seed's."""
    base = np.array(pl.read_parquet(study.store.base_task("small", task) / "items.parquet")["is_correct"], dtype=float)
    found = []
    for run in study.runs(arm):
        items = pl.read_parquet(study.store.task(run.run_id, task) / "items.parquet")
        own = items["is_correct"].to_numpy().astype(float)
        if count:
            own = np.concatenate([base[:count], own[count:]])
        found.append((base - own).mean())
    return np.mean(found)


def test_derived_models_are_compared_with_base_and_run_on_the_same_items(contents):
    study, read = contents
    table = derived_models(read)
    for arm, rank in (("lora-r8", 8), ("lora-r4", 4)):
        of_arm = table.filter((pl.col("arm") == arm) & (pl.col("measure") == "forgetting"))
        mine = of_arm.filter(pl.col("kind") == "truncate")
        assert mine["amount"].to_list() == [2.0, rank]
        cut, own = mine.iter_rows(named=True)
        assert own["value"] == pytest.approx(means(study, arm, "general"))
        assert own["change"] == 0.0
        assert cut["value"] == pytest.approx(means(study, arm, "general", 3))
        assert cut["change"] == pytest.approx(cut["value"] - own["value"])
        assert cut["low"] < cut["value"] < cut["high"] and cut["num_seeds"] == 2
        assert cut["seeds_part"] == own["seeds_part"] == "own seeds"
        gain = table.filter((pl.col("arm") == arm) & (pl.col("measure") == "gain") & (pl.col("amount") == 2.0))
        assert gain["value"][0] == pytest.approx(-means(study, arm, "taught"))
        assert gain["change"][0] == 0.0
    nats = table.filter((pl.col("measure") == "forgetting_nats") & (pl.col("kind") == "rewind"))
    assert set(nats["change"]) == {0.0} and nats["amount"].to_list() == [0.5, 1.0] * 2


def test_the_run_itself_has_its_own_seeds_interval_beside_the_verdicts(contents):
    _, read = contents
    tables = make_tables(read)
    ours = tables["derived"].filter((pl.col("kind") == "truncate") & (pl.col("arm") == "lora-r8"))
    own = ours.filter((pl.col("amount") == 8.0) & (pl.col("measure") == "forgetting"))
    judged = tables["arms"].filter((pl.col("arm") == "lora-r8") & (pl.col("measure") == "forgetting"))
    assert own["value"][0] == pytest.approx(judged["value"][0])
    assert (own["seeds_part"][0], judged["seeds_part"][0]) == ("own seeds", "seeds pooled over arms")


def test_what_cutting_did_is_said_in_words(contents):
    _, read = contents
    said = sentences(derived_models(read))[("small", "new")]
    assert [line.split(":")[0] for line in said] == ["lora-r8 cut to rank 2", "lora-r4 cut to rank 2"]
    assert all("gain" in line and "forgetting" in line and "points" in line for line in said)


def derived_rows(kind, amounts, measure, values, training_set="new", **more):
    rows = [
        {"base": "small", "training_set": training_set, "arm": "lora-r8", "kind": kind, "amount": float(amount),
         "measure": measure, "value": value, "change_low": -0.02, "change_high": 0.01, **more}
        for amount, value in zip(amounts, values, strict=True)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"added_rank": pl.Float64})


def test_losses_and_scaled_intruders_are_said_too():
    """A training set without right answers has its losses said, and mending says what rank it costs."""
    table = pl.concat(
        [
            derived_rows("truncate", (2, 8), "gain_nats", (0.1, 0.125), added_rank=0.0),
            derived_rows("intruders", (0, 1), "forgetting", (0.05, 0.1), added_rank=1.5),
        ]
    )
    assert sentences(table) == {
        ("small", "new"): [
            "lora-r8 cut to rank 2: gain 0.125 to 0.100 nats, a change of \N{MINUS SIGN}0.020 to 0.010",
            "lora-r8 with its intruders times 0: forgetting 10.0 to 5.0 points, a change of \N{MINUS SIGN}2.0 to 1.0; "
            "rank added 1.5",
        ]
    }


def test_each_training_set_has_curves_of_its_own_measure(contents):
    _, read = contents
    tables = make_tables(read)
    nats = tables["derived"].with_columns(
        pl.lit("other").alias("training_set"), pl.col("measure").replace({"gain": "gain_nats"})
    )
    grouped = pl.concat([tables["derived"], nats]).with_columns(pl.col("training_set").alias("group"))
    figure = derived_figure(grouped, Style(looks(read.plan)), {})
    assert [(panel.unit.split(";")[0], panel.groups) for panel in figure.panels[:3]] == [
        ("in-domain accuracy gained, points", ("new",)),
        ("in-domain loss removed, nats per token", ("other",)),
        ("retention accuracy lost, points", ("new", "other")),
    ]
    assert "is cut as one in an adapter" in figure.shows
    rewound = derived_figure(grouped.filter(pl.col("kind") != "truncate"), Style(looks(read.plan)), {})
    assert "is cut as one" not in rewound.shows


def test_runs_are_explained_by_what_they_forgot(contents):
    study, read = contents
    runs = explaining_runs(read)
    assert runs.height == 4
    for row in runs.iter_rows(named=True):
        [run] = [one for one in study.plan.runs if one.run_id == row["run_id"]]
        assert (row["rank"], row["update_norm"], row["cka"]) == (run.arm.rank, run.arm.rank, 0.9)
        base = pl.read_parquet(study.store.base_task("small", "general") / "items.parquet")["is_correct"].mean()
        own = pl.read_parquet(study.store.task(run.run_id, "general") / "items.parquet")["is_correct"].mean()
        assert row["forgetting"] == pytest.approx(base - own, abs=1e-9)
    # Two candidates are too few for any correlation.
    assert explanations(read).is_empty()


def test_forgetting_is_the_mean_over_retention_tasks_and_losses_are_lost_upwards(contents):
    _, read = contents
    relations = {"new": read.plan.relations["new"] | {"taught": "retention"}}
    plan = read.plan.model_copy(update={"relations": relations})
    scores = {(one.record.subject.run_id, one.record.task): one.record.values for one in read.scored}
    tasks = [name for name, relation in relations["new"].items() if relation == "retention"]
    losses = [name for name in tasks if plan.tasks["small"][name].scoring == "loss"]
    answered = [name for name in tasks if name not in losses]
    assert sorted(answered) == ["general", "taught"] and losses == ["text"]
    rows = explaining_runs(replace(read, plan=plan)).to_dicts()
    assert len(rows) == 4
    for row in rows:
        fell = [scores[None, name]["accuracy"] - scores[row["run_id"], name]["accuracy"] for name in answered]
        key, run_id = "loss_nats_per_token", row["run_id"]
        assert row["forgetting"] == pytest.approx(np.mean(fell))
        assert row["forgetting_nats"] == pytest.approx(scores[run_id, "text"][key] - scores[None, "text"][key])
        assert row["forgetting"] != 0.0 and row["forgetting_nats"] != 0.0


def test_figures_are_drawn_where_there_is_something(contents):
    _, read = contents
    figures = make_figures(make_tables(read), read)
    assert "derived" in figures and "explanations" not in figures
    titles = ["Rewound towards the base", "Cut to a lower rank"]
    parts = [f"{title}: {what}" for title in titles for what in ("learned", "forgotten")]
    assert [panel.title for panel in figures["derived"].panels] == parts
    [said] = figures["derived"].sentences.values()
    assert "cut to rank 2" in said[0]
    table = derived_models(read).filter((pl.col("kind") == "truncate") & (pl.col("measure") == "forgetting"))
    drawn = max(figures["derived"].panels[3].spec["datasets"].values(), key=len)
    assert [row["value"] for row in drawn] == pytest.approx([100 * value for value in table["value"]], abs=1e-3)


def test_derived_models_stand_hollow_among_the_arms(contents):
    _, read = contents
    figures = make_figures(make_tables(read), read)
    table = derived_models(read)
    sets = figures["learned_forgotten"].panels[0].spec["datasets"].values()
    [made] = [rows for rows in sets if rows and "what" in rows[0]]
    assert {(row["arm"], row["what"]) for row in made} == {
        (arm, what) for arm in ("lora-r8", "lora-r4") for what in ("cut to rank 2", "rewound to 0.5 of its update")
    }
    for row in made:
        mine = table.filter((pl.col("arm") == row["arm"]) & (pl.col("kind") == "truncate") & (pl.col("amount") == 2))
        values = dict(mine.select("measure", "value").iter_rows())
        if row["what"] == "cut to rank 2":
            assert row["x"] == pytest.approx(100 * values["forgetting"], abs=1e-3)
            assert row["y"] == pytest.approx(100 * values["gain"], abs=1e-3)
    # Beside the ranks that were trained stands the largest one, cut.
    sets = figures["rank_curves"].panels[0].spec["datasets"].values()
    [cut] = [rows for rows in sets if rows and "what" in rows[0]]
    assert [(row["arm"], row["x"]) for row in cut] == [("lora-r8", 2), ("lora-r8", 8)]


@pytest.mark.parametrize("given", [None, "update_norm"])
def test_explanations_are_correlations_over_every_candidate_that_was_scored(reported, given):
    """Also over rates that were not chosen, each with the mean of its seeds; at equal size of the update too."""
    contents = reported.contents
    runs = [run for run in contents.plan.runs if run.training_set.name == "new"]
    draw = np.random.default_rng(0)
    columns = {name: draw.normal(size=len(runs)) for name in ("lost", "update_norm", "cka")}
    scored = [one for one in contents.scored if one.record.subject.run_id is None]
    [base] = [one.record.values["accuracy"] for one in scored if one.record.task == "general"]
    [score] = [one for one in scored if one.record.task == "general"]
    [analysis, *_] = [one for one in contents.analysed if one.record.subject.run_id]
    analysed = []
    for place, run in enumerate(runs):
        subject = Subject(base="small", training_set="new", arm=run.arm.label, learning_rate=run.learning_rate,
                          seed=run.seed, run_id=run.run_id)  # fmt: skip
        values = {"subject": subject, "values": {"accuracy": base - columns["lost"][place]}}
        scored.append(replace(score, record=score.record.model_copy(update=values)))
        summary = {name: float(columns[name][place]) for name in ("update_norm", "cka")}
        record = analysis.record.model_copy(update={"subject": subject, "summary": summary})
        analysed.append(replace(analysis, record=record))
    table = explanations(replace(contents, scored=tuple(scored), analysed=tuple(analysed)))
    candidates = dict.fromkeys((run.arm.label, run.learning_rate) for run in runs)
    assert len(candidates) == 11 > len(contents.plan.arms), "rates that were not chosen are there"
    of = [[i for i, run in enumerate(runs) if (run.arm.label, run.learning_rate) == one] for one in candidates]
    lost, size, cka = (np.array([values[places].mean() for places in of]) for values in columns.values())
    expected = rank_correlation(cka, lost) if given is None else partial_rank_correlation(cka, lost, size)
    mine = (pl.col("target") == "forgetting") & (pl.col("predictor") == "cka")
    row = table.row(by_predicate=mine & pl.col("given").eq_missing(pl.lit(given)), named=True)
    assert row["value"] == pytest.approx(expected)
    assert (row["num_candidates"], row["num_runs"]) == (11, len(runs))
    assert -1 < row["low"] < row["value"] < row["high"] < 1
    assert row["high"] - row["low"] > 0.8, "few candidates give a wide interval"


@pytest.mark.parametrize(
    "all_scored, said",
    [
        (False, "`search: {evaluate: all}` adds the candidates that were not chosen."),
        (True, "More arms or rates would narrow them."),
    ],
)
def test_few_candidates_are_said_and_what_would_add_to_them(reported, all_scored, said):
    contents = replace(
        reported.contents, plan=reported.contents.plan.model_copy(update={"scores_all_candidates": all_scored})
    )
    row = {"base": "small", "training_set": "new", "target": "forgetting", "predictor": "cka", "given": None,
           "value": 0.5, "low": -0.4, "high": 0.9, "confidence": 0.95, "num_candidates": 6, "num_runs": 9,
           "source": "x"}  # fmt: skip
    tables = make_tables(contents) | {"explanations": pl.DataFrame([row])}
    notes = make_figures(tables, contents)["explanations"].notes
    few = "Only 6 arms at a rate were scored: the intervals are wide, and most hold 0."
    assert notes == {"new": [f"{few} {said}"]}
