"""How a verb ends where nobody reads what it prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rankscope.cli import DONE, USER_ERROR
from studies import COMMAND, write_study


def unread(*arguments: str, unbuffered: str, both: bool = False) -> tuple[int, str]:
    """The status of a command whose reader has gone before its first line, and what it says of that."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    errors = writer if both else subprocess.PIPE
    try:
        done = subprocess.run(command, stdout=writer, stderr=errors, text=True, env=environment, check=False)
    finally:
        os.close(writer)
    return done.returncode, done.stderr or ""


# Without a buffer each line meets the missing reader, with one the flush at the end does.
@pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])
def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path, unbuffered: str) -> None:
    study = str(write_study(tmp_path))
    assert unread("plan", study, unbuffered=unbuffered) == (DONE, "")
    assert unread("--help", unbuffered=unbuffered) == (DONE, "")
    assert unread("plan", study, "--set", "wrong=1", unbuffered=unbuffered, both=True) == (USER_ERROR, "")
