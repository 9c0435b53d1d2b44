"""From what a study file calls a source to its rows: files, folders, the small world, presets, the hub."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rankscope.data.folders import ALIASES, no_split, split_files, subset_folder
from rankscope.data.hub import cached_data_commit, is_commit
from rankscope.data.paths import no_revisions, user_path
from rankscope.data.presets import Origin, Preset, all_presets, find_preset, read_preset
from rankscope.data.quiet import quiet
from rankscope.data.readers import READERS, Header, Row, read_file
from rankscope.errors import UserError, first_line, near_miss
from rankscope.runs import DataOrigin
from rankscope.spec import Data, Kind

if TYPE_CHECKING:
    import datasets

Role = Literal["train", "validation", "test"]
SMALL_WORLD = "smallworld:"
_CATEGORY = "category"  # the column of that name, where nothing says otherwise


@dataclass(frozen=True)
class Rows:
    """The rows of a source and how they are to be read.

    Attributes:
        rows: In the source's own order.
        origin: The hub's copies of a data set may spell its rows differently from its files.
        preset: How the rows are read, where the data set is a known one.
        is_preset_stated: The study names the preset; otherwise the source's name suggested it.
        kind: What the data asks for, where the source says so.
        version: Which version of the data this is, for the records.
        description: What is said once before the first question, where the preset has such a text.
    """

    rows: list[Row]
    origin: Origin
    preset: Preset | None = None
    is_preset_stated: bool = False
    kind: Kind | None = None
    version: DataOrigin | None = None
    description: str | None = None


def read_rows(data: Data, role: Role) -> Rows:
    """All rows of a source, or its first `max_examples` (all, where it is known later which these are).

    A local path that exists comes before a preset's name, and that before a hub id.

    Args:
        data: The source with its subset, revision, split and preset.
        role: What the rows are for: the split that is read where the study names none.

    Raises:
        UserError: There is no such source or split, or a file is malformed.
    """
    stated = None if data.preset is None else stated_preset(data.preset)
    path = user_path(data.source)
    if data.source.startswith(SMALL_WORLD):
        found = _small_world(data, role)
    elif path.exists():
        if data.revision is not None:
            raise no_revisions(data.source)
        found = _local(data, role, path, stated)
    elif preset := find_preset(data.source):
        used = stated or preset
        found = _from_hub(_of_preset(data, preset, role), role, used, is_stated=True)
    elif _may_be_hub_id(data.source):
        known = next((preset for preset in all_presets().values() if _is_of(preset, data.source)), None)
        found = _from_hub(data, role, stated or known, is_stated=stated is not None)
    else:
        raise _unknown(data.source)
    return found if _is_cut_later(data, found) else dataclasses.replace(found, rows=found.rows[: data.max_examples])


def _is_cut_later(data: Data, found: Rows) -> bool:
    """A part is cut by what rows say, and of rows that are sorted by category the first of each are taken."""
    if data.part is not None or not found.rows:
        return data.part is not None
    first, last = found.rows[0], found.rows[-1]
    is_by_file = last.category is not None and last.category != first.category
    is_by_preset = found.preset is not None and found.preset.has_categories
    return is_by_file or is_by_preset or _CATEGORY in first.values or _CATEGORY in (data.columns or {})


def check_source(source: str | None) -> None:
    """Refuse what can be no source, without reading anything.

    Raises:
        UserError: There is no such file, and it is neither a preset nor what a hub's id looks like.
    """
    is_known = source is None or source.startswith(SMALL_WORLD) or find_preset(source) is not None
    if source is not None and not (is_known or user_path(source).exists() or _may_be_hub_id(source)):
        raise _unknown(source)


def _may_be_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)) and Path(source).suffix.lower() not in READERS


def _is_of(preset: Preset, hub_id: str) -> bool:
    return hub_id == preset.hub.id or hub_id in preset.hub.others


def _unknown(source: str) -> UserError:
    from rankscope.data.smallworld.rows import TASKS

    known = [*all_presets(), *(f"{SMALL_WORLD}{task}" for task in TASKS)]
    close = difflib.get_close_matches(source, known, n=1, cutoff=0.6)
    kind = "" if close and close[0].startswith(SMALL_WORLD) else "the preset "
    mend = f"did you mean {kind}'{close[0]}'?" if close else "check the path (it is taken from where you are)"
    if "/" not in source and not Path(source).suffix and kind:
        mend += f"; presets are {', '.join(all_presets())}"
    return UserError(f"there is no file, preset or hub id '{source}'", key=("source",), mend=mend)


def preset_of(data: Data) -> Preset | None:
    """The preset that a source is read by: the one that is named, or whose name or hub id the source is."""
    if data.preset is not None:
        return stated_preset(data.preset)
    by_id = (preset for preset in all_presets().values() if _is_of(preset, data.source))
    return find_preset(data.source) or next(by_id, None)


def stated_preset(name: str) -> Preset:
    """A preset by its name, or a file of the user's own.

    Raises:
        UserError: There is no such preset, or the file is none.
    """
    if name.endswith((".yaml", ".yml")):
        return read_preset(user_path(name))
    preset = find_preset(name)
    if preset is None:
        known, close = f"Known: {_listed(all_presets())}", near_miss(name, all_presets())
        mend = f"{close} {known}" if close else known
        raise UserError(f"there is no preset '{name}'", key=("preset",), mend=mend)
    return preset


def _named_preset(path: Path) -> Preset | None:
    """The preset that a folder or file is named after."""
    names = (path.resolve().name,) if path.is_dir() else (path.stem, path.resolve().parent.name)
    return next((preset for name in names if (preset := find_preset(name))), None)


# The small world ----------------------------------------------------------------------------------------------------


def _small_world(data: Data, role: Role) -> Rows:
    # The world is generated when it is first asked for, which takes a moment that other studies need not spend.
    from rankscope.data.smallworld.rows import TASKS, rows

    name = data.source.removeprefix(SMALL_WORLD)
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        mend = f"did you mean '{SMALL_WORLD}{close[0]}'? " if close else ""
        mend += f"It has {_listed(TASKS)}"
        raise UserError(f"the small world has no task '{name}'", where=data.source, mend=mend)
    task = TASKS[name]
    split = data.split or role
    if split not in task.splits:
        raise no_split(data.source, split, list(task.splits))
    found = [Row(values, f"{data.source}[{split}]", line) for line, values in enumerate(rows(name, split), start=1)]
    content = hashlib.sha256(json.dumps([row.values for row in found], sort_keys=True).encode()).hexdigest()
    return Rows(found, "files", kind=task.kind, version=DataOrigin(source=data.source, split=split, sha256=content))


# Folders ------------------------------------------------------------------------------------------------------------


def _local(data: Data, role: Role, path: Path, stated: Preset | None) -> Rows:
    """The rows of a file or of a split of a folder, with a hash of the files that they came from."""
    preset = stated or _named_preset(path)
    split = data.split or role
    if path.is_dir() and data.subset is not None:
        path = subset_folder(path, data.subset)
    files = split_files(path, _wanted(split, preset)) if path.is_dir() else [(path, None)]
    rows: list[Row] = []
    for file, category in files:
        of_file = _read(file, preset)
        rows += of_file if category is None else [dataclasses.replace(row, category=category) for row in of_file]
    subset = data.subset or (path.name if path.is_dir() else path.resolve().parent.name)
    return Rows(
        rows,
        "files",
        preset,
        stated is not None,
        version=DataOrigin(
            source=data.source,
            subset=data.subset,
            split=split if path.is_dir() else None,
            sha256=_hash([file for file, _ in files]),
        ),
        description=preset.description(subset) if preset else None,
    )


def _read(file: Path, preset: Preset | None) -> list[Row]:
    if preset is None:
        return read_file(file)
    known = frozenset(name for layout in preset.layouts for name in layout.has)
    rows = read_file(file, Header(preset.files.columns, known) if preset.files.columns else None)
    if preset.files.labels is None or preset.files.label in rows[0].values:
        return rows
    beside = file.with_name(preset.files.labels.replace("{stem}", file.stem))
    if not beside.is_file():
        return rows
    labels = beside.read_text(encoding="utf-8").split()
    if len(labels) != len(rows):
        raise UserError(
            f"{len(labels)} right answers for {len(rows)} rows", where=beside, mend="download both files again"
        )
    return [
        dataclasses.replace(row, values={**row.values, preset.files.label: label})
        for row, label in zip(rows, labels, strict=True)
    ]


def _hash(files: Sequence[Path]) -> str:
    """A hash of what files hold and of their order, not of where they lie."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _wanted(split: str, preset: Preset | None) -> tuple[str, ...]:
    """The names under which a split is looked for, best first: `dev` is validation to many, and to some also test."""
    names = (split,) if preset is None else (split, preset.hub.splits.get(split, split))
    preferred = () if preset is None else (preset.files.splits.get(split),)
    aliases = (alias for name in names for alias in (name, *ALIASES.get(name, ())))
    return tuple(dict.fromkeys(name for name in (*preferred, *aliases) if name is not None))


