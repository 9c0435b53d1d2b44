"""What a model shows layer by layer on the probe texts, kept on disk between two models.

A tuned model is the base with its weights changed in place, so the two cannot run side by side, and what the base
showed is read back as the tuned model comes to the same layer of the same batch. It is no result: it may be deleted and
is made again. Checksums in `done`, written last, say whether it is whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.store import checksum, read_checked, write_checked

_DONE = "done"


class LayerCache:
    """Tensors by batch and layer in a folder.

    Args:
        folder: Its own.
        made_of: A hash of what the tensors depend on.
    """

    def __init__(self, folder: Path, made_of: str) -> None:
        self._folder = folder
        self._made_of = made_of

    def start(self) -> None:
        """Begin anew; until `finish` there is nothing whole here."""
        self.remove()
        self._folder.mkdir(parents=True)

    def write(self, batch: int, layer: int, tensor: Tensor) -> None:
        """Keep a tensor."""
        write_tensors(self._file(batch, layer), {"tensor": tensor.cpu().contiguous()})

    def finish(self) -> None:
        """Say that everything is here."""
        files = {path.name: checksum(path) for path in self._folder.glob("batch*.safetensors")}
        write_checked(self._folder / _DONE, {"of": self._made_of, "files": files})

    def is_whole(self) -> bool:
        """Whether everything is here, of the same making, and as it was written."""
        done = read_checked(self._folder / _DONE)
        if done is None or done["of"] != self._made_of:
            return False
        files = {self._folder / name: expected for name, expected in done["files"].items()}
        return all(path.is_file() and checksum(path) == expected for path, expected in files.items())

    def read(self, batch: int, layer: int) -> Tensor:
        """A tensor as it was kept."""
        return load_file(self._file(batch, layer))["tensor"]

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self._folder, ignore_errors=True)  # another process that shares the study may be at it

    def _file(self, batch: int, layer: int) -> Path:
        return self._folder / f"batch{batch:04d}-layer{layer:03d}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors under a temporary name and rename the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)
