"""The training stage on a tiny Llama, in one process or in several that hold a part of it each."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from unittest import mock

import polars as pl
import torch
from safetensors.torch import load_file

from rankscope.data.examples import Example, examples_frame
from rankscope.models.group import leave
from rankscope.models.loading import Models
from rankscope.plan import Pack, Place, Plan
from rankscope.records import TrainRecord
from rankscope.runs import BaseSettings, RunSettings
from rankscope.store import Store, check_files
from rankscope.train import adamw_8bit, stage
from tiny import examples, save_tiny


@dataclass
class Watcher:
    """Asks to stop after some steps; only the first process is heard."""

    left: int

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        self.left -= 1

    def wants_stop(self) -> bool:
        return self.left <= 0


@dataclass
class Desk:
    """A study directory with one run of a tiny Llama.

    Attributes:
        options: Of the plan.
        offload: Where it is trained in parts, they lie in the host's memory.
        smallest: Tensors of fewer values keep whole states with an optimizer in 8 bits; those here are all small.
    """

    root: Path
    run: RunSettings
    options: dict = field(default_factory=dict)
    offload: bool = False
    smallest: int = 4096

    def __post_init__(self) -> None:
        folder = self.root / "base"
        save_tiny(folder)
        (folder / "tokenizer.json").write_text("{}")  # a base has one; nothing here is tokenised
        self.run = self.run.model_copy(
            update={"base": BaseSettings(name="tiny", source=str(folder), revision=None, fingerprint="f")}
        )
        texts = [Example(f"e{index}", "", "") for index in range(24)]
        data = [examples_frame(examples(24), texts, split) for split in ("train", "validation")]
        self.store.training_data("tiny", "set").mkdir(parents=True)
        pl.concat(data).write_parquet(self.store.training_data("tiny", "set") / "examples.parquet")

    @property
    def store(self) -> Store:
        return Store(self.root / "out")

    def train(self, until: int | None = None, stop_after: int = 1000, place: Place | None = None) -> None:
        """Train to the end, as far as a round of a search asks, or until somebody stops it."""
        options = {"max_tokens_per_batch": 10_000, "checkpoint_seconds": 60.0} | self.options
        plan = Plan.model_construct(runs=(self.run,), **options)
        models = Models(self.store, self.run.optimization.dtype, "cpu", place, offload=self.offload)
        pack = Pack("train", "tiny", (self.run.run_id,), () if until is None else (str(until),))
        with mock.patch.object(adamw_8bit, "_SMALLEST", self.smallest):
            stage.run(pack, plan, self.store, models, Watcher(stop_after))

    def record(self) -> TrainRecord:
        record = self.store.read_train(self.run.run_id)
        check_files(self.store.train(self.run.run_id), record)
        return record

    def weights(self) -> dict:
        (path,) = self.store.train(self.run.run_id).glob("model/*.safetensors")
        return load_file(path)

    def losses(self) -> list[float]:
        lines = pl.read_ndjson(self.store.train(self.run.run_id) / stage.STEPS)
        return lines["loss_nats_per_token"].to_list()


Call = tuple[Desk, int | None, int]  # what is trained, how far, and after how many steps somebody stops it


def carry_out_together(calls: Sequence[Call], size: int, *, beside_gpu: bool = False) -> None:
    """Carry out calls one after the other in processes that hold a part of each model.

    Args:
        calls: What they do.
        size: How many there are.
        beside_gpu: They compute on a processor of a machine that has a GPU, while they meet and read the model.
    """
    context = multiprocessing.get_context("spawn")
    meeting = calls[0][0].root / "meeting"
    pairs = [context.Pipe(duplex=False) for _ in range(size)]
    places = [Place(rank, size, str(meeting)) for rank in range(size)]
    processes = [
        context.Process(target=_carry_out, args=(theirs, calls, place, beside_gpu), daemon=True)
        for place, (_, theirs) in zip(places, pairs, strict=True)
    ]
    for process in processes:
        process.start()
    for _, theirs in pairs:
        theirs.close()
    try:
        waiting = [ours for ours, _ in pairs]
        while waiting:
            ready = wait(waiting, 300.0)
            assert ready, "processes wait for each other"
            for connection in ready:
                said = connection.recv()
                assert said is None, said  # the others wait for the one that failed
                waiting.remove(connection)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _carry_out(connection: Connection, calls: Sequence[Call], place: Place, beside_gpu: bool) -> None:
    warnings.simplefilter("error")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if beside_gpu:
        torch.cuda.is_available = lambda: True
    try:
        for desk, until, stop_after in calls:
            # Only the first process is heard.
            desk.train(until, stop_after if place.rank == 0 else 0, place)
        leave()
        connection.send(None)
    except BaseException:  # noqa: BLE001 - it is told, and judged there
        connection.send(traceback.format_exc())
