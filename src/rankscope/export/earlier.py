"""What an earlier export of a study wrote into a folder, so that what is no more of the study does not stay there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from rankscope.errors import UserError
from rankscope.store import write_text

LISTED = ".rankscope-export.json"
Listed: TypeAlias = dict[
    str, dict[str, list[str]]
]  # by study directory and part, the names of the files in the part's folder


def remove_stale(out: Path, study: Path, part: str, names: set[str]) -> None:
    """Remove what the study's last export of a part wrote and this one did not; list what is there now.

    Files that are not listed, and those of other study directories in the same folder, are left alone.

    Args:
        out: The folder that is exported to.
        study: The study directory.
        part: Of `PARTS`; its folder has this name.
        names: The files that were written just now.
    """
    listed, key = _read(out / LISTED), _key(out, study)
    others = {name for one, parts in listed.items() if one != key for name in parts.get(part, [])}
    stale = {*listed.get(key, {}).get(part, [])} - names - others
    for name in sorted(stale):
        (out / part / Path(name).name).unlink(missing_ok=True)  # never outside the part's folder
    listed.setdefault(key, {})[part] = sorted(names)
    write_text(out / LISTED, json.dumps(listed, indent=1) + "\n")


def _key(out: Path, study: Path) -> str:
    """Of a study directory as seen from the folder, so that the two may move together; no path for others to read."""
    seen = os.path.relpath(study.resolve(), out.resolve())
    return f"{study.resolve().name}-{hashlib.sha256(seen.encode()).hexdigest()[:8]}"


def _read(path: Path) -> Listed:
    try:
        document: Mapping[str, Mapping[str, list[str]]] = json.loads(path.read_text(encoding="utf-8"))
        return {study: {part: list(names) for part, names in parts.items()} for study, parts in document.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        what = "is not the list of files that an export keeps there"
        raise UserError(what, where=path, mend="remove it, or choose another --out") from None
