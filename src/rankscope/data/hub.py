"""Where a base model lies on this machine: a local folder, a model of the package, or the hub's cache."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rankscope.data.architectures import GENERATION_CODE, check_architecture
from rankscope.data.paths import no_revisions, user_path
from rankscope.data.user_cache import user_cache
from rankscope.errors import UserError, first_line
from rankscope.spec import ModelSource

_SMALL_WORLD = "smallworld:"
PACKAGED = {f"{_SMALL_WORLD}base": "base", f"{_SMALL_WORLD}plain": "plain"}
_WHOLE_BYTES = 64 * 2**20
_END_BYTES = 2**20
# Weights in formats that run code when read (.bin, .pt) are not even fetched.
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt"]
# Of an adapter the checkpoints in folders beside it are left where they are.
_TUNED_PATTERNS = ["*.safetensors", "*.json"]


def model_folder(
    source: str, revision: str | None = None, *, needs_tokenizer: bool = True, with_code: bool = False
) -> Path:
    """The folder with a base model's configuration, tokenizer and safetensors.

    Args:
        source: A folder, a `.gguf` file (made into a folder in the user's cache, once), a base of the package
            (`PACKAGED`), or a hub id, which is fetched into the hub's cache (`HF_HOME`, `HF_HUB_OFFLINE` and
            `HF_TOKEN` are obeyed).
        revision: The hub's branch, tag or commit.
        needs_tokenizer: Whether a folder without tokenizer.json is refused.
        with_code: Python files are fetched too, but for those that generate.

    Raises:
        UserError: There is no such model, it cannot be reached, or the folder cannot serve as a base.
    """
    if revision is not None and (source in PACKAGED or user_path(source).exists()):
        raise no_revisions(source)
    if source in PACKAGED:
        return _checked(Path(__file__).parent / "smallworld" / PACKAGED[source], source, needs_tokenizer)
    if _is_misspelt(source):
        close = difflib.get_close_matches(source, PACKAGED, n=1)
        mend = f"did you mean {close[0]}?" if close else f"name {' or '.join(PACKAGED)}"
        raise UserError(f"the package has no base '{source}'", mend=mend)
    path = user_path(source)
    if path.is_dir():
        return _checked(path, source, needs_tokenizer)
    if path.suffix == ".gguf" and path.is_file():
        return _checked(_converted(path), source, needs_tokenizer)
    if path.exists():
        raise UserError(f"'{source}' is a file", mend="name the folder that holds the model")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise UserError(f"there is no model folder '{source}'", mend="name an existing folder, or a hub id")
    patterns = [*_PATTERNS, *(["*.py"] if with_code else [])]
    return _checked(_fetched(source, revision, patterns, [f"{GENERATION_CODE}/*"]), source, needs_tokenizer)


def _is_misspelt(source: str) -> bool:
    """Whether a source is to be a base of the package, and is none: neither a path nor a hub id has a colon there."""
    word, colon, _ = source.partition(":")
    is_meant = bool(difflib.get_close_matches(f"{word}{colon}", [_SMALL_WORLD], n=1, cutoff=0.8))
    return is_meant and bool(colon) and source not in PACKAGED and not user_path(source).exists()


def base_folder(name: str, source: ModelSource) -> Path:
    """The folder of one of a study's bases.

    Raises:
        UserError: There is no such model, it cannot serve as a base, or it needs code that the study does not allow.
    """
    folder = model_folder(source.source, source.revision, with_code=source.trust_remote_code)
    check_architecture(folder, name, trust_remote_code=source.trust_remote_code)
    return folder


def tuned_folder(source: str, revision: str | None = None) -> Path:
    """The folder with an adapter or a whole tuned model, its weights as safetensors or not.

    Args:
        source: A folder, or a hub id, which is fetched into the hub's cache.
        revision: The hub's branch, tag or commit.

    Raises:
        UserError: There is no such folder or hub id, or it holds neither an adapter nor a model.
    """
    path = user_path(source)
    if path.is_file():
        raise UserError("is a file", where=path, mend="name the folder that holds the adapter or the model")
    if not path.is_dir():
        if source.startswith(("/", ".", "~")) or source.count("/") != 1:
            raise UserError("there is no such folder", where=source, mend="name an existing folder, or a hub id")
        path = _fetched(source, revision, _TUNED_PATTERNS, ignored=["*/*"])
    if (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return path
    inside = sorted((child.parent for child in path.glob("*/adapter_config.json")), key=_numbered)
    inside += sorted((child.parent for child in path.glob("*/config.json")), key=_numbered)
    mend = f"name the folder inside it, such as {inside[-1]}" if inside else "name the folder that it was saved to"
    raise UserError("holds neither an adapter (adapter_config.json) nor a model (config.json)", where=path, mend=mend)


def split_revision(source: str) -> tuple[str, str | None]:
    """A hub id and its revision from `org/name@revision`; a folder's name is left whole.

    Examples:
        >>> split_revision("org/name@v2")
        ('org/name', 'v2')
    """
    name, at, revision = source.rpartition("@")
    return (name, revision) if at and not user_path(source).exists() else (source, None)


def local_model(source: str, revision: str | None = None) -> Path | None:
    """Where a model lies on this machine, without reaching a hub; None where only the hub may have it."""
    path = user_path(source)
    is_path = path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1
    if is_path or source in PACKAGED or _is_misspelt(source):
        return path  # whether it can serve as a base is another question
    from huggingface_hub.constants import HF_HUB_CACHE

    # The library's own look takes half a second of imports.
    if not (Path(HF_HUB_CACHE) / f"models--{source.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def hub_commit(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds, which is its name; None for any other folder."""
    is_snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if is_snapshot and is_commit(folder.name) else None


