"""Reading rows out of one file, each with its line: JSONL, JSON, CSV, TSV, Parquet, Arrow, text. Never a pickle."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.data.json_rows import decoded, json_rows, jsonl_rows
from rankscope.errors import MachineError, UserError, line_of

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
        MachineError: Memory runs out.
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
    except MemoryError as error:
        raise _without_memory(error, path) from None
    source = str(path)
    try:
        rows = [Row(values, source, line) for line, values in reader(content, path)]
    except MemoryError as error:
        raise _without_memory(error, path) from None
    if not rows:
        raise UserError("the file holds no rows", where=path, mend="check the path, or write the data again")
    return rows


def _separated(
    delimiter: str, usual: Header | None = None
) -> Callable[[bytes, Path], Iterator[tuple[int, dict[str, Any]]]]:
    def read(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.reader(io.StringIO(decoded(content, path), newline=""), delimiter=delimiter, strict=True)
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

    # `datasets` writes streams; polars and pandas write files, which begin with this word.
    opened = pyarrow.ipc.open_file if content.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    return _table(lambda: opened(io.BytesIO(content)).read_all(), path)


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
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise _invalid(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def _invalid(path: Path, reason: str) -> UserError:
    what = f"not a valid {path.suffix[1:]} file ({reason})"
    return UserError(what, where=path, mend="write or download it again")


def _without_memory(error: MemoryError, path: Path) -> UserError | MachineError:
    """A damaged table asks for more than any machine of this size holds; all else is a real shortage."""
    asked = re.search(r"size (\d+)", str(error))  # pyarrow keeps the number nowhere else
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if asked and int(asked[1]) > total:
        return _invalid(path, f"a length of {int(asked[1]):,} bytes, and the machine has {total:,}")
    return MachineError(f"{path}: there is not enough memory to read it; free some, or take a part of the file")


def _paragraphs(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Runs of lines that are not blank, or what stands between two ends of text, kept as they are written."""
    start, held = 1, []
    lines = decoded(content, path).replace("\r\n", "\n").split("\n")
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
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _paragraphs,
    ".raw": _paragraphs,
    ".tokens": _paragraphs,
}
