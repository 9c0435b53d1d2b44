"""What a pack reads and writes, as bytes: for machines that do not share the study directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rankscope.plan import Pack
from rankscope.store import CHECKPOINT, RECORD, Store, replacing

Parcel = dict[str, bytes]
# A file's size and time, by which it is known to have changed.
Marks = dict[str, tuple[int, int]]


def needed_files(store: Store, pack: Pack) -> list[str]:
    """The files that a pack reads: the plan, what is known of its base, and its runs' training folders."""
    folders = [store.base(pack.base), *(store.train(run_id) for run_id in pack.run_ids)]
    found = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    # Only training goes on from a checkpoint.
    kept = [path for path in found if pack.stage == "train" or CHECKPOINT not in path.parts]
    return [str(path.relative_to(store.root)) for path in (store.plan_file, *sorted(kept)) if ".tmp" not in path.name]


def read_parcel(root: Path, names: list[str]) -> Parcel:
    """Files by name; one that is gone meanwhile is left out."""
    return {name: (root / name).read_bytes() for name in names if (root / name).is_file()}


def write_parcel(root: Path, parcel: Parcel) -> None:
    """Put files where they belong, each under a temporary name first, records last of all.

    Raises:
        ValueError: A name leads out of the folder.
    """
    for name in sorted(parcel, key=lambda name: (Path(name).name == RECORD, name)):
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{name} leads out of {root}")
        with replacing(path) as temporary:
            temporary.write_bytes(parcel[name])


def marks(root: Path, names: Iterable[str] | None = None) -> Marks:
    """Size and time of files: of all, or of those with these names that are there."""
    if names is None:
        names = (str(path.relative_to(root)) for path in root.rglob("*") if ".tmp" not in path.name)
    entries = {name: (root / name).stat() for name in names if (root / name).is_file()}
    return {name: (entry.st_size, entry.st_mtime_ns) for name, entry in entries.items()}


def changed_files(root: Path, before: Marks) -> list[str]:
    """The files that are new or not as they were."""
    return [name for name, mark in marks(root).items() if before.get(name) != mark]
