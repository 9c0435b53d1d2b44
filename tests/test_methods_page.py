"""docs/methods.md says what the table of methods says."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import peft
import pytest

from rankscope.methods.options import PEFT_METHODS, PEFT_VERSION
from rankscope.methods.table import BY_NAME, REFUSED

ROOT = Path(__file__).resolve().parent.parent


def test_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_methods.py"))["page"]()
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == page


def test_page_names_every_method() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    names = {*BY_NAME, *PEFT_METHODS, *(name for name in REFUSED if name in PEFT_METHODS)}
    assert len(names) > 40
    for name in names:
        assert f"`{name}`" in text


def test_a_page_that_is_out_of_date_is_noticed(tmp_path: Path) -> None:
    from generated import write_or_check

    page = tmp_path / "page.md"
    assert write_or_check(page, "new", "make_page.py", ["--check"]) == 1
    assert write_or_check(page, "new", "make_page.py", []) == 0
    assert write_or_check(page, "new", "make_page.py", ["--check"]) == 0
    assert write_or_check(page, "newer", "make_page.py", ["--check"]) == 1


@pytest.mark.skipif(peft.__version__ != PEFT_VERSION, reason=f"the table is that of PEFT {PEFT_VERSION}")
def test_the_table_of_options_is_pefts() -> None:
    script = [sys.executable, str(ROOT / "recipes" / "peft_options.py"), "--check"]
    found = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
