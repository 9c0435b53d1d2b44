"""Weights on disk, tensor by tensor, from safetensors only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankscope.data.shapes import INDEX, WEIGHTS, shards
from rankscope.errors import UserError

# A trainer leaves other pickles beside the weights (training_args.bin, optimizer.pt); these are weights themselves.
_PICKLES = ("adapter_model*.bin", "pytorch_model*.bin", "consolidated*.pth", "*.pt", "*.ckpt", "mp_rank_*")


class TensorFiles:
    """Tensors by name in safetensors files, each read when asked for.

    Args:
        files: By tensor, the file that holds it.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files
        self._shapes: dict[str, tuple[int, ...]] = {}

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
        if (folder / WEIGHTS).is_file():
            return cls._of_file(folder / WEIGHTS)
        if not (folder / INDEX).is_file():
            raise _no_safetensors(folder, WEIGHTS)
        return cls(shards(folder))

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        if key not in self._shapes:
            # All of a file at once, for opening it reads its whole header.
            with _opened(self.files[key]) as tensors:
                self._shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        return self._shapes[key]

    def dtype(self, key: str) -> str:
        """A tensor's kind of number as safetensors spells it (`BF16`), without reading it."""
        with _opened(self.files[key]) as tensors:
            return tensors.get_slice(key).get_dtype()

    def read(self, key: str) -> Tensor:
        """One tensor, in the precision of the file."""
        with _opened(self.files[key]) as tensors:
            return tensors.get_tensor(key)

    def read_rows(self, key: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, without reading the others."""
        with _opened(self.files[key]) as tensors:
            return tensors.get_slice(key)[start:stop]

    @classmethod
    def _of_file(cls, path: Path) -> TensorFiles:
        with _opened(path) as tensors:
            return cls(dict.fromkeys(tensors.keys(), path))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; one that is cut short or lacks a tensor that its index promises is named."""
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        text = f"cannot be read as safetensors ({error})"
        raise UserError(text, where=path, mend="copy or download the file again: it is damaged or cut short") from None


def _no_safetensors(folder: Path, name: str) -> UserError:
    if not folder.is_dir():
        return UserError("there is no such folder", where=folder, mend="check the path")
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)} - _TRAINER_STATE)
    if pickles:
        return UserError(
            f"the weights are a pickle ({pickles[0]}), which can run code when it is read; only safetensors are read",
            where=folder,
            mend=f"where you trust it: {_conversion(folder, name)}",
        )
    return UserError(f"holds no {name}", where=folder, mend="copy it there, or name the folder that has it")


_TRAINER_STATE = {"optimizer.pt", "scheduler.pt", "scaler.pt"}


def _conversion(folder: Path, name: str) -> str:
    """The command that writes safetensors beside a pickle, which `weights_only` keeps from running code."""
    if name == SAFETENSORS_WEIGHTS_NAME:
        path = folder / "adapter_model.bin"
        call = f"t = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        call += "save_file({k: v.contiguous() for k, v in t.items()}, "
        return f'python -c "import torch; from safetensors.torch import save_file; {call}{str(folder / name)!r})"'
    call = f"A.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({str(folder)!r})"
    return f'python -c "from transformers import AutoModelForCausalLM as A; {call}"'
