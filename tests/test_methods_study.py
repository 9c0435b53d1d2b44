"""studies/methods.yaml: an arm of each method, from its file to the report, in real processes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from rankscope.cli import DONE, UNDECIDED
from rankscope.methods.table import BY_NAME
from rankscope.records import NOT_AVAILABLE
from rankscope.store import Store
from studies import plan_of, run

INITIALISATIONS = {
    "gaussian",
    "orthogonal",
    "pissa",
    "olora",
    "eva",
    "corda",
    "lora_ga",
}  # loftq needs a base in 4 bits
STUDY = Path(__file__).resolve().parent.parent / "studies" / "methods.yaml"


@pytest.mark.slow
def test_every_method_trains_is_scored_and_looked_into(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(STUDY, out)
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    store, plan = Store(out), plan_of(out)
    assert {settings.arm.method for settings in plan.runs} > set(BY_NAME)
    options = [settings.arm.options for settings in plan.runs]
    assert {one.get("init_lora_weights") for one in options} >= INITIALISATIONS
    assert {one.get("placement") for one in options} >= {"houlsby", "pfeiffer"}
    for settings in plan.runs:
        trained = store.read_train(settings.run_id)
        assert trained is not None and trained.status == "complete", settings.run_id
        assert trained.num_trainable and trained.final_loss_nats_per_token
        for task in plan.tasks["smallworld-base"]:
            record = store.read_evaluate(store.task(settings.run_id, task))
            assert record is not None and record.status == "complete"
            if record.scoring == "multiple_choice":
                own_rows = settings.arm.capabilities.own_rows
                assert record.scored_by == ("separate_rows" if own_rows else "option_tree")
                assert record.note == own_rows
        for analysis in plan.analyses:
            folder = store.analysis(settings.run_id, analysis)
            record = store.read_analyse(folder)
            assert record is not None and record.status == "complete"
            why = settings.arm.capabilities.not_available.get(analysis)
            if why:
                assert (record.notes, record.summary, record.files) == ((NOT_AVAILABLE + why,), {}, {})
            else:
                assert record.files and not any(note.startswith(NOT_AVAILABLE) for note in record.notes)
    altered = next(settings for settings in plan.runs if settings.arm.label == "lora-r8-pissa")
    spectra = store.read_analyse(store.analysis(altered.run_id, "spectra"))
    assert any("doubles the rank: 8 was trained" in note for note in spectra.notes)
    # The report says of which arms an analysis can say nothing, and why.
    missing = pl.read_csv(out / "report" / "tables" / "not_available.csv")
    assert {"prompt_tuning", "bottleneck-houlsby"} <= set(missing["arm"])
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "virtual tokens stand before every text" in page
    assert "lora-r8-pissa: pissa took a part out of the base" in page and "doubles the rank: 8 was trained" in page
    apart = pl.read_csv(out / "report" / "tables" / "separate_rows.csv")
    assert set(apart["arm"]) == {"prompt_tuning", "p_tuning", "prefix_tuning"}
