"""docs/measures.md says what the code declares."""

import subprocess
import sys
from pathlib import Path

from rankscope.measures import MEASURES

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_page_is_up_to_date():
    script = [sys.executable, str(DOCS / "generate_measures.py"), "--check"]
    found = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr


def test_page_has_every_measure_once():
    rows = [line for line in (DOCS / "measures.md").read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(MEASURES)
    # A bar inside a formula must not open another cell.
    assert all(row.replace("\\|", "").count("|") == 7 for row in rows)
