"""LoRA's start as PEFT makes it under the run's seed, with the preprocessing that an initialisation needs.

PEFT silently keeps another initialisation where nobody preprocesses: `A` of EVA stays random, LoRA-GA falls back to
LoRA's own. So what each needs is done here, with PEFT's own functions, on the batches of the run's first steps.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.lora import LoraLayer, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.errors import UserError
from rankscope.models.base_tensors import BaseTensors
from rankscope.models.methods.folders import PEFT_PREFIX, Adapter, ModuleFactors
from rankscope.models.methods.pack import Calibration
from rankscope.models.quantized import dequantized, is_quantized
from rankscope.models.seeding import seeded
from rankscope.runs import RunSettings

Batches = list[dict[str, Tensor]]
Config = TypeVar("Config")
# What PEFT raises where it does not take an option or a base.
_REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError)
_NEEDS = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config"}
_KINDS = {"eva_config": EvaConfig, "corda_config": CordaConfig, "lora_ga_config": LoraGAConfig}


def initial_adapter(model: PreTrainedModel, run: RunSettings, calibration: Calibration | None = None) -> Adapter:
    """PEFT's own initialisation under the run's seed, taken out of PEFT's layers again.

    Anyone who calls `torch.manual_seed(seed)` and `get_peft_model(model, config)` starts from the same numbers. An
    initialisation that alters the base leaves it altered.

    Args:
        model: The base, frozen.
        run: Whose arm says how.
        calibration: The run's first batches, for initialisations that look at examples.

    Raises:
        UserError: PEFT cannot do it with this base.
    """
    config = lora_config(model, run)
    alters = run.arm.capabilities.alters_base
    with seeded(run.seed), frozen_afterwards(model), naming_the_arm(run):
        _preprocess(model, config, run, calibration)
        wrapped = _wrapped(model, config)
        if config.init_lora_weights == "eva":
            batches = _batches(run, calibration)
            initialize_lora_eva_weights(wrapped, batches, show_progress_bar=False)
            config = wrapped.peft_config["default"]
        if run.arm.options.get("init_lora_weights") == "loftq":
            start_from_rounding(wrapped, _true_base(model, run))
        factors = dict(_iter_factors(wrapped, run))
        wrapped.unload()
    # PEFT keeps what `all-linear` stood for as a set; files and comparisons want an order.
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    initial = {name: ModuleFactors(f.A.clone(), f.B.clone(), f.scaling) for name, f in factors.items()}
    return Adapter(config, factors, initial if alters else {})


def lora_config(model: PreTrainedModel, run: RunSettings) -> LoraConfig:
    """PEFT's configuration of a run's arm."""
    options = {name: value for name, value in run.arm.options.items() if name != "loraplus_lr_ratio"}
    if options.get("init_lora_weights") == "loftq":
        options["init_lora_weights"] = True  # PEFT's own loftq is for bases that are not quantised yet
    if needed := _NEEDS.get(options.get("init_lora_weights", "")):
        options[needed] = configured(_KINDS[needed], options.get(needed) or {}, run)
    has_conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    settings = {"bias": "none", "task_type": "CAUSAL_LM", "fan_in_fan_out": has_conv1d, **options}
    return configured(LoraConfig, settings, run)


def configured(kind: type[Config], options: dict[str, Any], run: RunSettings) -> Config:
    """One of PEFT's configurations.

    Raises:
        UserError: PEFT does not have one of the options, or refuses its value.
    """
    try:
        return kind(**options)
    except _REFUSALS as error:
        raise _about_the_arm(error, run) from error


def converted(tensors: dict[str, Tensor], initial: dict[str, ModuleFactors]) -> dict[str, Tensor]:
    """An adapter of the altered base as one of the true base, PEFT's way: twice the rank, `[B -B0] [A; A0]`.

    Args:
        tensors: By the names of PEFT's files.
        initial: What was taken out of the base.
    """
    found = {}
    for name, start in initial.items():
        key = f"{PEFT_PREFIX}{name}"
        A, B = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
        found[f"{key}.lora_A.weight"] = torch.cat([A, start.A.to(A)], dim=0)
        found[f"{key}.lora_B.weight"] = torch.cat([B, -start.B.to(B)], dim=1)
    return found


def converted_config(config: LoraConfig) -> LoraConfig:
    """The configuration of a converted adapter: ranks and alphas twice as high, so that the scaling is the same."""
    config.init_lora_weights = True
    config.corda_config = config.lora_ga_config = None
    config.r *= 2
    config.lora_alpha *= 2 if not config.use_rslora else 2**0.5
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}
    return config


def _true_base(model: PreTrainedModel, run: RunSettings) -> BaseTensors:
    """The base's tensors as its files have them, in no few bits."""
    return BaseTensors(Path(model.name_or_path), run.base.opening.model_copy(update={"quantization_config": None}))


