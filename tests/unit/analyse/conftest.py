"""The models that every analysis is tried on."""

import pytest

from analysed import Models, write_models
from rankscope.analyse import stage
from synthetic import Synthetic


@pytest.fixture
def study(tmp_path, monkeypatch) -> tuple[Synthetic, Models]:
    """A base with two adapters and a full model, probe texts in several batches, and a cache of its own."""
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stage, "_TOKENS_PER_BATCH", 14)  # the longest alone, then two batches of short ones
    return write_models(tmp_path)
