"""What all tests share: this folder is on the path, so that helpers are plain modules (`from synthetic import ...`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# The importlib import mode leaves sys.path alone, so a helper beside the tests would not be found without this.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))  # the generators of pages share a module


def pytest_configure() -> None:
    """One thread a process: tiny models lose more to threads than they gain."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decompositions of the tests' bases are kept where the tests' other files are, and not in the user's cache."""
    os.environ["RANKSCOPE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
