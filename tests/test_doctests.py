"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"


def test_examples_in_docstrings() -> None:
    number = 0
    for path in sorted(SOURCE.rglob("*.py")):
        if "\n        >>> " not in path.read_text(encoding="utf-8"):
            continue
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        number += result.attempted
    assert number >= 9
