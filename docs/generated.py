"""What every generator of a page shares: write the file, or say that it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(target: Path, content: str, script: str, arguments: list[str]) -> int:
    """Write a generated file; with `--check` only compare it.

    Args:
        target: The file.
        content: What it should hold.
        script: What to run where it is out of date, as a person would type it.
        arguments: Of the command line.

    Returns:
        The exit status: 1 where the file is out of date.
    """
    if arguments != ["--check"]:
        target.write_text(content, encoding="utf-8")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == content:
        return 0
    sys.stderr.write(f"{target.name} is out of date: run python {script}\n")
    return 1
