"""The study files to copy from are studies, and those that need a hub and GPUs can be planned without them."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.parametrize(("name", "device"), [("paper", "h200-141gb"), ("paper_small", "rtx4090-24gb")])
def test_the_papers_studies_are_planned_without_hub_or_model(
    name: str, device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (path,) = (path for path in STUDIES if path.stem == name)
    study = load_study(path)
    assert main(["plan", str(path), "--device", device]) == DONE
    said = capsys.readouterr().out
    # Each study names the card that it is for.
    assert device.partition("-")[2].removesuffix("gb") in path.read_text()
    assert "memory: at most" in said and "does not fit" not in said
    assert "time: about" in said
    # Nothing is promised that the items and seeds cannot tell.
    assert "hardly seen" not in said
    full, lora = study.arms
    assert [10 * rate for rate in full.learning_rate] == pytest.approx(list(lora.learning_rate))
    assert len(full.learning_rate) >= 3


def test_a_plan_without_model_or_data_imports_neither_the_hubs_client_nor_torch(tmp_path: Path) -> None:
    """They are most of what keeps an answer from coming within two seconds."""
    code = "import sys; from rankscope.cli import main; main(sys.argv[1:]); print('!', *sys.modules)"
    (paper,) = (path for path in STUDIES if path.stem == "paper")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, "plan", str(paper)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    said, _, modules = done.stdout.rpartition("!")
    assert "time: about" in said
    assert not {"torch", "transformers", "datasets", "huggingface_hub.hf_api"} & set(modules.split())
