"""PEFT's adapter folders: written so that `PeftModel.from_pretrained` reads them, and read back as factors."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.methods.resolve import pattern_value
from rankscope.models.methods.pack import ADAPTER

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class ModuleFactors:
    """LoRA on one module: `scaling * B @ A`, and with DoRA the lengths of the matrix's rows."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    scaling: float
    magnitude: Float[Tensor, " d_out"] | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter outside PEFT's layers.

    Attributes:
        config: PEFT's configuration of it.
        factors: By module.
        initial: By module what `A` and `B` were, where the initialisation took their product out of the base.
    """

    config: LoraConfig
    factors: dict[str, ModuleFactors]
    initial: dict[str, ModuleFactors] = field(default_factory=dict)


def save_adapter(folder: Path, tensors: dict[str, Tensor], config: PeftConfig, source: str) -> list[str]:
    """Write a PEFT folder; returns the files' names relative to the run's training folder.

    Args:
        folder: The run's training folder.
        tensors: By the names of PEFT's files.
        config: PEFT's configuration; in the folder it is marked as being for inference.
        source: The base as the study names it.
    """
    target = folder / ADAPTER
    target.mkdir(parents=True, exist_ok=True)
    # Clones, because methods share tensors between modules and safetensors refuses shared memory.
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(kept, target / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = copy.deepcopy(config)  # the model in hand would take itself for one in use
    config.base_model_name_or_path = source
    config.inference_mode = True
    config.save_pretrained(str(target))
    return [f"{ADAPTER}/{SAFETENSORS_WEIGHTS_NAME}", f"{ADAPTER}/{CONFIG_NAME}"]


def read_lora(folder: Path) -> Adapter:
    """The LoRA adapter of a run's training folder."""
    config = LoraConfig.from_pretrained(str(folder / ADAPTER))
    tensors = load_file(folder / ADAPTER / SAFETENSORS_WEIGHTS_NAME)
    factors = {}
    for key, A in tensors.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name, B = stem.removeprefix(PEFT_PREFIX), tensors[f"{stem}.lora_B.weight"]
            magnitude = tensors.get(f"{stem}.lora_magnitude_vector")
            factors[name] = ModuleFactors(A, B, scaling_of(config, name, A.shape[0]), magnitude)
    return Adapter(config, factors)


def scaling_of(config: LoraConfig, module: str, rank: int) -> float:
    """PEFT's factor on `B @ A` for one module: alpha/rank, or alpha/sqrt(rank) for rank-stabilised LoRA.

    Args:
        config: PEFT's configuration.
        module: The module's path.
        rank: As it stands in the tensors, whatever `rank_pattern` made of `r`.
    """
    alpha = float(pattern_value(config.alpha_pattern, module, config.lora_alpha))
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
