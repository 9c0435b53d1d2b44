"""An arm's options with no defaults left to look up, by PEFT's names; and what the arm is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rankscope.methods.options import options_of
from rankscope.methods.table import BY_NAME, method_named

ALL_LINEAR = "all-linear"
# PEFT has its own choice of modules for these, by architecture.
PEFT_TARGETS = ("ia3", "ln_tuning")
# AdaLoRA starts above the rank that it aims at: PEFT's defaults are 12 for 8.
_START_FACTOR = 1.5


def resolved_options(method: str, rank: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's options for one arm, ready to be recorded.

    Args:
        method: A known method.
        rank: One of the arm's ranks; None where it has none.
        given: What the arm says by PEFT's names, without `r`; checked.
    """
    options = {**_defaults(method, rank, given), **{name: _plain(value) for name, value in given.items()}}
    named = method_named(method)
    if rank is not None:
        options[named.rank_option or "r"] = rank
    alpha = options.get("lora_alpha")
    if isinstance(alpha, str):
        options["lora_alpha"] = float(alpha[:-1]) * (rank or options.get(named.rank_option or "r", 0))
    return options


def _defaults(method: str, rank: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
    if method == "full":
        return {}
    if method == "lora":
        # Alpha is twice the rank where nothing is said, so that ranks stay comparable.
        return {
            "r": rank, "lora_alpha": "2r", "lora_dropout": 0.0, "use_rslora": False, "target_modules": ALL_LINEAR,
        }  # fmt: skip
    if method == "adalora":
        target = rank or given.get("target_r", 8)
        start = {"target_r": target, "init_r": max(target + 1, round(_START_FACTOR * target))}
        schedule = {"tinit": 0, "tfinal": 0, "deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5}
        return {**start, "lora_alpha": "2r", "lora_dropout": 0.0, "target_modules": ALL_LINEAR, **schedule}
    known = options_of(method)
    found = {name: option.default for name, option in known.items() if option.default not in (None, {}, [])}
    if "target_modules" in known and method not in PEFT_TARGETS:
        found["target_modules"] = ALL_LINEAR
    if method == "oft":
        # r x oft_block_size is the width of a matrix: PEFT takes one of the two.
        found |= {"oft_block_size": 0} if rank is not None else {"r": 0}
    return found


def arm_label(method: str, rank: int | None, options: Mapping[str, Any]) -> str:
    """What an arm without a name is called: its method, rank, and what makes it unlike the plain one."""
    parts = [method]
    if rank is not None:
        parts.append(f"r{rank}")
    if options.get("use_rslora"):
        parts.append("rslora")
    if options.get("use_dora"):
        parts.append("dora")
    if options.get("loraplus_lr_ratio"):
        parts.append("plus")
    if isinstance(initial := options.get("init_lora_weights"), str):
        parts.append(initial)
    if method in BY_NAME and "placement" in options:
        parts.append(options["placement"])
    return "-".join(parts)


def pattern_value(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """What `rank_pattern` or `alpha_pattern` says of a module; the first that matches counts, as in PEFT.

    Args:
        pattern: By module name, or regular expression for the end of one.
        module: A module's path.
        otherwise: For modules that no entry matches.
    """
    for name, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({name})$", module):
            return value
    return otherwise


def _plain(value: Any) -> Any:
    """Lists for tuples, so that settings are the same before and after they were written."""
    return list(value) if isinstance(value, tuple) else value
