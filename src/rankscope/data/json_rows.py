"""Rows out of JSON and JSONL, each with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankscope.errors import UserError, line_of

_GAP = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
# What a JSON document that is one object calls the list of its rows.
_WRAPPERS = ("data", "rows", "examples", "instances", "questions", "train", "validation", "test")


def decoded(content: bytes, path: Path) -> str:
    """A file's text.

    Raises:
        UserError: It is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"not UTF-8 text ({error.reason})", where=line_of(path, line), mend="save the file as UTF-8"
        ) from None


def jsonl_rows(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object a line.

    Raises:
        UserError: A line is none; it is named.
    """
    for number, line in enumerate(decoded(content, path).split("\n"), start=1):
        if line.strip():
            yield number, _object(_loads(line, path, number), line, path, number)


def _loads(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"the line is no JSON ({error.msg} at column {error.colno})"
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
        problem = f"the line is no JSON that can be read ({error})"
    raise UserError(problem, where=line_of(path, line), mend="a JSONL file holds one JSON object a line")


def _object(value: Any, text: str, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"the row is {_kind(value)}, not an object with named fields",
            where=line_of(path, line),
            mend='write rows as {"question": ..., "answer": ...}',
        )
    # Half a surrogate pair is valid JSON and no valid text: it could be neither tokenised nor written.
    if "\\u" in text and re.search(r"[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        raise UserError("a text holds half a surrogate pair", where=line_of(path, line), mend="repair the \\u escape")
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def json_rows(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A list of objects, an object of objects by their ids, or one that holds the list; each row has its line.

    Raises:
        UserError: It is none of these, or broken; the line is named.
    """
    text = decoded(content, path)
    start = _GAP.match(text).end()
    opening = text[start : start + 1]
    if opening == "[":
        yield from _json_list(text, start, path)
    elif opening == "{" and _is_one_object(text[start:]):
        yield from _json_object(text, start, path)
    elif opening == "{":  # many files named .json hold one object a line
        yield from jsonl_rows(content, path)
    elif text.strip():
        raise UserError("not a JSON list of rows", where=line_of(path, 1), mend="write the rows as [{...}, {...}]")


def _is_one_object(text: str) -> bool:
    """Whether a text is one JSON object that holds rows, and not one row, or one row a line."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (RecursionError, ValueError):  # broken, and named with its line by whoever reads on
        return False
    if text[end:].strip():
        return False
    return bool(value) and (all(isinstance(row, dict) for row in value.values()) or _wrapper(value) is not None)


def _wrapper(value: dict[str, Any]) -> str | None:
    lists = (name for name in _WRAPPERS if isinstance(value.get(name), list))
    return next((name for name in lists if all(isinstance(row, dict) for row in value[name])), None)


def _json_object(text: str, start: int, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    wrapper = _wrapper(decoder.raw_decode(text, start)[0])
    at = _GAP.match(text, start + 1).end()
    while text[at : at + 1] != "}":
        key, end = decoder.raw_decode(text, at)
        begin = _COLON.match(text, end).end()
        if key == wrapper:
            yield from _json_list(text, begin, path)
            return
        value, end = decoder.raw_decode(text, begin)
        if wrapper is None:
            line, counted = line + text.count("\n", counted, begin), begin
            yield line, {"id": key, **_object(value, text[begin:end], path, line)}
        at = _GAP.match(text, end).end()


def _json_list(text: str, start: int, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _GAP.match(text, start + 1).end()
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(
                f"not valid JSON ({error.msg})", where=line_of(path, error.lineno), mend="repair or write it again"
            ) from None
        except (RecursionError, ValueError) as error:
            raise UserError(
                f"not JSON that can be read ({error})", where=line_of(path, line), mend="repair or write it again"
            ) from None
        yield line, _object(value, text[at:end], path, line)
        at = _GAP.match(text, end).end()
