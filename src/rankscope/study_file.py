"""Reading a study file: YAML to a `Study`, with the line of every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rankscope.errors import UserError, line_of
from rankscope.keys import described
from rankscope.mistakes import mistakes
from rankscope.spec import Arm, Optimization, Study

_UNSET = "unset"
_SHOWN = 60
_MOST_MISTAKES = 20  # that are shown at once

_SPELLINGS = [(name, f.alias) for kind in (Arm, Optimization) for name, f in kind.model_fields.items() if f.alias]
_OTHER_SPELLING = dict(_SPELLINGS) | {alias: name for name, alias in _SPELLINGS}


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file.

    Args:
        path: The YAML file.
        overrides: `key.sub=value` settings that go through the same schema; a value is YAML.

    Raises:
        UserError: The file cannot be read, is no YAML, or does not fit the schema; the message names the line.
    """
    path = Path(path)
    document = _read_yaml(path)
    for override in overrides:
        _apply_override(document, override)
    try:
        return Study.model_validate(_plain(document))
    except ValidationError as error:
        raise _user_error(path, document, error, overrides) from None


def place_of(path: str | Path, keys: Sequence[str], overrides: Sequence[str] = ()) -> str | None:
    """Where some keys of a study file are set: `study.yaml:6`, or the override that says it; None if nowhere.

    Args:
        path: The file, which was read before.
        keys: They lead from the top to the setting, lists by number; the deepest that the file has counts.
        overrides: As for `load_study`.
    """
    document = _read_yaml(Path(path))
    for override in overrides:
        _apply_override(document, override)
    return _place(Path(path), document, keys, overrides) if keys and keys[0] in document else None


def dump_study(study: Study) -> str:
    """The resolved study as YAML, with the file's own key names."""
    import io

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(study.model_dump(mode="json", by_alias=True, exclude_none=True), stream)
    return stream.getvalue()


def changed_settings(earlier: Study, study: Study) -> list[str]:
    """What is not as it was, as `key: old -> new` in the study file's own words; a missing side is called `unset`."""
    documents = [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in (earlier, study)]
    old, new = (dict(_leaves(document)) for document in documents)
    keys = [key for key in {**old, **new} if old.get(key, _UNSET) != new.get(key, _UNSET)]
    return [f"{key}: {old.get(key, _UNSET)} -> {new.get(key, _UNSET)}" for key in keys]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of nested mappings and lists, each with its dotted key."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if not children:
        yield key, node
        return
    for name, child in children:
        yield from _leaves(child, f"{key}.{name}" if key else str(name))


def _read_yaml(path: Path) -> CommentedMap:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such study file", where=path, mend="`rankscope init` writes one") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text ({error.reason} at byte {error.start})", where=path, mend="save it as UTF-8"
        ) from None
    except IsADirectoryError:
        inside = next(iter(sorted(path.glob("*.y*ml"))), None)
        mend = f"name the file: {inside}" if inside else "name a study file; `rankscope init` writes one"
        raise UserError("is a folder, not a study file", where=path, mend=mend) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path, mend="name another study file") from None
    try:
        # The round-trip loader builds no objects of a document's choosing and keeps line numbers.
        document = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        what, mend = f"not valid YAML: {error.problem}", "look for a bracket, a quote or an indentation that is not"
        mend += " closed there or just above"
        if isinstance(error, DuplicateKeyError):
            (key, *_) = re.findall(r'"([^"]*)"', str(error.problem)) or ("a key",)
            what, mend = f"'{key}' stands there a second time", "give one of the two another name, or remove it"
        raise UserError(what, where=line_of(path, line), mend=mend) from None
    except YAMLError as error:
        raise UserError(
            f"not valid YAML: {error}", where=path, mend="correct it; `rankscope init` writes one"
        ) from None
    if document is None:
        raise UserError("the study file is empty", where=path, mend="`rankscope init` writes one")
    if not isinstance(document, CommentedMap):
        what = "a study file is a mapping of keys to values"
        raise UserError(what, where=line_of(path, 1), mend="write `key: value` lines; `rankscope init` writes a file")
    return document


