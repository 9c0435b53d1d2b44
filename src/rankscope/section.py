"""What every section of the study file is: frozen, and without unknown keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A frozen section of the study file that refuses unknown keys; `keys.py` says what to write instead."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

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
