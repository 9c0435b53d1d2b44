"""Any method of PEFT in PEFT's own model: one run on one copy of the base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.methods.options import options_of
from rankscope.models.group import ALONE
from rankscope.models.methods.adalora import RankBudget
from rankscope.models.methods.folders import save_adapter
from rankscope.models.methods.initial import configured, lora_config, naming_the_arm
from rankscope.models.methods.lora import lora_groups
from rankscope.models.methods.pack import ADAPTER, Calibration, Texts, num_parameters, put_back
from rankscope.models.methods.prompt import PromptModel
from rankscope.models.seeding import OwnRandomness, seeded
from rankscope.runs import RunSettings

# Vectors of normalisations and biases do not decay, as in transformers' Trainer.
_NOT_DECAYED = re.compile(r"norm|bias")


class PeftPack:
    """One run in PEFT's own model; `fresh` starts it, `saved` reads it back.

    Args:
        wrapped: PEFT's model around the base.
        runs: The one run.
        num_base_parameters: Of the base before PEFT came.
    """

    group = ALONE

    def __init__(self, wrapped: PeftModel, runs: tuple[RunSettings, ...], num_base_parameters: int) -> None:
        if len(runs) != 1:
            raise ValueError(f"runs of {runs[0].arm.method} cannot share one base")
        self._peft = wrapped
        self.runs = runs
        is_prompt = wrapped.active_peft_config.is_prompt_learning
        self.model: PreTrainedModel = PromptModel(wrapped) if is_prompt else wrapped.get_base_model()
        # What PEFT puts into a base's modules is not always taken out again without a trace.
        self.alters_base = not is_prompt
        self.num_base_parameters = num_base_parameters
        self._generator = torch.Generator(self.model.device).manual_seed(runs[0].seed)
        self._randomness = OwnRandomness(self.model, self._generator)
        self._budget = RankBudget.of(wrapped, runs[0])

    @classmethod
    def fresh(cls, model: PreTrainedModel, runs: tuple[RunSettings, ...], calibration: Calibration | None) -> PeftPack:
        """The run before its first step, as PEFT initialises it under the run's seed."""
        number = num_parameters(model)
        with seeded(runs[0].seed), naming_the_arm(runs[0]):
            return cls(get_peft_model(model, peft_config(model, runs[0])), runs, number)

    @classmethod
    def saved(cls, model: PreTrainedModel, runs: tuple[RunSettings, ...], folder: Path) -> PeftPack:
        """The trained run from its training folder, for use."""
        number = num_parameters(model)
        wrapped = PeftModel.from_pretrained(model, str(folder / ADAPTER), low_cpu_mem_usage=False)
        return cls(wrapped.eval(), runs, number)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        """All rows are the one run's; PEFT's own modules learn whether they drop out."""
        self._randomness.is_on = is_training
        for module in self._own_modules():
            if module.training != is_training:
                module.train(is_training)

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """All that PEFT has made trainable."""
        weight_decay = self.runs[0].optimization.weight_decay
        tensors = self._trained()
        decayed = {name: tensor for name, tensor in tensors.items() if not _NOT_DECAYED.search(name)}
        groups = lora_groups(decayed, self.runs[0].arm.options, weight_decay)
        groups.append({"params": [tensors[name] for name in tensors if name not in decayed], "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def regularisation(self, index: int) -> Tensor | None:
        """AdaLoRA's orthogonality loss."""
        return self._budget.orthogonality() if self._budget else None

    def after_step(self, index: int, step: int) -> None:
        """AdaLoRA's budget."""
        if self._budget:
            self._budget.after_step(step)

    def state(self, index: int) -> dict[str, Tensor]:
        """What PEFT has made trainable, by its names in PEFT's model, and AdaLoRA's importances."""
        return self._trained() | (self._budget.state() if self._budget else {})

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved tensors back."""
        put_back(self._trained(), state)
        if self._budget:
            self._budget.load_state(state)

    def generator(self, index: int) -> torch.Generator:
        """What PEFT's dropouts, and whatever else draws while the model runs, draw from."""
        return self._generator

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `PeftModel.from_pretrained`."""
        # False: the base's own embeddings are not written beside an adapter that does not train them.
        tensors = get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        config = self._peft.active_peft_config
        return save_adapter(folder, tensors, config, self.runs[0].base.source)

    def close(self) -> None:
        """Take the hooks away; the modules stay where `alters_base` says so."""
        self._randomness.remove()
        if isinstance(self.model, PromptModel):
            self.model.remove()

    def _trained(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self._peft.named_parameters() if parameter.requires_grad}

    def _own_modules(self) -> list[nn.Module]:
        """PEFT's modules: the layers that it put into the base, or its encoder of virtual tokens."""
        if isinstance(self.model, PromptModel):
            return list(self._peft.prompt_encoder.values())
        return [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]


def peft_config(model: PreTrainedModel, run: RunSettings) -> PeftConfig:
    """PEFT's configuration of a run's arm, with what PEFT wants to be told of model and run."""
    method, options = run.arm.method, dict(run.arm.options)
    if method == "lora":
        return lora_config(model, run)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.upper())]
    names = {field.name for field in fields(kind)}
    if "fan_in_fan_out" in names:
        options["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in model.modules())
    if "total_step" in names:
        options["total_step"] = run.num_steps
    if "tokenizer_name_or_path" in names:
        options["tokenizer_name_or_path"] = model.name_or_path
    options.pop("loraplus_lr_ratio", None)
    # Options that this PEFT does not have yet are refused by it; those that nobody set are left to it.
    known = options_of(method)
    said = {name: value for name, value in options.items() if name in names or value != known[name].default}
    return configured(kind, {"task_type": "CAUSAL_LM", **said}, run)
