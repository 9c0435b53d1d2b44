"""What is wrong with an arm's options, found before anything is read: the key, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rankscope.errors import near_miss
from rankscope.methods.options import PEFT_METHODS, PEFT_VERSION, nearest, options_of
from rankscope.methods.table import ALTERING, BY_NAME, REFUSED, is_plain_lora, method_named, method_names

Refusal = tuple[str, str]  # the key, and what is wrong with it
INITIALISATIONS = ("gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga", "corda", "loftq", "mica")
_CONFIG_OF = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config"}


def method_refusal(name: str) -> str | None:
    """Why a method cannot be had, or None where it can."""
    if name in REFUSED:
        return f"PEFT's {name} is not supported: {REFUSED[name]}"
    known = method_names()
    if name in known:
        return None
    if name.lower() in known:
        return f"methods are written small: '{name.lower()}'"
    mend = near_miss(name, known) or f"there are {', '.join(BY_NAME)} and PEFT's others"
    return f"no method is called '{name}'; {mend}"


def unknown_option(method: str, key: str, known: Iterable[str]) -> str:
    """A mend for a key that an arm's method does not have."""
    owners = [name for name in method_names() if key in options_of(name)]
    if owners:
        shown = ", ".join(owners[:4]) + (" and others" if len(owners) > 4 else "")
        return f"it is an option of {shown}, not of {method}"
    if method not in PEFT_METHODS:
        return nearest(key, known)
    return near_miss(key, known) or (
        f"PEFT {PEFT_VERSION} has no such option for {method}; it has {', '.join(sorted(options_of(method)))}"
    )


def unknown_keys(arm: Mapping[str, Any], fields: Iterable[str]) -> dict[str, str]:
    """Each key of an arm that neither the study file nor its method has, with its mend.

    Args:
        arm: As the study file has it, nothing of it checked.
        fields: The keys that every arm may have.
    """
    method = arm.get("method")
    methods = [method] if method in method_names() else method_names()
    known = {*fields, *(key for name in methods for key in options_of(name))}
    return {
        str(key): near_miss(str(key), known) or unknown_option(str(method), str(key), known)
        for key in arm
        if key not in known
    }


def refusal(method: str, ranks: Sequence[int], options: Mapping[str, Any]) -> Refusal | None:
    """What is wrong with an arm's options, or None.

    Args:
        method: A known method.
        ranks: `rank` as a list; empty where nothing is said.
        options: What the arm says by PEFT's names, without `r`.
    """
    known = options_of(method)
    for key, value in options.items():
        if key not in known:
            return key, f"'{key}': {unknown_option(method, key, known)}"
        if why := _own_check(key, value) if key in _CHECKS else known[key].refusal(value):
            return key, f"'{key}' {why}"
    if ranks and "r" not in known:
        return "rank", f"'rank': {unknown_option(method, 'r', known)}"
    by_method: dict[str, Callable[[Sequence[int], Mapping[str, Any]], Refusal | None]] = {
        "lora": _lora, "adalora": _adalora,
    }  # fmt: skip
    if method_named(method).capabilities.own_rows and "num_virtual_tokens" not in options:
        return "method", f"method {method} needs 'num_virtual_tokens', the number of tokens before each text"
    return by_method[method](ranks, options) if method in by_method else None


def schedule_refusal(method: str, options: Mapping[str, Any], num_steps: int) -> Refusal | None:
    """What is wrong with an arm's options for a run of so many steps, or None."""
    if method == "adalora" and options["tinit"] + options["tfinal"] >= num_steps:
        text = f"tinit {options['tinit']} and tfinal {options['tfinal']} leave none of the run's {num_steps} steps"
        return "tinit", f"{text} for moving ranks"
    return None


def _lora(ranks: Sequence[int], options: Mapping[str, Any]) -> Refusal | None:
    if not ranks:
        return "method", "method lora needs 'rank', a number or a list"
    initial = str(options.get("init_lora_weights", ""))
    for name, key in _CONFIG_OF.items():
        if key in options and initial != name:
            return key, f"'{key}' is of no use without init_lora_weights: {name}"
    if initial == "orthogonal" and (odd := [rank for rank in ranks if rank % 2]):
        return "init_lora_weights", f"orthogonal initialisation needs even ranks, not {odd[0]}"
    if options.get("loftq_config"):
        return "loftq_config", "'loftq_config' is not used: the bits are those of the base's quantization_config"
    if initial == "loftq" and not is_plain_lora(options):
        return (
            "init_lora_weights",
            "loftq goes with no option that needs PEFT's own layers; see docs/methods.md",
        )
    if initial.startswith(ALTERING):
        return _altering(initial, options)
    return _parameters(options) or _layer_choice(options)


