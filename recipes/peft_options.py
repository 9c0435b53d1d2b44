"""Write src/rankscope/methods/peft_options.json: every method of the PEFT installed here with its options.

`plan` checks a study's options without importing PEFT, which imports torch; so what PEFT knows lies in the package as a
table, and a test compares it with the PEFT that it names. With `--check` the script fails where the table is not what
would be written.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

import peft
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import constants

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
from generated import write_or_check

TABLE = Path(__file__).resolve().parent.parent / "src" / "rankscope" / "methods" / "peft_options.json"
# Said by the study in other words, worked out from the model, or of no use in training on one machine.
NOT_OPTIONS = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "fan_in_fan_out",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
    "runtime_config",
    "megatron_config",
    "megatron_core",
    "is_target_conv_1d_layer",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "total_step",
}
# Files that PEFT would unpickle.
NOT_KEYS = {"cache_file", "covariance_file"}  # fmt: skip
KINDS = {
    int: "int", float: "float", bool: "bool", str: "str", dict: "dict", list: "list", tuple: "list", type(None): "none",
}  # fmt: skip


def options(config: type) -> dict[str, dict[str, Any]]:
    """What a method's configuration takes: by name the kinds of value, the choices, the default, and nested keys."""
    hints = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        if field.init and not field.name.startswith("_") and field.name not in NOT_OPTIONS:
            found[field.name] = _option(hints[field.name], field)
    return found


def _option(hint: Any, field: dataclasses.Field) -> dict[str, Any]:
    kinds, choices, keys = _kinds(hint)
    entry: dict[str, Any] = {"kinds": sorted(kinds)}
    if choices:
        entry["choices"] = sorted(choices)
    if keys:
        entry["keys"] = sorted(keys)
    default = field.default if field.default is not dataclasses.MISSING else None
    entry["default"] = default.value if isinstance(default, enum.Enum) else default
    return entry


def _kinds(hint: Any) -> tuple[set[str], set[str], set[str]]:
    """The kinds of value that a type allows, its literal texts, and the keys of a configuration inside it."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return tuple(set().union(*(part[index] for part in parts)) for index in range(3))
    if origin is Literal:
        values = typing.get_args(hint)
        return {KINDS[type(value)] for value in values}, {value for value in values if isinstance(value, str)}, set()
    if dataclasses.is_dataclass(hint):
        return {"dict"}, set(), {field.name for field in dataclasses.fields(hint) if field.init} - NOT_KEYS
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"str"}, {member.value for member in hint}, set()
    if hint is Any:
        return set(KINDS.values()), set(), set()
    if isinstance(hint, typing.ForwardRef) or isinstance(hint, str):
        raise TypeError(hint)
    return {KINDS[origin or hint]}, set(), set()


def table() -> dict[str, Any]:
    """The whole table."""
    methods = {
        str(kind.value).lower(): {
            "is_prompt": issubclass(config, PromptLearningConfig),
            "options": options(config),
        }
        for kind, config in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items(), key=lambda item: item[0].value)
    }
    return {
        "peft_version": peft.__version__,
        "methods": methods,
        "target_modules": {
            "ia3": constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
            "ln_tuning": constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING,
        },
        "feedforward_modules": {"ia3": constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING},
    }


def content() -> str:
    """The table as JSON, an option a line."""
    whole = table()
    lines = ["{", f' "peft_version": {json.dumps(whole["peft_version"])},', ' "methods": {']
    for method, entry in whole["methods"].items():
        lines.append(f'  "{method}": {{"is_prompt": {json.dumps(entry["is_prompt"])}, "options": {{')
        lines += [f'   "{name}": {json.dumps(option)},' for name, option in sorted(entry["options"].items())]
        lines[-1] = lines[-1].rstrip(",")
        lines.append("  }},")
    lines[-1] = lines[-1].rstrip(",")
    lines.append(" },")
    for name in ("target_modules", "feedforward_modules"):
        lines.append(f' "{name}": {json.dumps(whole[name])},')
    lines[-1] = lines[-1].rstrip(",")
    return "\n".join([*lines, "}"]) + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(TABLE, content(), "recipes/peft_options.py", sys.argv[1:]))