def _listed(names: object) -> str:
    return ", ".join(names)


# The hub ------------------------------------------------------------------------------------------------------------


def _of_preset(data: Data, preset: Preset, role: Role) -> Data:
    """The hub's address of a preset, with what the study says laid over it."""
    wanted = data.split or role
    fields = {
        "source": preset.hub.id,
        "subset": data.subset or preset.hub.subset,
        "revision": data.revision or preset.hub.revision,
        "split": preset.hub.splits.get(wanted, wanted),
    }
    return data.model_copy(update=fields)


def _from_hub(data: Data, role: Role, preset: Preset | None, *, is_stated: bool) -> Rows:
    if preset is not None and preset.hub.needs_subset and data.subset is None and _is_of(preset, data.source):
        raise UserError(
            f"'{preset.name}' is many tasks and none of them is named",
            key=("source",),
            mend="set `subset` to one of them, for example "
            + " or ".join(name for name in list(preset.descriptions)[:2] if name),
        )
    has_categories = (preset is not None and preset.has_categories) or _CATEGORY in (data.columns or {})
    rows, commit = _hub(data, role, has_categories=has_categories)
    version = DataOrigin(
        source=data.source, subset=data.subset, split=data.split or role, revision=data.revision, commit=commit
    )
    description = preset.description(data.subset) if preset else None
    return Rows(rows, "hub", preset, is_stated, version=version, description=description)


