"""One uninterrupted tiny study, watched while it runs, that the tests of this folder compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import Watched, watched_run


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watched_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def whole(watched: Watched) -> Path:
    """The directory of the finished study; not to be changed."""
    assert watched.returncode in {0, 3}, watched.stdout + watched.stderr
    return watched.out