def _apply_override(document: CommentedMap, override: str) -> None:
    """Set `a.b.c=value` in the document; the value is read as YAML, lists are indexed by number."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not key=value", where="--set", mend="for example --set seeds='[0, 1]'")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        what = f"the value of '{override}' is not valid YAML"
        raise UserError(what, where="--set", mend=f"for example --set {key}='[0, 1]' for a list") from None
    node: Any = document
    *parents, last = key.split(".")
    for number, part in enumerate(parents):
        node = _child(node, part, key.split(".")[:number])
    if isinstance(node, (CommentedSeq, list)):
        node[_index(node, last, parents)] = value
    elif isinstance(node, dict):
        node.pop(_OTHER_SPELLING.get(last, ""), None)  # the file may spell the key in the other way
        node[last] = value
    else:
        raise _plain_value(node, parents)


def _child(node: Any, part: str, above: Sequence[str]) -> Any:
    """What a part of a key leads to, in what the parts above it have led to."""
    if isinstance(node, (CommentedSeq, list)):
        return node[_index(node, part, above)]
    if not isinstance(node, dict):
        raise _plain_value(node, above)
    if part not in node:
        node[part] = CommentedMap()
    return node[part]


def _plain_value(node: Any, keys: Sequence[str]) -> UserError:
    key = ".".join(keys)
    what = f"'{key}' is the plain value {_plain(node)!r}, which has nothing below it"
    return UserError(what, where="--set", mend=f"set it whole: --set {key}=...")


def _index(node: Sequence[Any], part: str, above: Sequence[str]) -> int:
    key = ".".join(above)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    number = f"{len(node)} {'entry' if len(node) == 1 else 'entries'}, counted from 0"
    what = f"'{key}' is a list of {number}, and has no entry '{part}'"
    entries = "".join(f"\n        {key}.{index} is {_short(entry)}" for index, entry in enumerate(node))
    raise UserError(
        what, where="--set", mend=f"name an entry by its number, or set the whole list, {key}=[...]{entries}"
    )


def _short(entry: Any) -> str:
    text = json.dumps(_plain(entry), default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _plain(node: Any) -> Any:
    """The document without ruamel's types, so that pydantic sees plain ones."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _user_error(path: Path, document: CommentedMap, error: ValidationError, overrides: Sequence[str]) -> UserError:
    """The mistakes of a pydantic error by line, each with its key and its line, or the override that it came from."""
    found = sorted(mistakes(error), key=lambda each: _lines(document, each.location)[-1:])
    lines = [(_place(path, document, each.location, overrides), each.key or "the study", each.text) for each in found]
    (where, key, text), *rest = dict.fromkeys(lines)
    more = [f"\n{place}: {key}: {text}" for place, key, text in rest[: _MOST_MISTAKES - 1]]
    left = f"\nand {len(rest) - len(more)} more" if len(rest) > len(more) else ""
    mends = "\n        ".join(dict.fromkeys(described(each.meant) for each in found[:_MOST_MISTAKES]))
    return UserError(f"{key}: {text}{''.join(more)}{left}", where=where, mend=mends)


def _place(path: Path, document: CommentedMap, location: Sequence[int | str], overrides: Sequence[str]) -> str:
    """Where a mistake stands: in a line of the file, or in the last override of its key or of one above or below it."""
    parts, lines = [str(part) for part in location], _lines(document, location)
    # What the file has nothing of, an override has made: `train.our.max_examples=5` lacks a source.
    for deepest in (len(parts), len(lines) + 1):
        for override in reversed(overrides):
            key = override.partition("=")[0].split(".")
            shorter = min(len(key), len(parts), deepest)
            if shorter and key[:shorter] == parts[:shorter]:
                return f"--set {override}"
    return line_of(path, lines[-1] if lines else 1)


def _lines(node: Any, location: Sequence[int | str]) -> list[int]:
    """The 1-based lines of a location's parts, as far as the file itself has them."""
    lines: list[int] = []
    for part in location:
        is_list = isinstance(node, CommentedSeq) and str(part).isdigit() and int(part) < len(node)
        key = int(part) if is_list else part
        if not (is_list or (isinstance(node, CommentedMap) and key in node)):
            break
        position = (node.lc.data or {}).get(key)  # missing for what --set added
        if position is None:
            break
        lines.append(position[0] + 1)
        node = node[key]
    return lines
