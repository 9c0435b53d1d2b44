"""The plots' script is made once and kept, and a cache that is no use changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import vl_convert

from rankscope.report.vega import vega_bundle


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the script was made; it is made quickly here."""
    calls: list[str] = []

    def make(vl_version: str) -> str:
        calls.append(vl_version)
        return f"draw('{vl_version}</script><!--')"

    monkeypatch.setattr(vl_convert, "javascript_bundle", make)
    return calls


def again() -> str:
    """As in a new process."""
    vega_bundle.cache_clear()
    try:
        return vega_bundle()
    finally:
        vega_bundle.cache_clear()


def test_the_script_is_made_once_for_all_pages_and_cannot_end_its_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path))
    first = again()
    assert again() == first and len(made) == 1
    assert "</script" not in first and "<!--" not in first


def test_a_damaged_copy_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path))
    first = again()
    (path,) = (tmp_path / "plots").iterdir()
    path.write_text(path.read_text(encoding="utf-8").replace("draw", "steal"), encoding="utf-8")
    assert again() == first and len(made) == 2
    assert again() == first and len(made) == 2, "and kept"


def test_without_a_cache_folder_the_page_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    assert again() == again() and len(made) == 2
