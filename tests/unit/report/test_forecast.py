"""Forecast against measured in the report: what was expected stands beside what came."""

from __future__ import annotations

from pathlib import Path

from rankscope.decide import stage as decide
from rankscope.decide.rates import update_rates
from rankscope.records import ForecastRecord
from rankscope.report import stage
from rankscope.report.forecast import forecast_table
from rankscope.report.reading import read_contents
from rankscope.store import write_record
from synthetic import write_study


def record() -> ForecastRecord:
    return ForecastRecord(
        status="complete", settings_hash="h", provenance={}, started_at="t", seconds=1.0, base="small",
        training_set="new", num_examples=64, num_scored_tokens=1000, loss_nats_per_token=2.0, bits_to_store=2885.0,
        bits_per_rank=400.0, capacity_rank=8, signal_rank_median=5, signal_rank_high=11, energy_rank_90_median=6,
        ranks_to_try=(4, 8, 16),
    )  # fmt: skip


def test_before_the_study_nothing_is_measured(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    write_record(made.store.forecast("small", "new"), record())
    table = forecast_table(read_contents(made.store))
    assert table["forecast"].to_list() == ["4, 8, 16", "those below 8", "6 (of the first gradient)"]
    assert set(table["measured"]) == {"not measured"}


def test_after_the_study_the_forecast_stands_beside_what_came(tmp_path: Path) -> None:
    made = write_study(tmp_path, decide={"forgetting_budget": 0.06, "margin": 0.08})
    write_record(made.store.forecast("small", "new"), record())
    update_rates(made.store, made.plan)
    decide.run(made.store, made.study, made.plan)
    table = forecast_table(read_contents(made.store))
    # Rank 4 learns 15 points, ranks 16 and 64 learn 45: the truth of the synthetic study.
    assert table["measured"][0] == "within the margin of the best of those tried: 16, 64"
    assert table["measured"][1] == "worse than the margin: 4"
    page = stage.run(made.store).read_text()
    assert "The forecast, and what came of it" in page and "those below 8" in page
    assert (made.store.report / "tables" / "forecast.csv").is_file()


def test_a_study_without_a_forecast_says_nothing_of_it(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    contents = read_contents(made.store)
    assert forecast_table(contents).is_empty()
