"""Paths as a person writes them."""

from __future__ import annotations

from pathlib import Path

from rankscope.errors import UserError


def user_path(text: str) -> Path:
    """A path in which `~` is the home folder; where it is nobody's, it is part of a name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def no_revisions(source: str) -> UserError:
    """The error for a revision of what lies on this machine."""
    mend = "leave revision out, or name a hub id as the source"
    return UserError(f"'{source}' lies on this machine, where there are no revisions", key=("revision",), mend=mend)
