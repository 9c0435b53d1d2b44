"""LoRA runs that share one frozen base: what PEFT initialised, in packed layers, saved as PEFT's folders."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.models.group import ALONE
from rankscope.models.methods.folders import PEFT_PREFIX, Adapter, ModuleFactors, save_adapter
from rankscope.models.methods.initial import converted, converted_config
from rankscope.models.methods.pack import Texts, num_parameters, put_back
from rankscope.models.packed import PackedLoraLinear, Routing, install, remove
from rankscope.runs import RunSettings


class LoraPack:
    """LoRA runs over one frozen base, each with its own rows, rank, scaling and dropout.

    Args:
        model: The base, frozen.
        runs: The runs.
        adapters: Each run's adapter: as PEFT initialised it, or read from disk.
    """

    group = ALONE

    def __init__(self, model: PreTrainedModel, runs: tuple[RunSettings, ...], adapters: Sequence[Adapter]) -> None:
        self.model = model
        self.runs = runs
        self.alters_base = any(adapter.initial for adapter in adapters)
        self.num_base_parameters = num_parameters(model)
        self._adapters = tuple(adapters)
        names = list(adapters[0].factors)
        if any(list(adapter.factors) != names for adapter in adapters):
            raise ValueError("runs with different target modules cannot share a pack")
        if self.alters_base and len(runs) > 1:
            raise ValueError("an initialisation that alters the base leaves none for other runs")
        head = model.get_output_embeddings()
        if len(runs) > 1 and any(model.get_submodule(name) is head for name in names):
            raise ValueError("the output head sees scored positions only, and cannot tell whose they are")
        generators = [torch.Generator(model.device).manual_seed(run.seed) for run in runs]
        self._routing = Routing(generators=generators)
        self._layers: dict[str, PackedLoraLinear] = install(model, names, self._routing)
        for adapter in adapters:
            for name, factors in adapter.factors.items():
                self._add(name, factors, adapter.config.lora_dropout)

    def _add(self, name: str, factors: ModuleFactors, dropout: float) -> None:
        device = next(self.model.get_submodule(name).base_layer.parameters()).device
        magnitude = None if factors.magnitude is None else factors.magnitude.to(device)
        self._layers[name].add(factors.A.to(device), factors.B.to(device), factors.scaling, dropout, magnitude)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        """See `TrainablePack.route`."""
        self._routing.members, self._routing.num_rows = tuple(members), tuple(num_rows)
        self._routing.is_training, self._routing.texts = is_training, texts

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """All of the run's tensors; with LoRA+ in two groups, `A`, and with a higher rate `B` and DoRA's lengths."""
        run = self.runs[index]
        return lora_groups(self.state(index), run.arm.options, run.optimization.weight_decay)

    def regularisation(self, index: int) -> Tensor | None:
        """None."""
        return None

    def after_step(self, index: int, step: int) -> None:
        """Nothing to do."""

    def state(self, index: int) -> dict[str, Tensor]:
        """The run's `A` and `B`, and with DoRA its lengths, under the names that PEFT's files use."""
        tensors = {}
        for name, layer in self._layers.items():
            tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = layer.A[index]
            tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = layer.B[index]
            if layer.magnitude[index].numel():
                tensors[f"{PEFT_PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude[index]
        return tensors

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved `A` and `B` back."""
        put_back(self.state(index), state)

    def generator(self, index: int) -> torch.Generator:
        """What the run's dropout draws from, on the model's device."""
        return self._routing.generators[index]

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `PeftModel.from_pretrained`, which is given the true base."""
        adapter = self._adapters[index]
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state(index).items()}
        config = copy.deepcopy(adapter.config)
        if adapter.initial:
            tensors = converted(tensors, adapter.initial)
            config = converted_config(config)
        return save_adapter(folder, tensors, config, self.runs[index].base.source)

    def fold(self) -> None:
        """Put the update of a lone run into the base's weights until `close`; its adapter cannot be trained then."""
        if len(self.runs) > 1:
            raise ValueError("the updates of several runs cannot all be in one base's weights")
        shared = self.model.get_input_embeddings().weight  # a tied head's update is no update of the embeddings
        for layer in self._layers.values():
            if layer.base_layer.weight is not shared:
                layer.fold(0)

    def close(self) -> None:
        """Take the adapters out of the base."""
        for layer in self._layers.values():
            layer.unfold()
        remove(self.model, self._layers)


def lora_groups(tensors: dict[str, Tensor], options: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """LoRA's parameters as AdamW takes them.

    Args:
        tensors: By names that tell `lora_B` from the others.
        options: Of the arm; `loraplus_lr_ratio` is the rate of `B` (and of vectors, as in PEFT) over that of `A`.
        weight_decay: AdamW's, of all of them.
    """
    ratio = options.get("loraplus_lr_ratio") or 1.0
    if ratio == 1.0:
        return [{"params": list(tensors.values()), "weight_decay": weight_decay}]
    fast = {name for name, tensor in tensors.items() if "lora_B" in name or tensor.ndim == 1}
    slow = [tensor for name, tensor in tensors.items() if name not in fast]
    return [
        {"params": slow, "weight_decay": weight_decay},
        {"params": [tensors[name] for name in tensors if name in fast], "weight_decay": weight_decay,
         "rate_factor": ratio},
    ]  # fmt: skip
