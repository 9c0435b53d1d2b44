"""What lies in examples/ works: a run is replayed by plain PEFT, from the files of its study directory alone."""

from __future__ import annotations

import ast
import json
import runpy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch

from rankscope.data.examples import Example, examples_frame
from rankscope.models.loading import load_model
from rankscope.models.methods.making import make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.plan import Estimate, Layout, Pack, Plan
from rankscope.runs import RunSettings
from rankscope.store import Store, write_parquet
from rankscope.train import stage
from tiny import examples, lora_run, save_tiny

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "replay_run.py"
NUM_STEPS = 10


class TinyModels:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def trainable(self, runs: tuple[RunSettings, ...]) -> Iterator[TrainablePack]:
        yield make_trainable(load_model(self._folder, torch.float32, "cpu"), runs)


class Silent:
    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        pass

    def wants_stop(self) -> bool:
        return False


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A study directory of two runs that were trained together, one of them with rank-stabilised LoRA."""
    root = tmp_path_factory.mktemp("study")
    folder = save_tiny(root / "model")
    settings = [
        lora_run(4, 3e-3, seed=0, num_steps=NUM_STEPS),
        lora_run(8, 1e-3, seed=1, num_steps=NUM_STEPS, use_rslora=True),
    ]
    base = settings[0].base.model_copy(update={"source": str(folder)})
    runs = tuple(run.model_copy(update={"base": base}) for run in settings)
    store = Store(root / "results")
    tokenised = examples(24)
    texts = [Example(example.example_id, "", "") for example in tokenised]
    frames = [examples_frame(tokenised, texts, "train"), examples_frame(tokenised[:4], texts[:4], "validation")]
    write_parquet(store.training_data("tiny", "set") / "examples.parquet", pl.concat(frames))
    run_ids = [run.run_id for run in runs]
    stage.run(Pack("train", "tiny", tuple(run_ids)), _plan(runs), store, TinyModels(folder), Silent())
    return store.root, run_ids


def _plan(runs: tuple[RunSettings, ...]) -> Plan:
    return Plan(
        study="tiny", bases={"tiny": runs[0].base}, arms=tuple(run.arm.label for run in runs), tasks={"tiny": {}},
        validation={"tiny": {}}, relations={"set": {}}, runs=runs, search_seeds=(0,), dtype="float32",
        layout=Layout(device="cpu", num_workers=1, threads_per_worker=1), max_tokens_per_batch=60,
        checkpoint_seconds=60.0, probes_fingerprint={"tiny": ""}, analyses=(),
        estimate=Estimate(
            trained_tokens=0, scored_tokens=0, arithmetic=0.0, seconds=None, memory_bytes=None, disk_bytes=0
        ),
    )  # fmt: skip


@pytest.mark.parametrize("index", [0, 1], ids=["lora", "rslora"])
def test_a_replay_has_the_same_losses(study: tuple[Path, list[str]], index: int) -> None:
    root, run_ids = study
    example = runpy.run_path(str(SCRIPT))
    with torch.random.fork_rng():  # the example seeds torch for good, as a script may
        assert example["largest_difference"](root, run_ids[index]) < 1e-5
        losses = example["replayed_losses"](root, run_ids[index])
    assert len(losses) == NUM_STEPS
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3)  # or the comparison would mean nothing


def test_a_replay_with_another_seed_has_other_losses(study: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, (run_id, _) = study
    for name in ("base", f"runs/{run_id}"):
        shutil.copytree(root / name, tmp_path / name)
    settings = json.loads((tmp_path / "runs" / run_id / "run.json").read_text())
    (tmp_path / "runs" / run_id / "run.json").write_text(json.dumps(settings | {"seed": 7}))
    with torch.random.fork_rng():
        assert runpy.run_path(str(SCRIPT))["largest_difference"](tmp_path, run_id) > 1e-4


def test_the_example_needs_no_rankscope() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [getattr(node, "module", None) or alias.name for node in imports for alias in node.names]
    assert "peft" in names and not [name for name in names if name.startswith("rankscope")]
