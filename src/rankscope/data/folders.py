"""Which files of a folder hold a split: by `datasets`' own notes, or by how files and folders are called."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rankscope.data.readers import READERS
from rankscope.errors import UserError

ALIASES: dict[str, tuple[str, ...]] = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_METADATA = {"dataset_info.json", "dataset_dict.json", "state.json"}


def subset_folder(folder: Path, subset: str) -> Path:
    """The folder of a subset: below the data set's own, or below a folder of tasks in it.

    Raises:
        UserError: There is none; with those that there are.
    """
    for place in (folder, folder / "data", folder / "tasks"):
        if (place / subset).is_dir() and (place / subset).resolve().is_relative_to(folder.resolve()):
            return place / subset
    if folder.name == subset:
        return folder
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    mend = f"it has {', '.join(known)}" if known else "leave `subset` out, or name the folder above"
    raise UserError(f"there is no subset '{subset}'", where=folder, key=("subset",), mend=mend)


def split_files(folder: Path, wanted: tuple[str, ...]) -> list[tuple[Path, str | None]]:
    """The files of a split, each with its category: of a folder that `datasets` wrote, or of one laid out by hand.

    Args:
        folder: Of the data set.
        wanted: The names under which the split is looked for, best first.

    Raises:
        UserError: The folder has no such split, or no data at all.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        return [(path, None) for path in _saved(folder / _first_known(folder, wanted, splits))]
    if (folder / "state.json").is_file():
        return [(path, None) for path in _saved(folder)]
    exact = [path for path in _data_files(folder) if path.stem == wanted[0]]
    files = exact if len(exact) == 1 else _laid_out_by_hand(folder, wanted)
    several = len(files) > 1 and not any(_SHARD.search(path.stem) for path in files)
    return [(path, _category(path, wanted) if several else None) for path in files]


def _saved(folder: Path) -> list[Path]:
    """The files of a folder written by `Dataset.save_to_disk`: Arrow files that its state.json lists."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            "state.json is not what datasets' save_to_disk writes", where=folder, mend="save the data set again"
        ) from None
    # The names come from a file: what they say stays inside the folder.
    return [folder / Path(str(name)).name for name in names]


def _laid_out_by_hand(folder: Path, wanted: tuple[str, ...]) -> list[Path]:
    inside = _data_files(folder)
    below = {path.name: _data_files(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    splits = {name: files for name, files in below.items() if files}
    for path in inside:
        if name := _split_name(path.stem, wanted):
            splits.setdefault(name, []).append(path)
    if inside and not any(_split_name(path.stem, wanted) for path in inside) and not set(wanted) & set(splits):
        return inside  # files that name no split are the whole data set
    if not splits:
        raise UserError(
            "the folder holds no data files", where=folder, mend=f"files that end in {', '.join(READERS)} are read"
        )
    if "data" in splits and not set(wanted) & set(splits):  # the layout of the hub's repositories
        return _laid_out_by_hand(folder / "data", wanted)
    return splits[_first_known(folder, wanted, sorted(splits))]


def _data_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in READERS)
    return sorted((path for path in files if path.name not in _METADATA and path.name[0] != "."), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts part2 before part10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _split_name(stem: str, wanted: tuple[str, ...]) -> str | None:
    """The split that a file's name says: train.jsonl, anatomy_test.csv, train-00000-of-00003.parquet."""
    parts = re.split(r"[-_.]", stem.lower())
    names = {"train", *(name for names in ALIASES.values() for name in names), *wanted}
    return stem if stem in names else next((part for part in (parts[0], parts[-1]) if part in names), None)


def says_split(stem: str, split: str) -> bool:
    """Whether a file's name says that it holds a split."""
    return _split_name(stem, (split,)) in (split, *ALIASES.get(split, ()))


def _category(path: Path, wanted: tuple[str, ...]) -> str:
    return next((path.stem[: -len(end) - 1] for end in wanted if path.stem.endswith(f"_{end}")), path.stem)


def _first_known(folder: Path, wanted: tuple[str, ...], splits: list[str]) -> str:
    for name in wanted:
        if name in splits:
            return name
    raise no_split(str(folder), wanted[0], splits)


def no_split(source: str, split: str, known: list[str]) -> UserError:
    """The error for a split that a source does not have."""
    return UserError(
        f"there is no split '{split}'", where=source, key=("split",), mend=f"set `split` to one of {', '.join(known)}"
    )
