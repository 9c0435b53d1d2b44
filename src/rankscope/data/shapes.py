"""The shapes of a model's tensors, read from the headers of its safetensors files without loading a number."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from rankscope.data.experts import outside_linear_layers
from rankscope.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by name, over the files of a Hugging Face folder that transformers reads.

    Raises:
        UserError: A file is no safetensors, is cut short, or is missing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        shapes |= {name: tuple(entry["shape"]) for name, entry in _header(path).items()}
    return shapes


def shards(folder: Path) -> dict[str, Path]:
    """By tensor the file that holds it, as the index of a folder with several says.

    Raises:
        UserError: The index cannot be read, or a file that it names is missing.
    """
    index = folder / INDEX
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        text = f"the list of shards cannot be read ({type(error).__name__}: {error})"
        raise UserError(text, where=index, mend="copy the whole folder again") from None
    for name in sorted(set(files.values())):
        if not (folder / name).is_file():
            raise UserError(f"the shard {name} is missing", where=index, mend="copy the whole folder")
    return {tensor: folder / name for tensor, name in files.items()}


def _weight_files(folder: Path) -> list[Path]:
    """One file or its shards; other files beside them may hold the same model in its authors' own names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return sorted(set(shards(folder).values()))
    return sorted(folder.glob("*.safetensors"))


def _header(path: Path) -> dict[str, Any]:
    """What a file says of its tensors, by name; all of them are in it."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= size else {}
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        mend = "download it again, or save the model with save_pretrained()"
        raise UserError(f"is no safetensors file ({error})", where=path, mend=mend) from None
    if end > size:
        mend = "download or copy it again"
        raise UserError(f"is cut short: {size:,} bytes of {end:,} are there", where=path, mend=mend)
    return entries


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
