"""Where a person's cache lies: what can be computed again, and is kept for every study because it takes long."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`$RANKSCOPE_CACHE`, else `rankscope` in the user's cache folder; it may be deleted at any time."""
    if named := os.environ.get("RANKSCOPE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankscope"
