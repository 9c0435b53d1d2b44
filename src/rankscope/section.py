"""What every section of the study file is: frozen, and without unknown keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from rankscope.methods.options import nearest


class Section(BaseModel):
    """A frozen section of the study file that refuses unknown keys and names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        aliases = {field.alias: name for name, field in cls.model_fields.items() if field.alias}
        known = set(cls.model_fields) | set(aliases) | cls._more_keys(data)
        for key in data:
            if key not in known:
                context = {"key": str(key), "mend": cls._mend(str(key), known, data)}
                raise PydanticCustomError("unknown_key", "unknown key '{key}'; {mend}", context)
        for alias, name in aliases.items():
            if alias in data and name in data:
                text = "'{key}' and '{other}' are two spellings of one setting; keep one"
                raise PydanticCustomError("two_spellings", text, {"key": name, "other": alias})
        return data

    @classmethod
    def _more_keys(cls, data: dict) -> set[str]:
        """Keys that are not fields of the class."""
        return set()

    @classmethod
    def _mend(cls, key: str, known: set[str], data: dict) -> str:
        word = nearest(key, known)
        return word if word.startswith("did you mean") else f"valid keys are {', '.join(sorted(known))}"
