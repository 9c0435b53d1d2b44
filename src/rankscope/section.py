"""What every section of the study file is: frozen, without unknown keys, its numbers no truth values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema


def _refuse_bool(kind: Literal["int_type", "float_type"]) -> Callable[[Any], Any]:
    def refuse_bool(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(kind)
        return value

    return refuse_bool


_CHECKS = {"int": _refuse_bool("int_type"), "float": _refuse_bool("float_type")}


def _with_checked_numbers(part: Any) -> Any:
    """A part of a core schema with a check before each number; what was given one already stays as it is."""
    if isinstance(part, list | tuple):
        return type(part)(_with_checked_numbers(each) for each in part)
    if not isinstance(part, dict) or _is_checked(part):
        return part
    kind = part.get("type")  # no text where it is a field of that name
    if isinstance(kind, str) and kind in _CHECKS:
        return core_schema.no_info_before_validator_function(_CHECKS[kind], part)
    return {key: _with_checked_numbers(each) for key, each in part.items()}


def _is_checked(part: Mapping[str, Any]) -> bool:
    """Whether a part is a number with its check: the schema of a section holds those of the sections below it."""
    return part.get("type") == "function-before" and part["function"].get("function") in _CHECKS.values()


class Section(BaseModel):
    """A frozen section of the study file that refuses unknown keys; `keys.py` says what to write instead.

    No number of it can be `true` or `false`, which Python takes for 1 and 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic's own schema, in which every number refuses true and false, wherever in a field it stands."""
        return _with_checked_numbers(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, field in cls.model_fields.items():
            if field.alias in data and name in data:
                text = "'{key}' and '{other}' are two spellings of one setting; keep one"
                raise PydanticCustomError("two_spellings", text, {"key": name, "other": field.alias})
        return data
