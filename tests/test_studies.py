"""The study files to copy from are studies, and those that need a hub and GPUs can be planned without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.cli import DONE, main
from rankscope.data.presets import find_preset
from rankscope.study_file import load_study

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.yaml"))


def test_these_are_there() -> None:
    assert {"paper.yaml", "paper_small.yaml", "pocket_paper.yaml", "smallworld.yaml", "your_data.yaml"} <= {
        path.name for path in STUDIES
    }


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_each_is_a_study(path: Path) -> None:
    study = load_study(path)
    for data in (*study.train.values(), *study.evaluate.values()):
        if data.source is not None and "/" not in data.source and not data.source.startswith("smallworld:"):
            assert find_preset(data.source) is not None, data.source


@pytest.mark.parametrize("name", ["paper", "paper_small"])
def test_the_papers_studies_are_planned_without_hub_or_model(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (path,) = (path for path in STUDIES if path.stem == name)
    study = load_study(path)
    assert main(["plan", str(path), "--device", "rtx4090-24gb"]) == DONE
    said = capsys.readouterr().out
    assert "time: about" in said
    # Nothing is promised that the items and seeds cannot tell.
    assert "hardly seen" not in said
    full, lora = study.arms
    assert [10 * rate for rate in full.learning_rate] == pytest.approx(list(lora.learning_rate))
    assert len(full.learning_rate) >= 3
