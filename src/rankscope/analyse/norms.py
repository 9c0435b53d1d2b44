"""The norms of a base's matrices on disk, so that they are computed once."""

from __future__ import annotations

import time
from pathlib import Path

from rankscope.analyse.matrices import BaseNorms, base_norms
from rankscope.models.fused import Part
from rankscope.models.updates import Update
from rankscope.store import read_checked, write_checked

# Norms found so far are written after so many seconds, so that long work that is stopped goes on from there.
_KEEP_SECONDS = 20.0


class NormCache:
    """Norms by matrix, shared by all that is compared with one base; what several processes add twice is the same.

    Args:
        path: The file of one base.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._norms = {name: BaseNorms(*norms) for name, norms in (read_checked(path) or {}).items()}
        self._num_written = len(self._norms)
        self._written_at = time.monotonic()

    def of(self, update: Update | Part) -> BaseNorms:
        """The norms of the matrix that an update belongs to."""
        if update.name not in self._norms:
            self._norms[update.name] = base_norms(update)
            if time.monotonic() - self._written_at > _KEEP_SECONDS:
                self.write()
        return self._norms[update.name]

    def write(self) -> None:
        """Write what is new."""
        if len(self._norms) > self._num_written:
            write_checked(self._path, {name: (norms.frobenius, norms.spectral) for name, norms in self._norms.items()})
        self._num_written, self._written_at = len(self._norms), time.monotonic()
