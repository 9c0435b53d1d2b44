"""Reading rows out of one file, each with its line: JSONL, JSON, CSV, TSV, Parquet, Arrow, text. Never a pickle."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.errors import UserError, line_of

_GAP = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
# What a JSON document that is one object calls the list of its rows.
_WRAPPERS = ("data", "rows", "examples", "instances", "questions", "train", "validation", "test")
_END_OF_TEXT = "<|endoftext|>"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        values: Its fields by name.
        path: The file it came from, or the source's name.
        line: The 1-based line where it starts; the row's number in formats without lines.
        category: What the file's name says of it, where a folder holds one file a subject.
    """

    values: dict[str, Any]
    path: str
    line: int
    category: str | None = None

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return line_of(self.path, self.line)


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of tables that may come without a first line of names.

    Attributes:
        columns: Their names, in order.
        known: Names by which a first line shows that it is one.
    """

    columns: tuple[str, ...]
    known: frozenset[str]


def read_file(path: Path, header: Header | None = None) -> list[Row]:
    """All rows of a file, in its order; the format is that of the file's ending.

    Text is split at the lines that say `<|endoftext|>` if it has any, else into paragraphs at blank lines; each part is
    a row with the field `text`.

    Args:
        path: The file.
        header: The columns of a table that may come without a first line of names.

    Raises:
        UserError: The file is missing, empty, or not what its ending says; the message names the line.
    """
    ending = path.suffix.lower()
    reader = _separated(_DELIMITERS[ending], header) if header and ending in _DELIMITERS else READERS.get(ending)
    if reader is None:
        raise UserError(
            f"files ending in '{path.suffix}' are not read", where=path, mend=f"use one of {', '.join(READERS)}"
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError("there is no such file", where=path, mend="check the path of `source`") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path, mend="check the file's rights") from None
    source = str(path)
    rows = [Row(values, source, line) for line, values in reader(content, path)]
    if not rows:
        raise UserError("the file holds no rows", where=path, mend="check the path, or write the data again")
    return rows


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"not UTF-8 text ({error.reason})", where=line_of(path, line), mend="save the file as UTF-8"
        ) from None


def _jsonl(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(content, path).split("\n"), start=1):
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


def _json(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A list of objects, an object of objects by their ids, or one that holds the list; each row has its line."""
    text = _text(content, path)
    start = _GAP.match(text).end()
    opening = text[start : start + 1]
    if opening == "[":
        yield from _json_list(text, start, path)
    elif opening == "{" and _is_one_object(text[start:]):
        yield from _json_object(text, start, path)
    elif opening == "{":  # many files named .json hold one object a line
        yield from _jsonl(content, path)
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


def _separated(
    delimiter: str, usual: Header | None = None
) -> Callable[[bytes, Path], Iterator[tuple[int, dict[str, Any]]]]:
    def read(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.reader(io.StringIO(_text(content, path), newline=""), delimiter=delimiter, strict=True)
        header: Sequence[str] | None = None
        line = 1
        try:
            for cells in reader:
                if header is None and cells and usual is not None and _is_row(cells, usual):
                    header = usual.columns
                    yield line, _cells(header, cells, path, line)
                elif header is None:
                    header = _header(cells, path) if cells else None
                elif cells:
                    yield line, _cells(header, cells, path, line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"not a valid table ({error})", where=line_of(path, line), mend="check quotes, or save as JSONL"
            ) from None

    return read


def _is_row(cells: Sequence[str], header: Header) -> bool:
    """Whether the first line of a table is a row already."""
    return len(cells) == len(header.columns) and not {cell.strip() for cell in cells} & header.known


def _header(cells: list[str], path: Path) -> list[str]:
    # A table's index column, as pandas writes it, has no name.
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names):
        raise UserError("two columns have one name", where=line_of(path, 1), mend="rename one in the first line")
    return names


def _cells(header: Sequence[str], cells: list[str], path: Path, line: int) -> dict[str, Any]:
    if len(cells) != len(header):
        raise UserError(
            f"the row has {len(cells)} cells, the first line names {len(header)}",
            where=line_of(path, line),
            mend="the first line names the columns; put cells that hold the separator in double quotes",
        )
    return dict(zip(header, cells, strict=True))


def _parquet(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # polars, which writes our own tables, ends the whole process on some damaged files; this library raises.
    import pyarrow.parquet

    return _table(lambda: pyarrow.parquet.read_table(io.BytesIO(content)), path)


def _arrow(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.ipc

    return _table(lambda: pyarrow.ipc.open_stream(io.BytesIO(content)).read_all(), path)


def _table(read: Callable[[], Any], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of what a function reads, which is a table of pyarrow."""
    line = 0
    try:
        for batch in read().to_batches():
            batch.validate(full=True)  # offsets that point outside of the data would end the process
            for values in batch.to_pylist():
                line += 1
                yield line, values
    # pyarrow's errors are subclasses of these.
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"not a valid {path.suffix[1:]} file ({reason})", where=path, mend="write or download it again"
        ) from None


def _paragraphs(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Runs of lines that are not blank, or what stands between two ends of text, kept as they are written."""
    start, held = 1, []
    lines = _text(content, path).replace("\r\n", "\n").split("\n")
    has_ends = any(line.strip() == _END_OF_TEXT for line in lines)
    for number, line in enumerate((*lines, _END_OF_TEXT), start=1):
        is_inside = line.strip() != _END_OF_TEXT if has_ends else bool(line.strip()) and number <= len(lines)
        if is_inside and (held or line.strip()):
            start = start if held else number
            held.append(line)
        elif held and not is_inside:
            yield start, {"text": "\n".join(held).rstrip("\n") if has_ends else "\n".join(held)}
            held = []


READERS: dict[str, Callable[[bytes, Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _paragraphs,
    ".raw": _paragraphs,
    ".tokens": _paragraphs,
}
