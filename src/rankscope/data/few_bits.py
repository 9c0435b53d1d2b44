"""Whether what a study does over a base in 4 or 8 bits can be done, found before a model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from rankscope.errors import UserError, in_arm
from rankscope.methods.table import few_bits_refusal
from rankscope.runs import RunSettings


def check_few_bits(runs: Iterable[RunSettings]) -> None:
    """Refuse methods that need a base's weights as numbers, and an initialisation that needs them in few bits.

    Args:
        runs: As the study expands to them.

    Raises:
        UserError: An arm and a base do not go together, or bitsandbytes is not installed.
    """
    for base, arm in {(run.base.name, run.arm.label): (run.base, run.arm) for run in runs}.values():
        bits = base.opening.quantization_config
        if bits is not None and importlib.util.find_spec("bitsandbytes") is None:
            mend = "pip install 'rankscope[bitsandbytes]', or leave quantization_config out"
            raise UserError("the package bitsandbytes is not installed", mend=mend, key=(*_key(base.name), _KEY))
        if bits is not None and (why := few_bits_refusal(arm.method, arm.options)):
            key = "init_lora_weights" if "init_lora_weights" in arm.options else "method"
            text = f"not over base {base.name} in {bits.label}: {why}"
            raise in_arm(arm.label, key, text, f"leave out {_KEY} of model.{base.name}, or choose lora")
        if arm.options.get("init_lora_weights") == "loftq" and (bits is None or not bits.load_in_4bit):
            text = f"loftq starts from what 4 bits lose of a weight, and base {base.name} is not in 4 bits"
            mend = f"say `{_KEY}: {{load_in_4bit: true, bnb_4bit_quant_type: nf4}}` beside source of model.{base.name}"
            raise in_arm(arm.label, "init_lora_weights", text, mend)


_KEY = "quantization_config"


def _key(base: str) -> tuple[str, str]:
    return "model", base
