"""The updates of adapters that are no product of factors: PEFT merges each layer, and the base is subtracted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.errors import UserError
from rankscope.models.base_tensors import BaseTensors
from rankscope.models.methods.folders import PEFT_PREFIX
from rankscope.models.opening import read_adapter, read_model
from rankscope.models.updates import Rows, Update, check_name, finite, in_order, make_update

_PREFIXES = (PEFT_PREFIX, "base_model.")


class CannotMerge(UserError):
    """PEFT cannot write a method's trained model as weights of the base, so there is no update to look at."""


class MergedTensors:
    """Reads the updates of an adapter of any PEFT method; the model is in memory as long as this is.

    An initialisation that alters the base is done again by PEFT when it loads, and what is compared is the true base.

    Args:
        base: The base's tensors.
        folder: A PEFT folder.

    Raises:
        UserError: As for `read_adapter`.
    """

    def __init__(self, base: BaseTensors, folder: Path) -> None:
        self._base = base
        self._peft = read_adapter(read_whole(base), folder)
        self.method = str(self._peft.active_peft_config.peft_type.value).lower()

    def updates(self) -> list[Update]:
        """What the adapter changed, layer by layer; numbers are made when they are asked for.

        Raises:
            CannotMerge: PEFT has no way to merge the method.
        """
        if self._peft.active_peft_config.is_prompt_learning:
            raise CannotMerge(f"{self.method} puts virtual tokens before texts, and no weight of the base changes")
        updates = []
        for module, layer in self._layers():
            for part, parameter in _merged(layer, self.method).named_parameters():
                name = self._base.canonical(f"{module}.{part}")
                check_name(self._base, name)
                source = self._base.source(name)
                shape = tuple(parameter.shape)[::-1] if source.transposed else tuple(parameter.shape)
                update = make_update(self._base, name, shape, source)
                updates.append(replace(update, read_rows=self._rows(layer, part, name)))
        return sorted(updates, key=lambda update: in_order(update.name))

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The base's modules that PEFT has put something on, by their paths in the base."""
        for path, module in self._peft.named_modules():
            if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
                prefix = next(prefix for prefix in _PREFIXES if path.startswith(prefix))
                yield path.removeprefix(prefix), module

    def _rows(self, layer: nn.Module, part: str, name: str) -> Rows:
        source = self._base.source(name)

        def rows(start: int, stop: int) -> Tensor:
            W = _merged(layer, self.method).get_parameter(part).detach()
            W0 = self._base.read(source)
            delta_W = (W.T if source.transposed else W) - W0.double()
            return finite(delta_W, name)[start:stop] if delta_W.ndim else finite(delta_W, name)

        return rows


@torch.no_grad()
def read_whole(base: BaseTensors) -> PreTrainedModel:
    """The base in float32; of one in few bits, with the numbers that these stand for as its weights.

    PEFT would round a merged matrix to few bits again.
    """
    model = read_model(base.folder, torch.float32, base.opening.model_copy(update={"quantization_config": None}))
    for name in base.quantized:
        source, weight = base.source(f"{name}.weight"), model.get_submodule(name).weight
        W0 = base.read(source)
        weight.copy_(W0.T if source.transposed else W0)
    return model


@torch.no_grad()
def _merged(layer: nn.Module, method: str) -> nn.Module:
    """The base's module with a copy of the adapter merged into it, in float64."""
    if isinstance(layer, ModulesToSaveWrapper):
        return copy.deepcopy(layer.modules_to_save[layer.active_adapters[0]]).double()
    # A copy, because merging again would change it again, and taking it back costs digits. In float64, because a
    # difference of near equals keeps few of float32's.
    whole = copy.deepcopy(layer).double()
    try:
        whole.merge()
    except (NotImplementedError, ValueError) as error:  # how PEFT says it; anything else is a bug, there or here
        raise CannotMerge(f"PEFT cannot merge {method} into weights of the base ({error})") from error
    return whole.get_base_layer()
