"""What pydantic finds wrong with a document, in words for the person who wrote it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rankscope.keys import homes, instead

Location = tuple[int | str, ...]
_NAME = "^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
_SHOWN = 60


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong, and the keys that lead to it."""

    location: Location
    text: str
    meant: Location  # of an unknown key, the keys to the one that was meant

    @property
    def key(self) -> str:
        """Where it stands, as `--set` writes it."""
        return ".".join(map(str, self.location))


def mistakes(error: ValidationError, *, of_study: bool = True) -> list[Mistake]:
    """Every mistake once, in the document's order; what follows from a deeper one is left out.

    Args:
        error: What pydantic raised.
        of_study: The document is a study file, so that an unknown key may stand elsewhere in one.
    """
    details = [(_location(detail), detail) for detail in error.errors(include_url=False)]
    found: dict[Location, list[dict[str, Any]]] = {}
    for location, detail in details:
        is_consequence = detail["type"] in {"too_short", "bool_type", "bool_parsing"} and any(
            len(other) > len(location) and other[: len(location)] == location for other, _ in details
        )
        if not is_consequence:
            found.setdefault(location, []).append(detail)
    return [_mistake(location, details, of_study=of_study) for location, details in found.items()]


def _mistake(location: Location, details: list[dict[str, Any]], *, of_study: bool) -> Mistake:
    if details[0]["type"] not in {"extra_forbidden", "unknown_key"}:
        return Mistake(location, _said(details), location)
    if not of_study:
        return Mistake(location, "is no key here", location)
    key = str(location[-1])
    known = homes(key)
    # What an arm may hold beside its fields depends on its method, so its own words come with the mistake.
    mend = instead(location) if known else details[0].get("ctx", {}).get("mend") or instead(location)
    return Mistake(location, f"unknown key '{key}'; {mend}", tuple(known[0].split(".")) if known else location)


def _location(detail: Mapping[str, Any]) -> Location:
    """The keys that lead to a mistake, without pydantic's names for branches of a union."""
    parts = tuple(part for part in detail["loc"] if not _is_branch(part))
    key = detail.get("ctx", {}).get("key")
    return (*parts, *((key,) if isinstance(key, str) else key or ()))


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and ("[" in part or part in {"constrained-str", "constrained-int", "constrained-float",
                                                              "str", "float", "int", "bool"})  # fmt: skip


def _said(details: list[dict[str, Any]]) -> str:
    """What is wrong with one value, which may fit none of several kinds."""
    first = details[0]
    if len(details) == 1:
        return _WORDS.get(first["type"], _as_it_is)(first)
    kinds = [_kind(detail) for detail in details]
    return f"is {_shown(first)}, neither {' nor '.join(dict.fromkeys(kinds))}"


def _shown(detail: Mapping[str, Any]) -> str:
    value = detail.get("input")
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else repr(value)
    text = text or repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _kind(detail: Mapping[str, Any]) -> str:
    """What a value would have to be, of one of several kinds."""
    if detail["type"] in _BOUNDS:
        words, key = _BOUNDS[detail["type"]]
        return f"a number {words} {detail['ctx'][key]:g}"
    return _KINDS.get(detail["type"]) or _choices(detail)


def _choices(detail: Mapping[str, Any]) -> str:
    return str(detail.get("ctx", {}).get("expected", "what it can be")).replace("'", "`")


def _as_it_is(detail: Mapping[str, Any]) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _not_a(kind: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda detail: f"is {_shown(detail)}, not {kind}"


def _bound(detail: Mapping[str, Any]) -> str:
    words, key = _BOUNDS[detail["type"]]
    return f"is {_shown(detail)}, and must be {words} {detail['ctx'][key]:g}"


def _no_list(detail: Mapping[str, Any]) -> str:
    """That it is no list, and how it is written; of seeds their number may have been meant."""
    value = detail.get("input")
    if detail["loc"][-1] == "seeds" and isinstance(value, int) and 1 < value <= 20:
        return f"is {value}, not a list: for {value} seeds write {list(range(value))}"
    hint = "" if isinstance(value, bool) else f": write [{str(value)[:_SHOWN]}]"
    return f"is {_shown(detail)}, not a list{hint}"


def _text(detail: Mapping[str, Any]) -> str:
    hint = "; put it in quotes" if isinstance(detail.get("input"), (int, float, bool)) else ""
    return f"is {_shown(detail)}, not a text{hint}"


def _section(detail: Mapping[str, Any]) -> str:
    hint = "; a file is named by `source: FILE` below it" if isinstance(detail.get("input"), str) else ""
    return f"is {_shown(detail)}, not a section of keys and values{hint}"


def _literal(detail: Mapping[str, Any]) -> str:
    known = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
    close = difflib.get_close_matches(str(detail.get("input")), known, n=1, cutoff=0.5)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"is {_shown(detail)}, and can be {_choices(detail)}{hint}"


def _pattern(detail: Mapping[str, Any]) -> str:
    if detail["ctx"]["pattern"] == _NAME:
        return f"{_shown(detail)} is no name: letters, digits and _ . + - make one, the first a letter or digit"
    return f"is {_shown(detail)}, not written as file.py:function"


_KINDS = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "a text",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "a mapping of names to values",
}  # fmt: skip
_BOUNDS = {
    "greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"), "less_than_equal": ("at most", "le"),
}  # fmt: skip
_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    **{name: _not_a(kind) for name, kind in _KINDS.items()},
    "missing": lambda _detail: "is missing",
    "string_type": _text,
    "tuple_type": _no_list,
    "model_type": _section,
    **dict.fromkeys(_BOUNDS, _bound),
    "literal_error": _literal,
    "too_short": lambda _detail: "is empty, and needs an entry",
    "string_too_short": lambda _detail: "is empty",
    "string_too_long": lambda detail: f"is longer than {detail['ctx']['max_length']} characters",
    "string_pattern_mismatch": _pattern,
}
