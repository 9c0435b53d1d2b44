"""The errors that a person can mend: each says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Keys = tuple[str, ...]


class UserError(Exception):
    """Something in the study file, the data or the machine is wrong and a person can mend it (exit status 2).

    Args:
        what: What is wrong, in one sentence.
        where: The file, with the line where known; where not given, the key.
        mend: What to do about it.
        key: The keys that lead to it in the study file, an arm by its label; where not given, a `where` such as
            `execute.device` says it.

    Attributes:
        asked_by: The keys of the study file because of which `where` was read.
        named_in: Where those stand, in words.
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
        self.key: Keys | None = tuple(key) if key is not None else None
        self._where = None if where is None else str(where)
        self.mend = mend
        self.asked_by: Keys | None = None
        self.named_in: str | None = None
        super().__init__(what)

    def __str__(self) -> str:
        """The whole message."""
        return self.message()

    @property
    def where(self) -> str | None:
        """The file with its line, or else the key."""
        return self._where if self._where is not None or self.key is None else ".".join(self.key)

    def message(self) -> str:
        """The error as it is shown: `where: what`, the mend on a line of its own, and what asked for the file."""
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  mend: {self.mend}"] if self.mend else []
        lines += [f"  named in {self.named_in}"] if self.named_in else []
        return "\n".join(lines)

    def put_into(self, section: Keys, default: Keys = ()) -> None:
        """Say in which section of the study file the key is that the error is about, or that asked for its file.

        Args:
            section: The section's keys.
            default: The key inside it, where the error has none.
        """
        keys = (*section, *(self.asked_by or self.key or default))
        if self._where is None:
            self.key = keys
        else:
            self.asked_by, self.key = keys, None


@contextmanager
def within(*section: str, default: str | None = None) -> Iterator[None]:
    """Errors raised inside are about a key of this section, or about a file that it asks for.

    Args:
        *section: The section's keys: `"train", "ours"`.
        default: The key of it that errors without one are about.
    """
    try:
        yield
    except UserError as error:
        error.put_into(section, () if default is None else (default,))
        raise


def in_arm(label: str, key: str, what: str, mend: str) -> UserError:
    """The error for a key of an arm."""
    return UserError(what, where=f"arm {label}, {key}", mend=mend, key=("arms", label, key))


class UnusableBase(UserError):
    """A base that shows only when it is loaded that nothing can be done with it."""


class NotAvailable(Exception):
    """An analysis cannot say anything about this kind of model or method; that is a result, and no failure."""


class MachineError(Exception):
    """Something outside stands in the way (a full disk, a changed model): what was computed stays and can go on."""


class DamagedFile(Exception):
    """A file of a study is missing, cut short or changed since its record was written; running again mends it."""


def line_of(path: str | Path, line: int | None) -> str:
    """A file and a line in the form that editors open: `data/ours.jsonl:17`."""
    return f"{path}:{line}" if line else str(path)


def near_miss(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """A mend for a misspelt word: the nearest known one; None where none is as much alike as `cutoff` (0 to 1) says."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"did you mean '{close[0]}'?" if close else None


def first_line(error: BaseException) -> str:
    """What an error says in its first line that is not blank; the error's kind where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
