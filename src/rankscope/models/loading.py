"""Models from folders, in one precision on one device, frozen and with dropout off."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.data.examples import TokenisedExample, examples_from_frame
from rankscope.data.hub import fingerprint, model_folder
from rankscope.data.order import batches
from rankscope.data.tokens import Tokenizer
from rankscope.errors import MachineError, UnusableBase, UserError
from rankscope.models.group import join
from rankscope.models.methods.making import load_tuned, make_sharded, make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.models.opening import AS_IT_IS, check_looks_back, read_model
from rankscope.plan import Place
from rankscope.runs import BaseSettings, Opening, RunSettings
from rankscope.store import EXAMPLES, Store

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Initialisations that look at examples see those of so many steps.
_FIRST_STEPS = 8


def load_model(folder: Path, dtype: torch.dtype, device: str, opening: Opening = AS_IT_IS) -> PreTrainedModel:
    """A causal model from a Hugging Face folder, safetensors only; code of the folder's runs if the study says so.

    Its own dropout is off for every arm: it is in evaluation mode, and stays there when it is trained.

    Raises:
        UserError: The folder lacks weights, or the model sees what comes later in a text.
    """
    model = read_model(folder, dtype, opening, device).to(device).eval().requires_grad_(False)
    check_looks_back(model, folder, opening)
    return model


class Models:
    """The models of one process: one base in memory at a time, tuned ones made from it and given back.

    Args:
        store: Where tuned weights lie.
        dtype: `float32` or `float64`.
        device: A torch device.
        place: This process's among those that hold whole models in parts while they train them.
        offload: Such models lie in the host's memory.
    """

    def __init__(
        self, store: Store, dtype: str, device: str, place: Place | None = None, *, offload: bool = False
    ) -> None:
        self.store = store
        self.dtype = DTYPES[dtype]
        self.device = device
        self._place = place
        self._offload = offload
        self._base: tuple[BaseSettings, PreTrainedModel] | None = None
        self._tokenizers: dict[BaseSettings, Tokenizer] = {}

    def base_folder(self, settings: BaseSettings) -> Path:
        """The folder that a base is read from."""
        return model_folder(settings.source, settings.revision, with_code=settings.opening.trust_remote_code)

    def check_base(self, settings: BaseSettings) -> None:
        """Compare a base's files with those that the study was planned for.

        Raises:
            MachineError: They have changed, so that what comes next would not fit what is there.
        """
        folder = self.base_folder(settings)
        if fingerprint(folder, with_code=settings.opening.trust_remote_code) != settings.fingerprint:
            what = f"the files of base {settings.name} in {folder} have changed since the study was planned"
            raise MachineError(f"{what}\n  mend: put them back, or run the study again with the new ones")

    def tokenizer(self, settings: BaseSettings) -> Tokenizer:
        """The base's tokenizer."""
        if settings not in self._tokenizers:
            self._tokenizers[settings] = Tokenizer.from_folder(self.base_folder(settings))
        return self._tokenizers[settings]

    def base(self, settings: BaseSettings) -> PreTrainedModel:
        """The base itself, as it was pretrained.

        Raises:
            UnusableBase: It is no model that can be studied.
        """
        if self._base is None or self._base[0] != settings:
            self._base = None  # freed before the next one is read
            self._base = settings, self._read(settings, self.device)
        return self._base[1]

    def _read(self, settings: BaseSettings, device: str) -> PreTrainedModel:
        try:
            return load_model(self.base_folder(settings), self.dtype, device, settings.opening)
        except UserError as error:
            where = f"base {settings.name} ({error.where})" if error.where else f"base {settings.name}"
            raise UnusableBase(error.what, where=where, mend=error.mend) from error

    @contextmanager
    def trainable(self, runs: tuple[RunSettings, ...]) -> Iterator[TrainablePack]:
        """Runs of one base and method, ready to be trained together; afterwards the base is as before."""
        with self._whole_base():
            is_in_parts = self._place is not None and runs[0].arm.capabilities.saves == "model"
            pack = self._in_parts(runs) if is_in_parts else self._whole(runs)
            yield pack
            self._give_back(pack)

    def _whole(self, runs: tuple[RunSettings, ...]) -> TrainablePack:
        return make_trainable(self.base(runs[0].base), runs, self._first_batches)

    def _in_parts(self, runs: tuple[RunSettings, ...]) -> TrainablePack:
        """A run of whose model this process holds a part; on a device no more than that is ever there at once."""
        self._base = None
        group = join(self._place, self.device)
        with group.in_turn():
            return make_sharded(self._read(runs[0].base, "cpu"), runs, group, offload=self._offload)

    def _first_batches(self, run: RunSettings) -> list[dict[str, Tensor]]:
        """The batches of a run's first steps, for initialisations that look at examples before them."""
        path = self.store.training_data(run.base.name, run.training_set.name) / EXAMPLES
        examples = examples_from_frame(pl.read_parquet(path).filter(pl.col("split") == "train"))
        order = batches(len(examples), run.optimization.batch_size, run.num_steps, run.seed)
        return [padded_batch([examples[i] for i in batch], self.device) for batch in order[:_FIRST_STEPS]]

    @contextmanager
    def tuned(self, run: RunSettings, folder: Path | None = None) -> Iterator[PreTrainedModel]:
        """A trained run's model, or the run's with the adapter or weights of another folder."""
        with self._whole_base():
            pack = load_tuned(self.base(run.base), (run,), (folder or self.store.train(run.run_id),))
            yield pack.model
            self._give_back(pack)

    @contextmanager
    def tuned_together(self, runs: tuple[RunSettings, ...]) -> Iterator[TrainablePack]:
        """Trained runs of one base that pack, each with its own rows of a batch."""
        with self._whole_base():
            pack = load_tuned(self.base(runs[0].base), runs, [self.store.train(run.run_id) for run in runs])
            yield pack
            self._give_back(pack)

    @contextmanager
    def _whole_base(self) -> Iterator[None]:
        """Whatever goes wrong while a base is worked on, what is left of it is not used again."""
        try:
            yield
        except BaseException:
            self._base = None
            raise

    def _give_back(self, pack: TrainablePack) -> None:
        pack.close()
        if pack.alters_base:
            # Reading it again costs less than a second copy in memory for the whole run.
            self._base = None
        if pack.group.device is not None:
            gc.collect()  # a model in parts is held by circles


def padded_batch(examples: Sequence[TokenisedExample], device: str) -> dict[str, Tensor]:
    """Examples as transformers' models take them, padded on the right; labels are -100 where nothing is learned."""
    length = max(len(example.input_ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        number = len(example.input_ids)
        ids[row, :number] = torch.tensor(example.input_ids)
        mask[row, :number] = 1
        labels[row, example.num_prompt_tokens : number] = ids[row, example.num_prompt_tokens : number]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}
