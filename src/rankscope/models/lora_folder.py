"""A LoRA folder as PEFT and the trainers built on it write it: its settings, and what each of its tensors is.

TRL, Unsloth, Axolotl, LLaMA-Factory and ms-swift save through PEFT. What differs between versions and wrappers is the
spelling of the names: PEFT's prefix or none, the adapter's name kept inside, wrappers of torch.compile and FSDP.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from peft.utils import CONFIG_NAME

from rankscope.errors import UserError
from rankscope.models.methods.folders import scaling_of
from rankscope.models.tensor_files import TensorFiles

Part = Literal["A", "B", "embedding_A", "embedding_B", "magnitude", "B_bias", "tokens"]

# Initialisations that take a part out of the base, so that B @ A is not what the model moved by.
_ALTERS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Options under which PEFT computes something else than W0 + scaling * B @ A (or DoRA's rescaling of it).
_UNKNOWN_FORMS = ("use_qalora", "kasa_config", "monteclora_config", "use_bdlora", "arrow_config", "layer_replication")
_PREFIX = re.compile(r"^(module\.)?(base_model\.model\.)?")
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Between a part and the end of the key, older savers keep the adapter's name (`lora_A.default.weight`).
_PARTS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    ("A", re.compile(r"^(.+)\.lora_A(\.[^.]+)?\.weight$")),
    ("B", re.compile(r"^(.+)\.lora_B(\.[^.]+)?\.weight$")),
    ("B_bias", re.compile(r"^(.+)\.lora_B(\.[^.]+)?\.bias$")),
    ("embedding_A", re.compile(r"^(.+)\.lora_embedding_A(\.[^.]+)?$")),
    ("embedding_B", re.compile(r"^(.+)\.lora_embedding_B(\.[^.]+)?$")),
    ("magnitude", re.compile(r"^(.+)\.lora_magnitude_vector(\.[^.]+)??(\.weight)?$")),
    ("tokens", re.compile(r"^(.+?)(\.token_adapter)?\.trainable_tokens_delta(\.[^.]+)?$")),
)


@dataclass
class Adapted:
    """The tensors of one adapted module: by part, their keys in the file."""

    module: str
    keys: dict[Part, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFolder:
    """A LoRA adapter on disk.

    Attributes:
        folder: Where it lies.
        config: PEFT's settings.
        stored: The same as they are in the file, keys of other tools included.
        files: Its tensors.
        adapted: By module, what was adapted; `.base_layer` at the end of a module stays.
        whole: By parameter, tensors that were saved whole (`modules_to_save`, trained biases, resized tables).
        base_copies: By parameter, copies of the base's own tables that PEFT saves beside an adapter on them.
        notes: What a reader should know of how it was read.
    """

    folder: Path
    config: LoraConfig
    stored: dict[str, Any]
    files: TensorFiles
    adapted: dict[str, Adapted]
    whole: dict[str, str]
    base_copies: dict[str, str]
    notes: tuple[str, ...]

    def scaling(self, module: str, rank: int) -> float:
        """PEFT's factor on `B @ A` for one module: alpha/rank, or alpha/sqrt(rank) for rank-stabilised LoRA."""
        return scaling_of(self.config, module, rank)


def read_lora_folder(folder: Path) -> LoraFolder:
    """Read the settings of a LoRA folder and sort its tensors, without reading them.

    Raises:
        UserError: It is no LoRA adapter of a known form, or the half of a pair is missing.
    """
    config, stored, notes = _read_config(folder)
    files = TensorFiles.of_adapter(folder)
    found = LoraFolder(folder, config, stored, files, {}, {}, {}, notes)
    for key in files.files:
        _sort_in(found, key)
    if not found.adapted and not found.whole:
        raise UserError("holds no LoRA tensors", where=folder, mend="was it saved before training, or by another tool?")
    for adapted in found.adapted.values():
        _check_pairs(adapted, folder)
    return found


