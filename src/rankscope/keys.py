"""What the schema says of a key of the study file, for a person whose value was refused."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rankscope.spec import Study

_FALLBACK = "correct it, or leave it out"
_ANY = "NAME"


def described(location: Sequence[int | str]) -> str:
    """A key's meaning and default; of an unknown key those of the nearest one.

    Args:
        location: The names and indices that lead to the key.

    Examples:
        >>> described(["optimization", "batchsize"])
        '`batch_size`: examples in an optimizer step, over all accumulation; 16 where it is not stated'
    """
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
    return _FALLBACK if found is None or not found[1].description else f"`{found[0]}`: {_meaning(found[1])}"


def all_keys(section: type[BaseModel] = Study, above: str = "") -> Iterator[str]:
    """Every key of the study file with its meaning, each section below the key that it stands under."""
    for name, field in section.model_fields.items():
        names = [_ANY if get_origin(kind) is dict else "0" for kind in _kinds(field.annotation) if get_origin(kind)]
        yield f"{above}{name}: {_meaning(field)}"
        for inner in _sections(field.annotation):
            yield from all_keys(inner, ".".join([f"{above}{name}", *names, ""]))


def show() -> None:
    """Write every key with its meaning, for who has the package and not its documentation."""
    sys.stdout.write("".join(f"{line}\n" for line in all_keys()))


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


def _field(section: type[BaseModel], key: str) -> tuple[str, FieldInfo] | None:
    """The field of a section that a key names, by either spelling, or nearly names where there are no other keys."""
    names = {name: name for name in section.model_fields}
    names |= {field.alias: name for name, field in section.model_fields.items() if field.alias}
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
