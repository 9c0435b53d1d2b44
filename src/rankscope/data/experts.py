"""Mixtures of experts, told from the names of a base's tensors: what of them is no linear layer once it is loaded.

Files keep each expert's matrices apart, or all of them in one tensor of three axes. transformers 5 holds them in one
parameter of three axes either way, and the router in a module of its own kind: PEFT has `target_parameters` for both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

_EXPERT = re.compile(r"(?P<block>.*)\.experts\.(?P<number>\d+)\.(?P<matrix>\w+)\.weight")
# What the model calls the parameter that an expert's matrix of the files becomes a part of.
_FUSED = {"w1": "gate_up_proj", "w3": "gate_up_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
          "w2": "down_proj", "down_proj": "down_proj"}  # fmt: skip
_ROUTERS = ("gate", "router")
# Granite's files call them by other names than the model, and their module is not called experts.
_STACKED = re.compile(r"(?P<block>.*)\.(?P<matrix>input_linear|output_linear)\.weight")
_FUSED_STACKED = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}


def expert_parameters(shapes: Shapes) -> dict[str, int]:
    """The parameters that hold experts, by the ends of their names in the model (`experts.gate_up_proj`): how large.

    Empty for a model without experts.
    """
    found: dict[str, int] = {}
    stacked = _stacked(shapes)
    for name, shape in shapes.items():
        if match := _EXPERT.fullmatch(name):
            key = f"experts.{_FUSED.get(match['matrix'], match['matrix'])}"
        elif len(shape) == 3 and ".experts." in name:
            key = f"experts.{name.rpartition('.')[2]}"
        elif name in stacked:
            key = f"experts.{_FUSED_STACKED[name.split('.')[-2]]}"
        else:
            continue
        found[key] = found.get(key, 0) + math.prod(shape)
    return found


def outside_linear_layers(shapes: Shapes) -> set[str]:
    """Tensors of the files that are in no linear layer of the model: those of experts, and their routers."""
    return {name for name in shapes if ".experts." in name} | set(_stacked(shapes)) | set(_routers(shapes))


def _stacked(shapes: Shapes) -> dict[str, str]:
    """Granite's experts, by the names in its files; each with its block."""
    found = {name: _STACKED.fullmatch(name) for name, shape in shapes.items() if len(shape) == 3}
    return {name: match["block"] for name, match in found.items() if match}


def _routers(shapes: Shapes) -> dict[str, str]:
    """The routers, by the names in the files; each with the end of its name in the model."""
    blocks = {name.rpartition(".experts.")[0] for name in shapes if ".experts." in name}
    found = {f"{block}.{router}.weight": f"{router}.weight" for block in blocks for router in _ROUTERS}
    found |= {f"{block}.router.layer.weight": "router.weight" for block in _stacked(shapes).values()}
    return {name: end for name, end in found.items() if name in shapes}


def expert_modules(shapes: Shapes) -> set[str]:
    """What the files call the matrices of experts and routers, such as `w1` and `gate`; no modules of the model.

    A linear layer beside them may end so too: `gate_proj` of a shared expert.
    """
    return {name.removesuffix(".weight").rpartition(".")[2] for name in outside_linear_layers(shapes)}


def named_parameters(shapes: Shapes) -> set[str]:
    """Names of parameters in the model, of experts and routers by their ends; what `target_parameters` may name."""
    in_model = set(expert_parameters(shapes)) | set(_routers(shapes).values())
    return (set(shapes) - outside_linear_layers(shapes)) | in_model
