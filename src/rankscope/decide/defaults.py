"""The recommended arm as files that other programs start from: PEFT's configuration, TRL, Axolotl, LLaMA-Factory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rankscope.methods.options import PEFT_METHODS
from rankscope.runs import RunSettings

ADAPTER_CONFIG, TRL, AXOLOTL, LLAMA_FACTORY = "adapter_config.json", "trl.py", "axolotl.yaml", "llama_factory.yaml"
# What each of them calls LoRA's options; an arm with others that say something has no file of theirs.
_AXOLOTL_OPTIONS = {
    "r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora", "loraplus_lr_ratio": "loraplus_lr_ratio",
}  # fmt: skip
_LLAMA_FACTORY_OPTIONS = {
    "r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_dora": "use_dora",
    "use_rslora": "use_rslora", "loraplus_lr_ratio": "loraplus_lr_ratio",
}  # fmt: skip


def default_files(run: RunSettings) -> dict[str, str]:
    """The texts of the files, by name; only those of programs that can do what the arm does.

    Args:
        run: A run of the recommended arm at its chosen rate.
    """
    config = adapter_config(run)
    files = {ADAPTER_CONFIG: None if config is None else json.dumps(config, indent=2) + "\n", TRL: _trl(run, config)}
    for name, keys in ((AXOLOTL, _axolotl(run)), (LLAMA_FACTORY, _llama_factory(run))):
        files[name] = None if keys is None else "".join(f"{key}: {_yaml(value)}\n" for key, value in keys.items())
    return {name: text for name, text in files.items() if text is not None}


def adapter_config(run: RunSettings) -> dict[str, Any] | None:
    """The arm as PEFT's configuration classes read it from `adapter_config.json`; None where it is none of PEFT's."""
    method = PEFT_METHODS.get(run.arm.method)
    if method is None:
        return None
    # An option that says nothing is left to PEFT; LoRA+ is the optimizer's, and PEFT does not know it.
    options = {name: value for name, value in run.arm.options.items() if value is not None and name in method.options}
    options = {name: value for name, value in options.items() if name != "loraplus_lr_ratio"}
    source = run.base.source
    kind = {"peft_type": run.arm.method.upper(), "task_type": "CAUSAL_LM", "base_model_name_or_path": source}
    return {**kind, **options}


def _trl(run: RunSettings, config: Mapping[str, Any] | None) -> str | None:
    """Arguments for TRL's SFTTrainer; None where the arm is neither an adapter of PEFT's nor the whole model."""
    is_full = run.arm.method == "full" and not _said(run)
    if config is None and not is_full:
        return None
    lines = ["from trl import SFTConfig", ""]
    if config is not None:
        name = "".join(part.capitalize() for part in run.arm.method.split("_"))
        lines = ["from peft import PeftConfig", *lines, f"# {name}: the file beside this one is PEFT's own format."]
        lines += ['peft_config = PeftConfig.from_pretrained(".")', ""]
    if ratio := run.arm.options.get("loraplus_lr_ratio"):
        lines.append(f"# LoRA+: B's parameters have {ratio:g} times the rate (peft.optimizers).")
    lines.append("# The effective batch: on several devices, or with accumulation, divide it.")
    arguments = {
        "learning_rate": run.learning_rate,
        **_length(run, "num_train_epochs"),
        "per_device_train_batch_size": run.optimization.batch_size,
        "lr_scheduler_type": run.optimization.lr_scheduler,
        "warmup_steps": _warmup_steps(run),
        **_adamw(run),
        "max_length": run.optimization.max_length,
        "completion_only_loss": True,
        "seed": run.seed,
    }
    lines += ["training_args = SFTConfig(", *(f"    {key}={value!r}," for key, value in arguments.items()), ")"]
    return "\n".join(lines) + "\n"


def _axolotl(run: RunSettings) -> dict[str, Any] | None:
    named = _named(run, _AXOLOTL_OPTIONS)
    if named is None:
        return None
    if run.arm.method == "lora":
        targets = run.arm.options["target_modules"]
        named |= {"lora_target_linear": True} if targets == "all-linear" else {"lora_target_modules": targets}
    return {
        "base_model": run.base.source,
        **({"adapter": "lora"} if run.arm.method == "lora" else {}),
        **named,
        "sequence_len": run.optimization.max_length,
        "train_on_inputs": False,
        "micro_batch_size": run.optimization.batch_size,
        "gradient_accumulation_steps": 1,
        **_length(run, "num_epochs"),
        "optimizer": "adamw_torch",
        "learning_rate": run.learning_rate,
        "lr_scheduler": run.optimization.lr_scheduler,
        "warmup_steps": _warmup_steps(run),
        **_adamw(run),
        "seed": run.seed,
    }


def _llama_factory(run: RunSettings) -> dict[str, Any] | None:
    named = _named(run, _LLAMA_FACTORY_OPTIONS)
    if named is None:
        return None
    if run.arm.method == "lora":
        targets = run.arm.options["target_modules"]
        named["lora_target"] = "all" if targets == "all-linear" else ",".join(targets)
    return {
        "model_name_or_path": run.base.source,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": run.arm.method,
        **named,
        "cutoff_len": run.optimization.max_length,
        "per_device_train_batch_size": run.optimization.batch_size,
        "gradient_accumulation_steps": 1,
        **_length(run, "num_train_epochs"),
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": run.optimization.lr_scheduler,
        "warmup_steps": _warmup_steps(run),
        **_adamw(run),
        "seed": run.seed,
    }


def _said(run: RunSettings) -> dict[str, Any]:
    """The arm's options that say something."""
    return {name: value for name, value in run.arm.options.items() if value not in (None, False)}


def _named(run: RunSettings, names: Mapping[str, str]) -> dict[str, Any] | None:
    """The arm's options by a program's names; None where it has no name for one, or not for the method."""
    options = _said(run)
    targets = options.pop("target_modules", None)
    if run.arm.method not in {"full", "lora"} or not set(options) <= set(names):
        return None
    # A regular expression is PEFT's; the others take `all-linear` in their own words, or names.
    if isinstance(targets, str) and targets != "all-linear":
        return None
    return {names[name]: value for name, value in options.items()}


def _length(run: RunSettings, epochs: str) -> dict[str, Any]:
    if run.optimization.max_steps is not None:
        return {"max_steps": run.optimization.max_steps}
    return {epochs: run.optimization.num_epochs}


def _warmup_steps(run: RunSettings) -> int:
    return math.ceil(run.num_steps * run.optimization.warmup_ratio)


def _adamw(run: RunSettings) -> dict[str, Any]:
    names = ("weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon")
    return {name: getattr(run.optimization, name) for name in names}


def _yaml(value: Any) -> str:
    """A value as YAML 1.1 and 1.2 both read it: `1e-05` would be a text for the first, `1.0e-05` is a number."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text