def _sort_in(found: LoraFolder, key: str) -> None:
    stem = _WRAPPERS.sub("", _PREFIX.sub("", key))
    if ".original_module." in stem:
        return  # the base's own copy of a module saved whole
    for part, pattern in _PARTS:
        if match := pattern.match(stem):
            module = match[1]
            adapted = found.adapted.setdefault(module, Adapted(module))
            if part in adapted.keys:
                text = f"holds two tensors for {part} of {module}: {adapted.keys[part]} and {key}"
                raise UserError(text, where=found.folder, mend="save one adapter to a folder")
            adapted.keys[part] = key
            return
    if ".lora_" in stem:
        mend = "save it with a current version of PEFT"
        raise UserError(f"the tensor {key} is no part of LoRA that is known here", where=found.folder, mend=mend)
    if stem.endswith(".base_layer.weight"):
        found.base_copies[stem.replace(".base_layer", "")] = key
        return
    stem = stem.replace(".base_layer.", ".")
    # `modules_to_save.<adapter>.` in the middle of a name, as a state dict has it; PEFT's own files leave it out.
    stem = re.sub(r"\.modules_to_save(\.default)?\.", ".", stem)
    found.whole[stem] = key


def _check_pairs(adapted: Adapted, folder: Path) -> None:
    for one, other in (("A", "B"), ("B", "A"), ("embedding_A", "embedding_B"), ("embedding_B", "embedding_A"),
                       ("magnitude", "A"), ("B_bias", "B")):  # fmt: skip
        has_other = other in adapted.keys or (one == "magnitude" and "embedding_A" in adapted.keys)
        if one in adapted.keys and not has_other:
            text = f"{adapted.module} has lora_{one} but no lora_{other}"
            raise UserError(text, where=folder, mend="copy the whole file again, or save the adapter again")


def _read_config(folder: Path) -> tuple[LoraConfig, dict[str, Any], tuple[str, ...]]:
    where = folder / CONFIG_NAME
    try:
        stored = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"is no JSON ({error})", where=where, mend="copy or download the file again") from None
    if not isinstance(stored, dict) or stored.get("peft_type") != "LORA":
        kind = stored.get("peft_type") if isinstance(stored, dict) else None
        mend = "merge it with PEFT (merge_and_unload) and name the saved model"
        raise UserError(f"an adapter of type {kind} cannot be read yet, only LoRA", where=where, mend=mend)
    # Other versions of PEFT, and other tools, write keys that this one does not have.
    known = {item.name for item in dataclasses.fields(LoraConfig)}
    unknown = sorted(key for key, value in stored.items() if key not in known and key != "peft_version" and value)
    try:
        config = LoraConfig(**{key: value for key, value in stored.items() if key in known})
    except (TypeError, ValueError, ImportError) as error:
        mend = "correct them, or save the adapter again with the PEFT that is installed"
        raise UserError(f"PEFT refuses these settings: {error}", where=where, mend=mend) from None
    _refuse_other_forms(config, where)
    notes = f"adapter_config.json has keys that PEFT does not know here and that were ignored: {', '.join(unknown)}"
    return config, stored, (notes,) if unknown else ()


def _refuse_other_forms(config: LoraConfig, where: Path) -> None:
    options: dict[str, Any] = dataclasses.asdict(config)
    for option in _UNKNOWN_FORMS:
        if options.get(option):  # versions of PEFT differ in which of them they have
            mend = "merge it with PEFT (merge_and_unload) and name the saved model"
            raise UserError(
                f"an adapter with {option} is more than B @ A and cannot be read yet", where=where, mend=mend
            )
    if str(config.init_lora_weights).startswith(_ALTERS_BASE):
        text = f"init_lora_weights '{config.init_lora_weights}' altered the base, so B @ A is not the update"
        mend = "save it with PEFT's path_initial_model_for_weight_conversion"
        raise UserError(text, where=where, mend=mend)
