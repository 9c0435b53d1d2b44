"""An audit of a study's run gives every number that the study's own analysis gives."""

import json

import polars as pl
import pytest

from analysed import analyse, write_models
from rankscope.audit.stage import Request, run
from rankscope.models.weights import trained_folder

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]


@pytest.mark.parametrize("arm", ["lora-r2", "lora-r3", "full"])
def test_every_number_is_the_studys(tmp_path, arm):
    synthetic, models = write_models(tmp_path)
    (settings,) = synthetic.runs(arm)
    analyse((synthetic, models), (settings.run_id,), ("spectra", "subspaces"))
    store = synthetic.store
    tuned = trained_folder(store.train(settings.run_id))
    request = Request(str(tmp_path / "base"), str(tuned), tmp_path / "out", intruders=True)
    found = run(request).audit
    matrices = pl.read_parquet(store.analysis(settings.run_id, "spectra") / "matrices.parquet")
    subspaces = pl.read_parquet(store.analysis(settings.run_id, "subspaces") / "subspaces.parquet")
    others = pl.read_parquet(store.analysis(settings.run_id, "spectra") / "other_tensors.parquet")
    assert matrices.height == (21 if arm == "full" else 6)
    assert found.matrices.select(matrices.columns).equals(matrices)
    assert found.matrices.select(subspaces.columns).equals(subspaces)
    assert found.others.equals(others)
    for analysis in ("spectra", "subspaces"):
        summary = json.loads((store.analysis(settings.run_id, analysis) / "record.json").read_text())["summary"]
        assert {key: found.summary[key] for key in summary} == summary
