"""A tiny base and tuned models of it with known singular values."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from planted import CONFIG, plant


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """`base`, and adapters `one` and `two` of it."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIG).save_pretrained(root / "base")
    plant(root / "base", root / "one", seed=1)
    plant(root / "base", root / "two", seed=2, r=4, lora_alpha=8)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or fills the user's own cache."""
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
