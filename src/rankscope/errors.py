"""The errors that a person can mend: each says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """Something in the study file, the data or the machine is wrong and a person can mend it (exit status 2).

    Args:
        what: What is wrong, in one sentence.
        where: The file, with the line or the key where known.
        mend: What to do about it.
        key: The keys that lead to it in the study file, an arm by its label; where not given, a `where` such as
            `execute.device` says it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        mend: str | None = None,
        key: Sequence[str] | None = None,
    ) -> None:
        self.what = what
        self.key = tuple(key) if key is not None else None
        self.where = None if where is None else str(where)
        self.mend = mend
        super().__init__(self.message())

    def message(self) -> str:
        """The error as it is shown: `where: what`, and the mend on a line of its own."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  mend: {self.mend}" if self.mend else head


class NotAvailable(Exception):
    """An analysis cannot say anything about this kind of model or method; that is a result, and no failure."""


class MachineError(Exception):
    """Something outside stands in the way (a full disk, a changed model): what was computed stays and can go on."""


class DamagedFile(Exception):
    """A file of a study is missing, cut short or changed since its record was written; running again mends it."""


def line_of(path: str | Path, line: int | None) -> str:
    """A file and a line in the form that editors open: `data/ours.jsonl:17`."""
    return f"{path}:{line}" if line else str(path)
