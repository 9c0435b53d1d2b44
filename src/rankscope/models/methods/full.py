"""Full fine-tuning: the base itself is trained, or a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.data.targets import layer_number
from rankscope.errors import DamagedFile
from rankscope.models.group import ALONE
from rankscope.models.methods.pack import MODEL, Texts, num_parameters, put_back
from rankscope.runs import RunSettings


class FullPack:
    """Full fine-tuning: the base itself is trained, so a pack holds one run.

    Args:
        model: The base, frozen.
        runs: The one run; its options may leave layers, or embeddings and head, as they are.
    """

    alters_base = True
    group = ALONE

    def __init__(self, model: PreTrainedModel, runs: tuple[RunSettings, ...]) -> None:
        if len(runs) != 1:
            raise ValueError("full fine-tuning changes the base, so its runs cannot share one")
        self.model = model
        self.runs = runs
        self.num_base_parameters = num_parameters(model)
        self._generator = torch.Generator().manual_seed(runs[0].seed)
        self._trained = _trained_names(model, runs[0].arm.options)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trained)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        """Nothing to do: all rows are the one run's."""

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """All that is trained; biases and normalisations (vectors) do not decay, as in transformers' Trainer."""
        parameters = list(self.state(index).values())
        weight_decay = self.runs[0].optimization.weight_decay
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def regularisation(self, index: int) -> Tensor | None:
        """None."""
        return None

    def after_step(self, index: int, step: int) -> None:
        """Nothing to do."""

    def state(self, index: int) -> dict[str, Tensor]:
        """Every trained parameter by its name; a tied one once."""
        return {name: parameter for name, parameter in self.model.named_parameters() if name in self._trained}

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved parameters back."""
        put_back(self.state(index), state)

    def generator(self, index: int) -> torch.Generator:
        """Full fine-tuning draws nothing: the base's own dropout is off for every arm."""
        return self._generator

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `from_pretrained`."""
        self.model.save_pretrained(folder / MODEL, safe_serialization=True)
        return [f"{MODEL}/{path.name}" for path in (folder / MODEL).iterdir()]

    def load_folder(self, folder: Path) -> None:
        """Read the weights that `save` wrote into the model in hand."""
        # The class in hand: a base of its own code needs no further leave.
        trained, found = type(self.model).from_pretrained(
            folder / MODEL,
            dtype=self.model.dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        if found["missing_keys"] or found["unexpected_keys"]:
            raise DamagedFile(f"{folder / MODEL} does not hold the weights of its base's architecture")
        self.load_state(0, dict(trained.named_parameters()))
        self.model.requires_grad_(False)

    def close(self) -> None:
        """Nothing to take away."""
        self.model.requires_grad_(False)


def _trained_names(model: PreTrainedModel, options: dict[str, Any]) -> set[str]:
    """The parameters that an arm trains: those of its layers, and of what lies outside layers all but what is frozen.

    A head that is tied to the embeddings is one parameter with them, and frozen with them.
    """
    layers = options.get("layers")
    kept_apart: set[int] = set()
    if options.get("freeze_embeddings"):
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]  # of positions too
        for module in (*tables, model.get_output_embeddings()):
            kept_apart |= {id(parameter) for parameter in module.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in kept_apart
        and (layers is None or layer_number(name) is None or layer_number(name) in layers)
    }
