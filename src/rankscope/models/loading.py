"""Models from folders, in one precision on one device, frozen and with dropout off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankscope.data.hub import fingerprint, model_folder
from rankscope.data.tokens import Tokenizer
from rankscope.errors import MachineError
from rankscope.models.methods import TrainablePack, load_tuned, make_trainable
from rankscope.runs import BaseSettings, RunSettings
from rankscope.store import Store

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load_model(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A causal model from a Hugging Face folder, safetensors only, no code of the folder's run.

    Its own dropout is off for every arm: it is in evaluation mode, and stays there when it is trained.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.to(device).eval().requires_grad_(False)


class Models:
    """The models of one process: one base in memory at a time, tuned ones made from it and given back.

    Args:
        store: Where tuned weights lie.
        dtype: `float32` or `float64`.
        device: A torch device.
    """

    def __init__(self, store: Store, dtype: str, device: str) -> None:
        self.store = store
        self.dtype = DTYPES[dtype]
        self.device = device
        self._base: tuple[BaseSettings, PreTrainedModel] | None = None
        self._tokenizers: dict[BaseSettings, Tokenizer] = {}

    def base_folder(self, settings: BaseSettings) -> Path:
        """The folder that a base is read from."""
        return model_folder(settings.source, settings.revision)

    def check_base(self, settings: BaseSettings) -> None:
        """Compare a base's files with those that the study was planned for.

        Raises:
            MachineError: They have changed, so that what comes next would not fit what is there.
        """
        folder = self.base_folder(settings)
        if fingerprint(folder) != settings.fingerprint:
            what = f"the files of base {settings.name} in {folder} have changed since the study was planned"
            raise MachineError(f"{what}\n  mend: put them back, or run the study again with the new ones")

    def tokenizer(self, settings: BaseSettings) -> Tokenizer:
        """The base's tokenizer."""
        if settings not in self._tokenizers:
            self._tokenizers[settings] = Tokenizer.from_folder(self.base_folder(settings))
        return self._tokenizers[settings]

    def base(self, settings: BaseSettings) -> PreTrainedModel:
        """The base itself, as it was pretrained."""
        if self._base is None or self._base[0] != settings:
            self._base = None  # freed before the next one is read
            self._base = settings, load_model(self.base_folder(settings), self.dtype, self.device)
        return self._base[1]

    @contextmanager
    def trainable(self, runs: tuple[RunSettings, ...]) -> Iterator[TrainablePack]:
        """Runs of one base and method, ready to be trained together; afterwards the base is as before."""
        with self._whole_base():
            pack = make_trainable(self.base(runs[0].base), runs)
            yield pack
            self._give_back(pack)

    @contextmanager
    def tuned(self, run: RunSettings) -> Iterator[PreTrainedModel]:
        """A trained run's model."""
        with self._whole_base():
            pack = load_tuned(self.base(run.base), (run,), (self.store.train(run.run_id),))
            yield pack.model
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
