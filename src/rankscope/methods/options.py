"""What options each method takes, as PEFT's configuration classes have them, without importing PEFT.

`peft_options.json` is written by `recipes/peft_options.py`. What is not PEFT's (LoRA+, partial full fine-tuning,
bottleneck adapters) is declared here in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from rankscope.errors import near_miss

_PYTHON = {"int": int, "float": (int, float), "bool": bool, "str": str, "list": (list, tuple), "dict": dict}
_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
    "dict": "a mapping", "none": "null",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        kinds: Of value: int, float, bool, str, list, dict, none.
        choices: The texts that it may be; empty: any.
        keys: What a mapping may hold; empty: anything.
        default: What it is where nothing is said.
    """

    kinds: tuple[str, ...]
    choices: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    default: Any = None

    def refusal(self, value: Any) -> str | None:
        """Why a value cannot be taken, or None where it can."""
        if isinstance(value, dict) and self.keys:
            for key in value:
                if key not in self.keys:
                    return f"has no key '{key}'; {nearest(key, self.keys)}"
        if isinstance(value, str) and self.choices and value not in self.choices:
            return f"cannot be '{value}'; {nearest(value, self.choices)}"
        if any(self._is(value, kind) for kind in self.kinds):
            return None
        return f"is {' or '.join(_WORDS[kind] for kind in self.kinds if kind != 'none')}, not {value!r}"

    @staticmethod
    def _is(value: Any, kind: str) -> bool:
        if kind == "none":
            return value is None
        # True is an int in Python, and no number that anybody means.
        return isinstance(value, _PYTHON[kind]) and (kind == "bool" or not isinstance(value, bool))


@dataclass(frozen=True)
class PeftMethod:
    """A method as PEFT has it."""

    is_prompt: bool
    options: Mapping[str, Option]


@dataclass(frozen=True)
class _Table:
    peft_version: str
    methods: Mapping[str, PeftMethod]
    target_modules: Mapping[str, Mapping[str, list[str]]]
    feedforward_modules: Mapping[str, Mapping[str, list[str]]]


def _read() -> _Table:
    document = json.loads(resources.files("rankscope.methods").joinpath("peft_options.json").read_text("utf-8"))
    methods = {
        name: PeftMethod(
            entry["is_prompt"],
            {
                key: Option(
                    tuple(option["kinds"]),
                    tuple(option.get("choices", ())),
                    tuple(option.get("keys", ())),
                    option["default"],
                )
                for key, option in entry["options"].items()
            },
        )
        for name, entry in document["methods"].items()
    }
    return _Table(document["peft_version"], methods, document["target_modules"], document["feedforward_modules"])


_TABLE = _read()
PEFT_VERSION = _TABLE.peft_version
PEFT_METHODS = _TABLE.methods
# By method and then model_type, what PEFT adapts where nothing is said.
DEFAULT_TARGETS = _TABLE.target_modules
FEEDFORWARD_TARGETS = _TABLE.feedforward_modules

_OWN: Mapping[str, Mapping[str, Option]] = {
    "full": {
        "layers": Option(("list", "none")),
        "freeze_embeddings": Option(("bool",), default=False),
    },
    "lora": {"loraplus_lr_ratio": Option(("float", "none"))},
    "bottleneck": {
        "placement": Option(("str",), ("houlsby", "pfeiffer"), default="pfeiffer"),
        "reduction_factor": Option(("int",), default=16),
        "non_linearity": Option(("str",), ("gelu", "relu", "silu"), default="relu"),
    },
}


def options_of(method: str) -> dict[str, Option]:
    """Every option of a method by name."""
    peft = PEFT_METHODS[method].options if method in PEFT_METHODS else {}
    return {**peft, **_OWN.get(method, {})}


def nearest(word: str, known: Iterable[str]) -> str:
    """A mend for a misspelt word: the nearest known one, or all of them."""
    known = sorted(known)
    every = f"there {'is' if len(known) == 1 else 'are'} {', '.join(known)}"
    return near_miss(str(word), known) or every
