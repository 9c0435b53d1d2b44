"""The shapes of a model's tensors, read from the headers of its safetensors files without loading a number."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from rankscope.data.experts import outside_linear_layers


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by name, over all shards of a Hugging Face folder."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def model_type(folder: Path) -> str:
    """The architecture of a Hugging Face folder as its configuration names it, `llama` for example; else nothing."""
    path = folder / "config.json"
    return str(json.loads(path.read_text(encoding="utf-8")).get("model_type", "")) if path.is_file() else ""


def num_parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers a model has."""
    total = 0
    for shape in shapes.values():
        size = 1
        for extent in shape:
            size *= extent
        total += size
    return total


def layer_matrices(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """The weight matrices inside the layers, which `all-linear` adapts: no embedding, no head, no vector, no expert."""
    outside = outside_linear_layers(shapes)
    return {
        name: (shape[0], shape[1])
        for name, shape in shapes.items()
        if name not in outside
        and len(shape) == 2
        and name.endswith(".weight")
        and any(part.isdigit() for part in name.split("."))
    }