@torch.no_grad()
def start_from_rounding(wrapped: nn.Module, base: BaseTensors) -> None:
    """LoftQ (Li et al. 2023, one step): `scaling * B @ A` is the best approximation of what 4 bits have lost of `W0`.

    As PEFT's `replace_lora_weights_loftq`, which leaves the scaling out: with `lora_alpha` = `r` both are the same.

    Args:
        wrapped: PEFT's model over the base in 4 bits.
        base: The true base.
    """
    for name, layer in wrapped.named_modules():
        if not isinstance(layer, LoraLayer) or not is_quantized(layer.get_base_layer()):
            continue
        rounded = dequantized(layer.get_base_layer())
        lost = base.read(base.source(f"{name.removeprefix(PEFT_PREFIX)}.weight")).to(rounded) - rounded
        U, S, Vh = torch.linalg.svd(lost, full_matrices=False)
        adapter = next(iter(layer.lora_A))
        rank, half = layer.r[adapter], S.sqrt()
        layer.lora_A[adapter].weight.copy_(half[:rank, None] * Vh[:rank])
        layer.lora_B[adapter].weight.copy_(U[:, :rank] * half[:rank] / layer.scaling[adapter])


def _preprocess(model: PreTrainedModel, config: LoraConfig, run: RunSettings, calibration: Calibration | None) -> None:
    """What PEFT wants to be done before it wraps the model."""
    if config.init_lora_weights not in ("corda", "lora_ga"):
        return
    # These two look modules up by name, before PEFT resolves the word.
    _maybe_include_all_linear_layers(config, model)
    batches = _batches(run, calibration)
    if config.init_lora_weights == "corda":
        preprocess_corda(model, config, run_model=lambda: _run(model, batches))
    else:
        preprocess_loraga(model, config, train_step=lambda: _step(model, batches))


def _batches(run: RunSettings, calibration: Calibration | None) -> Batches:
    if calibration is None:
        raise ValueError(f"{run.arm.label} starts from examples, and none are given")
    return calibration(run)


@torch.no_grad()
def _run(model: PreTrainedModel, batches: Batches) -> None:
    """Show the model every example alone: CorDA's covariance would count padding."""
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            model(input_ids=ids[mask.bool()][None], use_cache=False)


def _step(model: PreTrainedModel, batches: Batches) -> None:
    model.eval()  # PEFT has put it into training mode, where the base would drop out
    with warnings.catch_warnings():
        # PEFT counts backward passes with hooks, and nothing before the first of its layers needs a gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for batch in batches:
            model(**batch, use_cache=False).loss.backward()


def _wrapped(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT recommends weights on the meta device for EVA; they only save memory.
        warnings.filterwarnings("ignore", message="lora with eva initialization")
        # It would train without them: names of parameters differ between versions of transformers.
        warnings.filterwarnings("error", message=".*no parameter was matched")
        return get_peft_model(model, config)


def _iter_factors(wrapped: PeftModel, run: RunSettings) -> Iterator[tuple[str, ModuleFactors]]:
    for name, layer in wrapped.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if not isinstance(layer, PeftLoraLinear) and not is_quantized(layer.get_base_layer()):
            kind = type(layer.get_base_layer()).__name__
            mend = "take it out of target_modules"
            raise UserError(f"LoRA on {kind} ({name}) is not supported", where=run.arm.label, mend=mend)
        adapter = next(iter(layer.lora_A))
        A, B = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        if A.shape[1] != layer.in_features or B.shape[0] != layer.out_features or A.shape[0] != B.shape[1]:
            text = f"PEFT's {run.arm.options.get('init_lora_weights')} initialisation does not fit {name}"
            raise UserError(text, where=f"arm {run.arm.label}", mend="choose another one, or a lower rank")
        lengths = layer.lora_magnitude_vector
        magnitude = lengths[adapter].weight.detach() if adapter in lengths else None
        yield name.removeprefix(PEFT_PREFIX), ModuleFactors(A, B, float(layer.scaling[adapter]), magnitude)


@contextlib.contextmanager
def frozen_afterwards(model: nn.Module) -> Iterator[None]:
    """PEFT sets requires_grad of the whole base; afterwards it is frozen again."""
    try:
        yield
    finally:
        model.requires_grad_(False)


@contextlib.contextmanager
def naming_the_arm(run: RunSettings) -> Iterator[None]:
    """PEFT says with plain errors what an arm or a base does not allow; a person gets the arm's name too.

    An error of the same kind from code of ours is a bug, and stays what it is.
    """
    try:
        yield
    except _REFUSALS as error:
        if not _is_from_peft(error):
            raise
        raise _about_the_arm(error, run) from error


def _is_from_peft(error: Exception) -> bool:
    """Whether PEFT's code is nearer than ours to where the error was raised, or what PEFT would need is missing."""
    packages = [
        frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    nearest = next((name for name in reversed(packages) if name in ("peft", "rankscope")), None)
    return nearest == "peft" or isinstance(error, ImportError)


def _about_the_arm(error: Exception, run: RunSettings) -> UserError:
    return UserError(str(error), where=f"arm {run.arm.label}", mend="change the arm's options")
