"""Reading back what training changed, from disk, one matrix at a time.

Both models are never in memory: what an update is stands in the files' headers, and its numbers are read when they are
asked for, matrix by matrix. Adapters and whole models of this package and of others are read alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peft.utils import CONFIG_NAME, PeftType

from rankscope.errors import UserError
from rankscope.models.base_tensors import BaseTensors
from rankscope.models.lora_folder import LoraFolder, read_lora_folder
from rankscope.models.lora_tensors import LoraTensors
from rankscope.models.merged import CannotMerge, MergedTensors
from rankscope.models.methods.bottleneck import CONFIG as BOTTLENECK_CONFIG
from rankscope.models.methods.pack import ADAPTER, MODEL
from rankscope.models.opening import AS_IT_IS
from rankscope.models.tensor_files import TensorFiles
from rankscope.models.updates import Update, in_order
from rankscope.models.whole_tensors import WholeTensors, resized
from rankscope.runs import Opening


@dataclass(frozen=True)
class Tuned:
    """A trained folder as it was understood, before any tensor is read.

    Attributes:
        folder: Where it lies.
        updates: What it changed, in the order of the layers.
        lora: The settings and tensors of an adapter; None for a whole model.
        notes: What a reader of its numbers should know.
    """

    folder: Path
    updates: tuple[Update, ...]
    lora: LoraFolder | None
    notes: tuple[str, ...]


def trained_folder(train: Path) -> Path:
    """The folder with a run's adapter or weights inside its training folder.

    Raises:
        UserError: It holds neither.
    """
    for name in (ADAPTER, MODEL):
        if (train / name).is_dir():
            return train / name
    raise UserError("holds no trained weights", where=train, mend="run the study again: it trains what is missing")


def iter_updates(base_folder: Path, trained_folder: Path, opening: Opening = AS_IT_IS) -> Iterator[Update]:
    """What a training run changed, tensor by tensor, in the order of the layers.

    Args:
        base_folder: The base, a Hugging Face folder with safetensors.
        trained_folder: A PEFT folder, or a Hugging Face folder of the whole tuned model.
        opening: What the study says of the base.

    Raises:
        UserError: A folder is not of that form, or the tuned weights do not belong to this base.
        CannotMerge: An adapter is no change of the base's weights.
    """
    yield from read_tuned(base_folder, trained_folder, opening).updates


def read_tuned(base_folder: Path, trained_folder: Path, opening: Opening = AS_IT_IS) -> Tuned:
    """Read what was changed by whom, from the headers of the files, and check that it belongs to this base.

    Args:
        base_folder: As for `iter_updates`.
        trained_folder: As for `iter_updates`.
        opening: As for `iter_updates`.

    Raises:
        UserError: As for `iter_updates`.
        CannotMerge: An adapter is no change of the base's weights.
    """
    base = BaseTensors(base_folder, opening)
    if (kind := _adapter_kind(trained_folder)) is not None and kind != "LORA":
        merged = MergedTensors(base, trained_folder)
        note = f"updates of {merged.method} are its layers merged by PEFT less the base's"
        return Tuned(trained_folder, tuple(merged.updates()), None, (note,))
    if kind is not None:
        lora = read_lora_folder(trained_folder)
        updates = LoraTensors(base, lora).updates()
        return Tuned(trained_folder, tuple(updates), lora, (*lora.notes, *resized(updates)))
    files = TensorFiles.of_model(trained_folder)
    keys = {base.parameter(key): key for key in files.files}
    _check_names(base, keys, trained_folder)
    wanted = {name: keys[name] for name in sorted(keys, key=in_order) if not base.is_optional(name)}
    updates = WholeTensors(base, files).updates(wanted)
    return Tuned(trained_folder, tuple(updates), None, tuple(resized(updates)))


def _adapter_kind(folder: Path) -> str | None:
    """PEFT's type of an adapter's folder; None for a whole model.

    Raises:
        CannotMerge: It holds bottleneck adapters.
    """
    if (folder / BOTTLENECK_CONFIG).is_file():
        raise CannotMerge("bottleneck adapters are functions beside the base, and no weight of the base changes")
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"is no JSON ({error})", where=path, mend="copy or download the file again") from None
    # Anything else is for the reader of LoRA folders to refuse.
    kind = stored.get("peft_type") if isinstance(stored, dict) else None
    return kind if kind in {member.value for member in PeftType} else "LORA"


def _check_names(base: BaseTensors, keys: Iterable[str], folder: Path) -> None:
    """Refuse a whole model that has more or fewer tensors than the base."""
    for name in sorted(base.keys.keys() ^ {base.canonical(key) for key in keys}, key=in_order):
        if not base.is_optional(name):
            text = f"{name} is in the {'base' if name in base.keys else 'tuned model'} only"
            raise UserError(text, where=folder, mend="is this the base it was tuned from?")
