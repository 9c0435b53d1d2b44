"""Where work runs, found without torch: GPUs as their driver lists them, processors by the model's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from paper import paper
from rankscope import layout
from rankscope.errors import UserError
from rankscope.layout import choose_layout, visible_gpus


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(2):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text("Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 16\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(layout, "visible_gpus", lambda: visible_gpus(tmp_path))
    return tmp_path


def test_every_gpu_has_a_process(two_gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose_layout(paper(execute={"device": "cuda"}), 8_000_000_000)
    assert (found.device, found.num_workers, found.gpu) == ("cuda", 2, "NVIDIA A100-SXM4-80GB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert choose_layout(paper(execute={"device": "cuda"}), 8_000_000_000).num_workers == 1


def test_more_gpus_than_there_are_are_refused(two_gpus: Path) -> None:
    with pytest.raises(UserError, match="3 processes are asked for, and there are 2 GPUs") as caught:
        choose_layout(paper(execute={"device": "cuda", "num_workers": 3}), 8_000_000_000)
    assert "set it to 2 or less" in caught.value.mend


def test_on_a_processor_small_models_get_processes_and_large_ones_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    study = paper(execute={"device": "cpu"})
    small, large = choose_layout(study, 1_000_000), choose_layout(study, 8_000_000_000)
    assert (small.num_workers, small.threads_per_worker) == (6, 1)
    assert (large.num_workers, large.threads_per_worker) == (1, 6)
