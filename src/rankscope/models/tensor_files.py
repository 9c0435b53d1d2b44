"""Weights on disk, tensor by tensor, from safetensors only."""

from __future__ import annotations

import json
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor

from rankscope.errors import UserError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class TensorFiles:
    """Tensors by name in safetensors files, each read when asked for.

    Args:
        files: By tensor, the file that holds it.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    @classmethod
    def of_adapter(cls, folder: Path) -> TensorFiles:
        """An adapter's folder, as PEFT saves it.

        Raises:
            UserError: There are no safetensors.
        """
        if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise _no_safetensors(folder, SAFETENSORS_WEIGHTS_NAME)
        return cls._of_file(folder / SAFETENSORS_WEIGHTS_NAME)

    @classmethod
    def of_model(cls, folder: Path) -> TensorFiles:
        """A model's folder, in one file or in shards.

        Raises:
            UserError: There are no safetensors, or a shard is missing.
        """
        if (folder / _WEIGHTS).is_file():
            return cls._of_file(folder / _WEIGHTS)
        if not (folder / _INDEX).is_file():
            raise _no_safetensors(folder, _WEIGHTS)
        shards = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        for name in sorted(set(shards.values())):
            if not (folder / name).is_file():
                raise UserError(f"the shard {name} is missing", where=folder / _INDEX, mend="copy the whole folder")
        return cls({key: folder / name for key, name in shards.items()})

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        with safe_open(self.files[key], framework="pt") as tensors:
            return tuple(tensors.get_slice(key).get_shape())

    def read(self, key: str) -> Tensor:
        """One tensor, in the precision of the file."""
        with safe_open(self.files[key], framework="pt") as tensors:
            return tensors.get_tensor(key)

    @classmethod
    def _of_file(cls, path: Path) -> TensorFiles:
        with safe_open(path, framework="pt") as tensors:
            return cls(dict.fromkeys(tensors.keys(), path))


def _no_safetensors(folder: Path, name: str) -> UserError:
    if not folder.is_dir():
        return UserError("there is no such folder", where=folder)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        load = "PeftModel" if name == SAFETENSORS_WEIGHTS_NAME else "AutoModelForCausalLM"
        return UserError(
            f"the weights are a pickle ({pickles[0]}), which can run code when it is read; only safetensors are read",
            where=folder,
            mend=f"load it with {load}.from_pretrained where you trust it, then save_pretrained writes {name}",
        )
    return UserError(f"holds no {name}", where=folder)
