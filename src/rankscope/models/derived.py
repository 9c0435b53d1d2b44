"""Derived models: a trained adapter's folder with other factors, or a trained model with other weights in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.errors import NotAvailable
from rankscope.models.methods.folders import PEFT_PREFIX, save_adapter
from rankscope.models.methods.pack import ADAPTER
from rankscope.models.updates import Update

Factors = tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]


def write_lora(folder: Path, trained: Path, factors: Mapping[str, Factors], source: str) -> tuple[list[str], int]:
    """Write a PEFT folder with other factors than a trained one's, its settings otherwise the same.

    Factors of fewer columns than the widest are filled up with zeros, so that all matrices have one rank and a scaling
    of 1, which every version of PEFT reads.

    Args:
        folder: Gets a folder `adapter`.
        trained: The run's training folder.
        factors: By module `A` and `B`, whose product is the whole update.
        source: The base as the study names it.

    Returns:
        The files' names relative to the folder, and the rank.
    """
    rank = max(A.shape[0] for A, _ in factors.values())
    config = LoraConfig.from_pretrained(str(trained / ADAPTER))
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    config.rank_pattern, config.alpha_pattern, config.init_lora_weights = {}, {}, True
    tensors = {}
    for name, (A, B) in factors.items():
        missing = rank - A.shape[0]
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = torch.nn.functional.pad(A.float(), (0, 0, 0, missing))
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.nn.functional.pad(B.float(), (0, missing))
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # what a killed process left
    return save_adapter(folder, tensors, config, source), rank


@torch.no_grad()
def replace_updates(
    model: PreTrainedModel, updates: Iterable[Update], changed: Callable[[Update], Tensor | None]
) -> None:
    """Give a trained model in memory other updates, tensor by tensor.

    Args:
        model: The trained model.
        updates: What training changed, from disk.
        changed: The update to put in the place of each, oriented like it; None leaves the tensor as it was trained.

    Raises:
        NotAvailable: The files name a tensor otherwise than the model does, as experts that are joined when loaded.
    """
    parameters = dict(model.named_parameters())
    for update in updates:
        new = changed(update)
        if new is None:
            continue
        parameter = parameters.get(f"{update.name}.weight", parameters.get(update.name))
        if parameter is None:
            raise NotAvailable(f"{update.name} of the files is no parameter of {type(model).__name__}")
        W = update.read_W0().double() + new
        parameter.copy_(W.T if _is_transposed(model, update) else W)


def _is_transposed(model: PreTrainedModel, update: Update) -> bool:
    if update.kind != "matrix":
        return False
    module: nn.Module = model.get_submodule(update.name)
    return isinstance(module, Conv1D)
