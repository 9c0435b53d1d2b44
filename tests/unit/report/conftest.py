"""One finished study and its report, made once for all tests of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from rankscope.report import stage
from rankscope.report.contents import Contents
from rankscope.report.reading import read_contents
from report_study import finished_study, poison
from synthetic import Synthetic


@dataclass(frozen=True)
class Reported:
    study: Synthetic
    contents: Contents
    page: Path

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def reported(tmp_path_factory) -> Reported:
    study = finished_study(tmp_path_factory.mktemp("reported") / "study")
    poison(study.store, "small", "general")
    return Reported(study, read_contents(study.store), stage.run(study.store))
