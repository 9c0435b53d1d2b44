"""What a model shows layer by layer on the probe texts, kept on disk between two models.

A tuned model is the base with its weights changed in place, so the two cannot run side by side, and what the base
showed is read back as the tuned model comes to the same layer of the same batch. It is no result: it may be deleted and
is made again. Checksums in `done`, written last, say whether it is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.store import checksum, read_checked, replacing, write_checked

_DONE = "done"

# Keeps the tensor of a batch and layer.
Write = Callable[[int, int, Tensor], None]


class LayerCache:
    """Tensors by batch and layer in a folder.

    Args:
        folder: Its own.
        made_of: A hash of what the tensors depend on.
    """

    def __init__(self, folder: Path, made_of: str) -> None:
        self._folder = folder
        self._made_of = made_of

    @contextmanager
    def anew(self) -> Iterator[Write]:
        """Make everything anew: hands out what keeps a tensor, and puts all of them in place at the end.

        Several processes may do so at once, as after a change of the study, when every run finds nothing here: each
        writes into a folder of its own, and the first whole one stays.
        """
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}.", suffix=".tmp", dir=self._folder.parent))
        try:
            yield lambda batch, layer, tensor: write_tensors(
                folder / _name(batch, layer), {"tensor": tensor.cpu().contiguous()}
            )
            files = {path.name: checksum(path) for path in folder.glob("batch*.safetensors")}
            write_checked(folder / _DONE, {"of": self._made_of, "files": files})
            self._put_in_place(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # gone where it was put in place

    def _put_in_place(self, folder: Path) -> None:
        if self._folder.is_dir() and not self.is_whole():
            self.remove()
        try:
            folder.rename(self._folder)
        except OSError:  # another process was first; what else can be in the way is no folder of this kind
            if not self.is_whole():
                raise

    def is_whole(self) -> bool:
        """Whether everything is here, of the same making, and as it was written."""
        done = read_checked(self._folder / _DONE)
        if done is None or done["of"] != self._made_of:
            return False
        files = {self._folder / name: expected for name, expected in done["files"].items()}
        return all(path.is_file() and checksum(path) == expected for path, expected in files.items())

    def read(self, batch: int, layer: int) -> Tensor:
        """A tensor as it was kept."""
        return load_file(self._folder / _name(batch, layer))["tensor"]

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self._folder, ignore_errors=True)  # another process that shares the study may be at it


def _name(batch: int, layer: int) -> str:
    return f"batch{batch:04d}-layer{layer:03d}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors under a temporary name and rename the file."""
    with replacing(path) as temporary:
        save_file(tensors, temporary)
