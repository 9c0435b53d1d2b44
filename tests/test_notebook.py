"""The notebook in `examples/` runs on any study, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from report_study import finished_study

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "read_results.ipynb"


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = finished_study(tmp_path / "study", training_sets=("new",))
    monkeypatch.setenv("RANKSCOPE_RESULTS", str(study.store.root))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 6 and not any(cell.outputs for cell in cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert all(cell.outputs for cell in cells)
    assert "lora-r16" in str(cells[2].outputs)