def named_commit(folder: Path, revision: str) -> str | None:
    """The commit that a branch, tag or commit stands for in the hub's cache; None where that cannot be known."""
    if is_commit(revision):
        return revision
    reference = folder.parent.parent / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if hub_commit(folder) and reference.is_file() else None


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit in full, and not a branch or tag."""
    return bool(re.fullmatch(r"[0-9a-f]{40}", revision))


def cached_data_commit(source: str, revision: str) -> str | None:
    """The commit that a branch, tag or commit of a data set stood for when it was last fetched; None where none was.

    Offline, `datasets` serves the newest that its own cache has, whatever revision is asked for; the hub's client
    notes beside the files that it fetches which commit each name was.
    """
    if is_commit(revision):
        return revision
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}" / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def fingerprint(folder: Path, *, with_code: bool = False) -> str:
    """A hash of a model's configuration, tokenizer, weights and, if wanted, code: it changes when the model does.

    Files of up to 64 MB are hashed whole. Of a larger one its size, its first and its last MiB are: the first holds
    safetensors' table of names, shapes and offsets, and training changes every part of a file.
    """
    digest = hashlib.sha256()
    names = ("*.safetensors", "config.json", "generation_config.json", "*token*.json", "chat_template.jinja")
    names += ("**/*.py",) if with_code else ()
    for path in sorted({path for name in names for path in folder.glob(name)}):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _WHOLE_BYTES:
                digest.update(stream.read())
            else:
                digest.update(stream.read(_END_BYTES))
                stream.seek(-_END_BYTES, 2)
                digest.update(stream.read(_END_BYTES))
    return digest.hexdigest()


def _checked(folder: Path, source: str, needs_tokenizer: bool) -> Path:
    """The folder, if it can serve as a base."""
    weights = [path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_model")]
    if (folder / "adapter_config.json").is_file():
        # Of a folder with both transformers would load the adapter, and its base from wherever that names it.
        what = "a model and an adapter, and transformers would load both" if weights else "an adapter, not a model"
        mend = "name its base as the model, or merge it first with peft's merge_and_unload()"
        raise UserError(f"'{source}' holds {what}", where=folder, mend=mend)
    if not weights and any(path for name in ("*.bin", "*.pt", "*.pth") for path in folder.glob(name)):
        raise UserError(
            f"'{source}' has its weights as pickles only, which are never read",
            where=folder,
            mend="convert them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder) writes safetensors",
        )
    needed = ("config.json", "tokenizer.json") if needs_tokenizer else ("config.json",)
    missing = [name for name in needed if not (folder / name).is_file()]
    if not weights:
        missing.append("*.safetensors")
    if missing:
        raise UserError(
            f"'{source}' is no complete model folder: {', '.join(missing)} missing",
            where=folder,
            mend="save model and tokenizer into it with save_pretrained()",
        )
    return folder


def _converted(file: Path) -> Path:
    """The folder that a GGUF file was made into: by its content, so that a changed file is converted anew."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = user_cache() / "gguf" / digest[:32]
    if folder.is_dir():
        return folder
    sys.stderr.write(f"converting {file} to safetensors, once, into {folder}\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as half:
        # In a process of its own: it needs torch, which the plan does without.
        command = [sys.executable, "-m", "rankscope.models.gguf", str(file.resolve()), half]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
            mend = "install the reader (pip install 'rankscope[gguf]'), or name the folder of the original model"
            raise UserError(f"transformers cannot read this GGUF file: {reason}", where=file, mend=mend)
        with contextlib.suppress(OSError):  # another process was faster, with the same folder
            Path(half).rename(folder)
            Path(half).mkdir()  # for the context to remove
    return folder


def _numbered(folder: Path) -> tuple[int, str]:
    """Checkpoints in the order of their steps, `checkpoint-500` before `checkpoint-1000`."""
    number = re.search(r"(\d+)$", folder.name)
    return int(number[1]) if number else 0, folder.name


def _fetched(source: str, revision: str | None, patterns: list[str], ignored: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    key = None
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except HFValidationError:
        problem, mend = f"'{source}' is neither a folder nor a hub id", "name a folder, or a hub id such as org/name"
    except RevisionNotFoundError:
        problem, key = f"the hub's '{source}' has no revision '{revision or 'main'}'", ("revision",)
        mend = "name one of its branches, tags or commits, or leave revision out"
    # The hub's client raises what its transport raises: many unrelated classes, most of them OSError or ValueError.
    except Exception as error:  # noqa: BLE001
        asked = f"'{source}' at revision '{revision}'" if revision else f"'{source}'"
        problem = f"the model {asked} cannot be had from the hub ({type(error).__name__}: {first_line(error)})"
        what = "id, revision" if revision else "id"
        mend = f"check {what} and network (HF_HUB_OFFLINE, HF_TOKEN for gated models), or name a local folder"
    raise UserError(problem, mend=mend, key=key)
