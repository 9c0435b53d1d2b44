"""Several studies counted: which settings were within the margin of the best, by model, domain and kind of task."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rankscope.cli import main
from rankscope.decide import stage as decide
from rankscope.decide.rates import update_rates
from rankscope.errors import UserError
from rankscope.records import ArmResult, Interval
from rankscope.report import stage
from rankscope.report.across import OUTCOMES, outcome, setting_in_words
from rankscope.report.across_figure import across_figure
from rankscope.runs import ArmSettings
from rankscope.store import Store
from synthetic import ARMS, write_study

ROOMY = {"forgetting_budget": 0.06, "margin": 0.08}


def decided(folder: Path, **options: object) -> Store:
    made = write_study(folder, decide=ROOMY, **options)
    update_rates(made.store, made.plan)
    decide.run(made.store, made.study, made.plan)
    return made.store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    root = tmp_path_factory.mktemp("studies")
    weak = replace(ARMS[1], shift={"taught": 0.2, "general": -0.004, "text": -0.005})  # here rank 16 learns too little
    return [
        decided(root / "one"),
        decided(root / "two", training_sets=("law",), draw=1),
        decided(root / "three", arms=[weak, replace(ARMS[2], shift={"taught": 0.5})], draw=2),
    ]


def count(table: pl.DataFrame, setting: str, by: str = "all", value: str = "") -> dict[str, int]:
    is_mine = (pl.col("by") == by) & (pl.col("value").fill_null("") == value)
    row = table.filter(is_mine, pl.col("setting").str.starts_with(setting))
    assert row.height == 1
    return {name: row[name][0] for name in (*OUTCOMES, "verdicts", "studies") if row[name][0]}


def test_settings_are_counted_over_all_and_by_model_domain_and_kind(stores: list[Store], tmp_path: Path) -> None:
    page = stage.run_across(stores, tmp_path)
    table = pl.read_csv(tmp_path / "tables" / "settings.csv")
    assert count(table, "lora r16") == {"within the margin": 2, "worse": 1, "verdicts": 3, "studies": 3}
    assert count(table, "lora r4") == {"worse": 2, "verdicts": 2, "studies": 2}
    assert count(table, "lora r64")["forgets too much"] == 2
    assert count(table, "lora r64")["within the margin"] == 1
    assert count(table, "no fine-tuning")["worse"] == 3
    assert count(table, "lora r16", "domain", "law") == {"within the margin": 1, "verdicts": 1, "studies": 1}
    new = count(table, "lora r16", "domain", "new")
    assert new == {"within the margin": 1, "worse": 1, "verdicts": 2, "studies": 2}
    assert set(table["by"]) == {"all", "model", "domain", "kind"}
    for row in table.iter_rows(named=True):
        assert sum(row[name] for name in OUTCOMES) == row["verdicts"]
    text = page.read_text()
    assert "one, two, three" in text and "not a law" in text
    assert not re.findall(r'(?:src|href)="http', text)
    assert text.count("Use LoRA of rank") + text.count("Undecided.") >= 3
    assert "The same settings, study by study" in text


def test_each_finding_names_its_file(stores: list[Store], tmp_path: Path) -> None:
    stage.run_across(stores, tmp_path)
    found = pl.read_csv(tmp_path / "tables" / "findings.csv")
    assert set(found["source"]) == {f"{name}/decide/record.json" for name in ("one", "two", "three")}


def test_what_two_studies_share_is_drawn_side_by_side(stores: list[Store], tmp_path: Path) -> None:
    stage.run_across(stores[:2], tmp_path)
    stood = pl.read_csv(tmp_path / "tables" / "standings.csv")
    assert set(stood["study"]) == {"one", "two"}
    for name, store in zip(("one", "two"), stores, strict=False):
        mine = stood.filter((pl.col("study") == name) & (pl.col("measure") == "gain"))
        expected = [arm for arm in store.read_decide().verdicts[0].arms if arm.arm != "base"]
        assert mine["value"].to_list() == pytest.approx([arm.gain.value for arm in expected])
        assert mine["high"].to_list() == pytest.approx([arm.gain.high for arm in expected])
    figure = across_figure(stood)
    drawn = max(figure.panels[0].spec["datasets"].values(), key=len)
    shared = set(stood.filter(pl.col("study") == "one")["setting"]) & set(
        stood.filter(pl.col("study") == "two")["setting"]
    )
    assert {row["setting"] for row in drawn} == shared
    assert {row["arm"] for row in drawn} == {"one", "two"}


def interval(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high, confidence=0.95, num_items=9, num_seeds=2)


GAIN = interval(0.1, 0.2)


def result(behind: Interval | None, eligible: str = "yes", gain: Interval | None = GAIN) -> ArmResult:
    return ArmResult(
        arm="r4", method="lora", rank=4, learning_rate=1e-3, num_trainable=4, gain=gain, gain_nats=None,
        forgetting=None, forgetting_nats=None, eligible=eligible, behind_best=behind,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (result(None), "within the margin"),
        (result(interval(-0.01, 0.02)), "within the margin"),
        (result(interval(-0.01, 0.03)), "cannot tell"),
        (result(interval(0.021, 0.03)), "worse"),
        (result(interval(0.021, 0.03), "unknown"), "worse"),
        (result(interval(-0.01, 0.01), "unknown"), "cannot tell"),
        (result(interval(-0.01, 0.01), "no"), "forgets too much"),
        (result(None, "unknown", gain=None), "not judged"),
    ],
)
def test_an_outcome_is_what_the_intervals_say(found: ArmResult, expected: str) -> None:
    assert outcome(found, 0.02) == expected


def test_a_setting_is_named_by_what_it_sets() -> None:
    options = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "use_rslora": False, "target_modules": "all-linear"}
    plain = ArmSettings(label="mine", method="lora", options=options)
    assert setting_in_words(plain) == "lora r8, alpha 2r, all-linear"
    more = {**options, "use_dora": True, "target_modules": ["model.layers.0.q_proj", "model.layers.1.q_proj"]}
    assert setting_in_words(ArmSettings(label="x", method="lora", options=more)) == "lora r8, alpha 2r, on q_proj, dora"
    assert setting_in_words(ArmSettings(label="full", method="full", options={})) == "full"


def test_a_study_without_a_verdict_is_named(stores: list[Store], tmp_path: Path) -> None:
    early = write_study(tmp_path / "early").store
    page = stage.run_across([stores[0], early], tmp_path / "out")
    assert "early: no verdict yet" in page.read_text()


def test_one_study_twice_and_what_is_no_study_are_refused(stores: list[Store], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        stage.run_across([stores[0], stores[0]], tmp_path)
    with pytest.raises(UserError, match="no study was planned here"):
        stage.run_across([stores[0], Store(tmp_path / "nothing")], tmp_path)


def test_the_verb_takes_several_directories(stores: list[Store], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", *(str(store.root) for store in stores), "--out", str(tmp_path / "across")]) == 0
    assert (tmp_path / "across" / "across.html").is_file()
    assert "across.html" in capsys.readouterr().out
    assert main(["report", str(stores[0].root), "--out", str(tmp_path)]) == 2
    assert "is for several studies" in capsys.readouterr().err