def _parameters(options: Mapping[str, Any]) -> Refusal | None:
    """What PEFT cannot do on parameters that are named themselves."""
    wanted = (
        ("lora_dropout", "use_dora", "lora_bias", "layers_to_transform") if options.get("target_parameters") else ()
    )
    key = next((key for key in wanted if options.get(key) not in (None, False, 0.0)), None)
    return (key, f"'{key}' does not go with target_parameters, in PEFT neither") if key else None


def _altering(initial: str, options: Mapping[str, Any]) -> Refusal | None:
    """What cannot be told apart from the base again once the initialisation has altered it."""
    if options.get("use_dora"):
        return "use_dora", f"use_dora and {initial} together cannot be written as an adapter of the true base; drop one"
    if options.get("use_rslora") and (options.get("rank_pattern") or options.get("alpha_pattern")):
        text = f"use_rslora with a pattern and {initial} cannot be written as an adapter of the true base; drop one"
        return "use_rslora", text
    if options.get("target_parameters"):
        return "target_parameters", f"target_parameters and {initial} do not go together, in PEFT neither"
    return _layer_choice(options)


def _adalora(ranks: Sequence[int], options: Mapping[str, Any]) -> Refusal | None:
    if ranks and "target_r" in options:
        return "target_r", "'rank' and 'target_r' say the same of adalora; keep one"
    least = options.get("init_r")
    for target in ranks or [options.get("target_r", 8)]:
        if least is not None and least <= target:
            return "init_r", f"init_r {least} is to be above the rank that is aimed at, {target}: adalora only prunes"
    return _layer_choice(options)


def _layer_choice(options: Mapping[str, Any]) -> Refusal | None:
    targets = options.get("target_modules")
    is_pattern = isinstance(targets, str) and targets.lower() not in ("all-linear", "attention", "mlp")
    if options.get("layers_to_transform") is not None and is_pattern:
        text = "'layers_to_transform' needs target_modules as names; an expression names its layers itself"
        return "layers_to_transform", text
    return None


def _own_check(key: str, value: Any) -> str | None:
    return _CHECKS[key](value)


def _alpha(value: Any) -> str | None:
    if isinstance(value, str):
        is_multiple = re.fullmatch(r"\d+(\.\d+)?r", value) is not None and float(value[:-1]) > 0.0
        return None if is_multiple else f"is a number above 0 or a multiple of the rank such as '2r', not '{value}'"
    return None


def _initialisation(value: Any) -> str | None:
    if isinstance(value, bool) or value in INITIALISATIONS or re.fullmatch(r"pissa_niter_[1-9]\d*", str(value)):
        return None
    return f"cannot be '{value}'; {nearest(str(value), INITIALISATIONS)} (or true, PEFT's own, or pissa_niter_4)"


def _pattern_of(kind: str) -> Callable[[Any], str | None]:
    """A check of a mapping from module names or expressions to a positive number."""

    def check(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"maps module names or expressions to {kind}s, for example {{q_proj: 16}}"
        for name, number in value.items():
            try:
                re.compile(str(name))
            except re.error as error:
                return f"names '{name}', which is no regular expression ({error})"
            wanted = int if kind == "rank" else (int, float)
            if isinstance(number, bool) or not isinstance(number, wanted) or number <= 0:
                return f"gives '{name}' a {kind} of {number!r}; it is a number above 0"
        return None

    return check


def _layer_numbers(value: Any) -> str | None:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not numbers or any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        return f"is a list of layers, counted from 0, not {value!r}"
    return None


def _ratio(value: Any) -> str | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return None if is_number and value >= 1.0 else f"is B's learning rate over A's, at least 1, not {value!r}"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "lora_alpha": _alpha,
    "init_lora_weights": _initialisation,
    "rank_pattern": _pattern_of("rank"),
    "alpha_pattern": _pattern_of("alpha"),
    "layers": _layer_numbers,
    "layers_to_transform": _layer_numbers,
    "loraplus_lr_ratio": _ratio,
}
