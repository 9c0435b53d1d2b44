"""What the schema says of a key of the study file, for a person whose value was refused."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rankscope.errors import near_miss
from rankscope.spec import Study

_FALLBACK = "correct it, or leave it out"
_ANY = "NAME"
_MOST_HOMES = 3

# What means here what people write for TrainingArguments, TRL, PEFT and the tools around them.
ELSEWHERE = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_batch_size", "micro_batch_size", "train_batch_size",
         "gradient_accumulation_steps"), "optimization.batch_size"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "seq_length", "sequence_len", "cutoff_len", "model_max_length"),
                    "optimization.max_length"),
    **dict.fromkeys(("epochs", "n_epochs"), "optimization.num_epochs"),
    **dict.fromkeys(("lr", "learning_rates"), "arms.0.learning_rate"),
    **dict.fromkeys(("lora_r", "lora_rank"), "arms.0.rank"),
    "alpha": "arms.0.lora_alpha",
    "lora_target_modules": "arms.0.target_modules",
    **dict.fromkeys(("peft_type", "adapter", "finetuning_type", "use_lora"), "arms.0.method"),
    **dict.fromkeys(("optimizer", "optimizer_type"), "optimization.optim"),
    "scheduler": "optimization.lr_scheduler",
    **dict.fromkeys(("warmup_steps", "num_warmup_steps"), "optimization.warmup_ratio"),
    "fp16": "optimization.bf16",
    "torch_dtype": "optimization.dtype",
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "eval_steps"), "optimization.num_validations"),
    **dict.fromkeys(("save_steps", "save_strategy"), "execute.checkpoint_seconds"),
    **dict.fromkeys(("seed", "data_seed", "random_seed"), "seeds"),
    **dict.fromkeys(("model_name_or_path", "model_name", "model_id", "base_model"), "model"),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "data_path", "train_file", "train_dataset"), "train"),
    **dict.fromkeys(("eval_dataset", "tasks", "benchmarks"), "evaluate"),
    "dataset_text_field": "train.NAME.columns",
    **dict.fromkeys(("output_dir", "run_name"), "study"),
}  # fmt: skip


def described(location: Sequence[int | str]) -> str:
    """A key's meaning and default; of an unknown key those of the nearest one.

    Args:
        location: The names and indices that lead to the key.

    Examples:
        >>> described(["optimization", "batchsize"])
        '`batch_size`: examples in an optimizer step, over all accumulation; 16 where it is not stated'
    """
    found, _ = _walk(location)
    return _FALLBACK if found is None or not found[1].description else f"`{found[0]}`: {_meaning(found[1])}"


def homes(key: str) -> list[str]:
    """Where a key stands that was written where it is unknown: that key, or what means the same; empty where none does.

    Examples:
        >>> homes("lora_r"), homes("warmup_ratio")
        (['arms.0.rank'], ['optimization.warmup_ratio', 'arms.0.warmup_ratio'])
    """
    if key in ELSEWHERE:
        return [ELSEWHERE[key]]
    found = [path for path, field in _all_fields() if key in (path.rpartition(".")[2], field.alias)]
    return sorted(found, key=lambda path: path.startswith("arms."))  # what all arms share comes first


def instead(location: Sequence[int | str]) -> str:
    """What to write for an unknown key.

    Examples:
        >>> instead(["optimization", "lora_r"]), instead(["arms", 0, "lora_r"])
        ('write `rank` in an entry of `arms`', "did you mean 'rank'?")
    """
    sections = list(_sections(_walk(location[:-1])[1]))
    found = homes(str(location[-1]))
    here = [home for home in found if list(_sections(_walk(home.split(".")[:-1])[1])) == sections]
    if here:
        return f"did you mean '{here[0].rpartition('.')[2]}'?"
    if found:
        return f"write {' or '.join(_place(home) for home in found[:_MOST_HOMES])}"
    names = {name for section in sections for name in _names(section)}
    return near_miss(str(location[-1]), names) or f"valid keys are {', '.join(sorted(names))}"


def all_keys() -> Iterator[str]:
    """Every key of the study file with its meaning, each section below the key that it stands under."""
    return (f"{key}: {_meaning(field)}" for key, field in _all_fields())


def _all_fields(section: type[BaseModel] = Study, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        names = [_ANY if get_origin(kind) is dict else "0" for kind in _kinds(field.annotation) if get_origin(kind)]
        yield f"{above}{name}", field
        for inner in _sections(field.annotation):
            yield from _all_fields(inner, ".".join([f"{above}{name}", *names, ""]))


def show() -> None:
    """Write every key with its meaning, for who has the package and not its documentation."""
    sys.stdout.write("".join(f"{line}\n" for line in all_keys()))


def _place(path: str) -> str:
    section, _, key = path.rpartition(".")
    where = "at the top" if not section else "in an entry of `arms`" if section == "arms.0" else f"under `{section}`"
    return f"`{key}` {where}"


def _walk(location: Sequence[int | str]) -> tuple[tuple[str, FieldInfo] | None, Any]:
    """The deepest key of a location that the schema has, or nearly has, with its field; and what may stand there."""
    found: tuple[str, FieldInfo] | None = None
    kind: Any = Study
    for part in location:
        section = next((each for each in _kinds(kind) if _is_section(each)), None)
        if section is not None:
            found = _field(section, str(part))
            kind = found[1].annotation if found else None
        else:
            kind = next((get_args(each)[-1 if get_origin(each) is dict else 0] for each in _kinds(kind)
                         if get_origin(each) in (dict, tuple)), None)  # fmt: skip
    return found, kind


def _meaning(field: FieldInfo) -> str:
    default = field.get_default()
    has_default = isinstance(default, (bool, int, float, str, tuple)) and default != ()
    return f"{field.description}" + (f"; {_shown(default)} where it is not stated" if has_default else "")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value is, or is a mapping or a list of."""
    for kind in _kinds(annotation):
        if _is_section(kind):
            yield kind
        elif get_origin(kind) in (dict, tuple):
            yield from _sections(get_args(kind)[-1 if get_origin(kind) is dict else 0])


def _names(section: type[BaseModel]) -> dict[str, str]:
    """The keys of a section in all spellings, each with the field's name."""
    aliases = {field.alias: name for name, field in section.model_fields.items() if field.alias}
    return {name: name for name in section.model_fields} | aliases


def _field(section: type[BaseModel], key: str) -> tuple[str, FieldInfo] | None:
    """The field of a section that a key names, by either spelling, or nearly names where there are no other keys."""
    names = _names(section)
    has_more = section.model_config.get("extra") == "allow"
    close = [key] if key in names else difflib.get_close_matches(key, [] if has_more else sorted(names), n=1)
    return (close[0], section.model_fields[names[close[0]]]) if close else None


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a value may have: without None and without what limits them."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _kinds(option)
    elif annotation is not types.NoneType:
        yield annotation


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{list(default)}" if isinstance(default, tuple) else f"{default}"
