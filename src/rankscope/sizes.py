"""How many parameters an arm trains, from the shapes of its base alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rankscope.data.shapes import layer_matrices, num_parameters
from rankscope.data.targets import HEADS, layer_number, sublayer_outputs, target_modules
from rankscope.methods.resolve import pattern_value
from rankscope.methods.table import is_plain_lora
from rankscope.runs import ArmSettings

Shapes = Mapping[str, tuple[int, ...]]
Options = Mapping[str, Any]


def num_trainable(arm: ArmSettings, shapes: Shapes) -> int | None:
    """Trainable parameters of an arm, or None where only its training can tell.

    Args:
        arm: The arm, its modules resolved.
        shapes: Of the base's tensors.
    """
    count = _COUNTS.get(arm.method)
    if count is None or arm.options.get("modules_to_save") or arm.options.get("bias", "none") != "none":
        return None
    return count(arm.options, dict(shapes))


def _full(options: Options, shapes: dict) -> int:
    layers = options.get("layers")
    kept = {
        name: shape
        for name, shape in shapes.items()
        if (layers is None or layer_number(name) is None or layer_number(name) in layers)
        and not (options.get("freeze_embeddings") and _is_embedding(name, shape))
    }
    return num_parameters(kept)


def _is_embedding(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a table of tokens or positions, or of the output head; every architecture names its own."""
    if layer_number(name) is not None:
        return False
    parts = name.split(".")
    # Between tables and layers of another width some have a linear layer: project_in, per_layer_model_projection.
    is_table = len(shape) == 2 and not any("proj" in part for part in parts)
    return is_table or any(part in HEADS for part in parts)


def _targets(options: Options, shapes: dict) -> dict[str, tuple[int, int]]:
    """The adapted matrices as (d_out, d_in)."""
    found = target_modules(options["target_modules"], shapes, options.get("layers_to_transform"))
    return {name: _oriented(name, size, shapes) for name, size in found.items()}


def _oriented(name: str, size: tuple[int, int], shapes: dict) -> tuple[int, int]:
    """GPT-2 keeps its matrices transposed; other models that use its names do not, so their width is looked at."""
    last = name.rsplit(".", 1)[-1]
    if last not in ("c_attn", "c_fc", "c_proj"):
        return size
    is_transposed = size[0] != _hidden(shapes) if last == "c_proj" else size[1] != _hidden(shapes)
    return size[::-1] if is_transposed else size


def _lora(options: Options, shapes: dict) -> int | None:
    if not is_plain_lora(options) or options.get("init_lora_weights") == "eva":
        return None  # EVA moves ranks between matrices when it has seen examples
    total = 0
    for name, (d_out, d_in) in _targets(options, shapes).items():
        rank = pattern_value(options.get("rank_pattern"), name, options["r"])
        total += rank * (d_out + d_in) + (d_out if options.get("use_dora") else 0)
    return total


def _adalora(options: Options, shapes: dict) -> int:
    """At the start: A, B and the values between them; ranks that are pruned stay in memory as zeros."""
    rank = options["init_r"]
    return sum(rank * (d_out + d_in + 1) for d_out, d_in in _targets(options, shapes).values())


def _ia3(options: Options, shapes: dict) -> int:
    inner = set(target_modules(options.get("feedforward_modules") or [], shapes))
    return sum(d_in if name in inner else d_out for name, (d_out, d_in) in _targets(options, shapes).items())


def _vera(options: Options, shapes: dict) -> int:
    return sum(d_out + options["r"] for d_out, _ in _targets(options, shapes).values())


def _oft(options: Options, shapes: dict) -> int | None:
    total = 0
    for _, d_in in _targets(options, shapes).values():
        size = options["oft_block_size"] or d_in // options["r"]
        if d_in % size:
            return None  # PEFT takes another size
        total += (1 if options.get("block_share") else d_in // size) * size * (size - 1) // 2
    return total


def _hidden(shapes: dict) -> int:
    """The width of the residual stream: that of the largest embedding."""
    tables = [shape for name, shape in shapes.items() if len(shape) == 2 and _is_embedding(name, shape)]
    return max(tables)[1]


def _num_layers(shapes: dict) -> int:
    return 1 + max(layer_number(name) or 0 for name in layer_matrices(shapes))


def _prompt_tuning(options: Options, shapes: dict) -> int:
    return options["num_virtual_tokens"] * _hidden(shapes)


def _p_tuning(options: Options, shapes: dict) -> int | None:
    if options.get("encoder_reparameterization_type", "MLP") != "MLP":
        return None
    hidden = _hidden(shapes)
    width = options.get("encoder_hidden_size") or hidden
    network = hidden * width + width + width * width + width + width * hidden + hidden
    return options["num_virtual_tokens"] * hidden + network


def _prefix_tuning(options: Options, shapes: dict) -> int | None:
    if options.get("prefix_projection"):
        return None
    keys = {shape[0] for name, shape in layer_matrices(shapes).items() if name.endswith("k_proj.weight")}
    width = keys.pop() if len(keys) == 1 else _hidden(shapes)
    return options["num_virtual_tokens"] * _num_layers(shapes) * 2 * width


def _ln_tuning(options: Options, shapes: dict) -> int:
    names = options["target_modules"]
    kept = {name: shape for name, shape in shapes.items() if name.split(".")[-2] in names}
    return num_parameters(kept)


def _bottleneck(options: Options, shapes: dict) -> int:
    total = 0
    for name in sublayer_outputs(layer_matrices(shapes), options["placement"]):
        width, _ = _oriented(name.removesuffix(".weight"), shapes[name], shapes)
        inner = max(1, width // options["reduction_factor"])
        total += 2 * width * inner + inner + width
    return total


_COUNTS: dict[str, Callable[[Options, dict], int | None]] = {
    "full": _full, "lora": _lora, "adalora": _adalora, "ia3": _ia3, "vera": _vera, "oft": _oft,
    "prompt_tuning": _prompt_tuning, "p_tuning": _p_tuning, "prefix_tuning": _prefix_tuning, "ln_tuning": _ln_tuning,
    "bottleneck": _bottleneck,
}  # fmt: skip
