"""What the schema says of a key of the study file, for a person whose value was refused."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rankscope.spec import Study

_FALLBACK = "correct it, or leave it out"


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
    if found is None or not found[1].description:
        return _FALLBACK
    name, field = found
    default = field.get_default()
    has_default = isinstance(default, (bool, int, float, str, tuple)) and default != ()
    return f"`{name}`: {field.description}" + (f"; {_shown(default)} where it is not stated" if has_default else "")


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
