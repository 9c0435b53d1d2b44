"""Paths as a person writes them."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str) -> Path:
    """A path in which `~` is the home folder; where it is nobody's, it is part of a name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
