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


def expert_parameters(shapes: Shapes) -> dict[str, int]:
    """The parameters that hold experts, by the ends of their names in the model (`experts.gate_up_proj`): how large.

    Empty for a model without experts.
    """
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        if match := _EXPERT.fullmatch(name):
            key = f"experts.{_FUSED.get(match['matrix'], match['matrix'])}"
        elif len(shape) == 3 and ".experts." in name:
            key = f"experts.{name.rpartition('.')[2]}"
        else:
            continue
        found[key] = found.get(key, 0) + math.prod(shape)
    return found


def outside_linear_layers(shapes: Shapes) -> set[str]:
    """Tensors of the files that are in no linear layer of the model: those of experts, and their routers."""
    blocks = {name.rpartition(".experts.")[0] for name in shapes if ".experts." in name}
    routers = {f"{block}.{router}.weight" for block in blocks for router in _ROUTERS}
    return {name for name in shapes if ".experts." in name or name in routers}


def expert_modules(shapes: Shapes) -> set[str]:
    """What the files call the matrices of experts and routers, such as `w1` and `gate`; no modules of the model.

    A linear layer beside them may end so too: `gate_proj` of a shared expert.
    """
    return {name.removesuffix(".weight").rpartition(".")[2] for name in outside_linear_layers(shapes)}


def named_parameters(shapes: Shapes) -> set[str]:
    """Names of parameters in the model, of experts and routers by their ends; what `target_parameters` may name."""
    outside = outside_linear_layers(shapes)
    routers = {".".join(name.split(".")[-2:]) for name in outside if ".experts." not in name}
    return (set(shapes) - outside) | set(expert_parameters(shapes)) | routers
