"""The package's own names, and a study's numbers as data frames."""

from __future__ import annotations

from pathlib import Path

import pytest

import rankscope
from rankscope import load_results
from rankscope.errors import UserError
from report_study import finished_study


def test_the_public_names_are_sorted_and_importable() -> None:
    assert rankscope.__all__ == sorted(rankscope.__all__)
    assert all(getattr(rankscope, name) is not None for name in rankscope.__all__)


def test_results_are_the_tables_of_the_report(tmp_path: Path) -> None:
    store = finished_study(tmp_path / "study").store
    frames = load_results(store.root)
    assert {"arms", "comparisons", "scores", "losses", "rates"} <= set(frames)
    scores = frames["scores"]
    assert len(scores) > 0
    assert all((store.root / source).exists() for source in scores["source"].unique())


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        load_results(tmp_path)