def _hub(
    data: Data, role: Role, load: Callable[..., object] | None = None, *, has_categories: bool = False
) -> tuple[list[Row], str | None]:
    """The rows, and the commit that they are of where the library says it."""
    if load is None:
        # Two seconds of import that local data does not need.
        from datasets import load_dataset as load
    split = data.split or role
    try:
        with quiet("huggingface_hub"):  # it tells of every try to reach the hub
            table = load(data.source, data.subset, revision=data.revision, split=split)
    # The hub's clients raise what their transport raises: many unrelated classes, most of them OSError or ValueError.
    except Exception as error:  # noqa: BLE001
        raise UserError(
            f"the data set cannot be had from the hub ({first_line(error)})",
            where=data.source,
            mend="check id, subset and split, and the network (HF_HUB_OFFLINE), or set `source` to a local file, and "
            "`preset` to how its rows are read",
        ) from None
    commit = _commit(table)
    if commit is not None:
        _check_commit(data, commit)
    is_cut_later = data.part is not None or has_categories or _CATEGORY in table.column_names  # see there
    if data.max_examples is not None and not is_cut_later:
        table = table.select(range(min(data.max_examples, len(table))))
    rows = [Row(dict(values), f"{data.source}[{split}]", line) for line, values in enumerate(table, start=1)]
    return rows, commit


def unknown_revision(version: DataOrigin) -> str | None:
    """What to tell of a branch or tag that nothing on this machine says the commit of."""
    if version.revision is None or cached_data_commit(version.source, version.revision) is not None:
        return None
    read = f"commit {version.commit}" if version.commit else "the newest that the cache has"
    mend = "name the commit, or fetch it once with the network"
    return f"which commit `revision: {version.revision}` is, the cache does not say; {read} was read: {mend}"


def _check_commit(data: Data, commit: str) -> None:
    """Refuse rows of another commit than the revision's: offline, `datasets` takes the newest that its cache has."""
    revision = data.revision or "main"
    wanted = cached_data_commit(data.source, revision)
    if wanted in (None, commit):
        return
    named = revision if wanted == revision else f"{revision} ({wanted})"
    what = f"of what the cache holds the newest is commit {commit}, and not {named}"
    mend = "name the commit that is here, or where there is a network save the other with "
    mend += f'load_dataset("{data.source}", revision="{revision}").save_to_disk(FOLDER), and name that folder'
    raise UserError(what, where=data.source, key=("revision",), mend=mend)


def _commit(table: datasets.Dataset) -> str | None:
    """The commit of a hub data set, which the folder with its rows in the library's cache is named by."""
    found = {Path(file["filename"]).parent.name for file in table.cache_files}
    commits = [name for name in found if is_commit(name)]
    return commits[0] if len(commits) == 1 else None
