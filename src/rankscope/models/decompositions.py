"""The singular value decompositions of bases' matrices, each computed once and kept for every run, study and process.

A decomposition is found by the matrix's content: two bases that share a matrix share its decomposition, and a changed
matrix never meets an old one. The cache lies in the folder that `RANKSCOPE_CACHE` names, else in `rankscope` in the
user's cache folder. It holds nothing but copies of what can be computed again, so it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankscope.store import replacing

# Of the files, and a folder's name. Another format, or another meaning of the same tensors, gets another number.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Decomposition:
    """A matrix's thin singular value decomposition, `W0 = U diag(S) Vh`.

    Attributes:
        U: Left singular vectors as columns.
        S: Singular values, largest first, in float64.
        Vh: Right singular vectors as rows.
    """

    U: Float[Tensor, "d_out num_values"]
    S: Float[Tensor, " num_values"]
    Vh: Float[Tensor, "num_values d_in"]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix."""
        return self.U.shape[0], self.Vh.shape[1]


def decompose(W0: Float[Tensor, "d_out d_in"]) -> Decomposition:
    """The decomposition of a matrix, computed in float64."""
    return Decomposition(*torch.linalg.svd(W0.double(), full_matrices=False))


class Decompositions:
    """A folder of decompositions, found by the content of the matrix.

    Vectors are kept in float32, which is what weights have; singular values in float64.

    Args:
        root: The cache's folder.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "decompositions" / f"v{FORMAT_VERSION}"

    def of(self, W0: Float[Tensor, "d_out d_in"]) -> Decomposition:
        """The decomposition of a matrix: read, or computed and kept where there is none or it is damaged.

        Processes that want the same one at once wait for the first of them.
        """
        path = self._folder / f"{content_hash(W0)}.safetensors"
        if (found := _read(path)) is not None:
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if (found := _read(path)) is None:
                _write(path, decompose(W0))
                found = _read(path)  # what everybody else will read, to the last digit
        if found is None:
            raise OSError(f"{path} was written and cannot be read")
        return found


def content_hash(W0: Float[Tensor, "d_out d_in"]) -> str:
    """A SHA-256 of a matrix: its shape, precision and bytes, however it lies in memory."""
    digest = hashlib.sha256(f"{tuple(W0.shape)} {W0.dtype}".encode())
    digest.update(W0.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, found: Decomposition) -> None:
    tensors = {"U": found.U.float(), "S": found.S, "Vh": found.Vh.float()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format_version": str(FORMAT_VERSION), "sha256": _checksum(tensors)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _read(path: Path) -> Decomposition | None:
    """What a file holds; None where there is none, or where it is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("U", "S", "Vh")}
            expected = (file.metadata() or {}).get("sha256")
    except (FileNotFoundError, SafetensorError):
        return None
    return Decomposition(**tensors) if _checksum(tensors) == expected else None


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("U", "S", "Vh"):
        digest.update(tensors[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system takes it back from a process that dies."""
    with path.with_name(f".{path.stem}.lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a network file system without locks: the work may be done twice
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
