"""`make audit-dependencies`: what pip-audit says, and what it does not say, as an exit status that can be relied on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "audit_dependencies.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packages(num_known: int, num_skipped: int, num_well: int) -> dict:
    known = {"name": "a", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}]}
    skipped = {"name": "torch", "skip_reason": "not found"}
    return {"dependencies": num_known * [known] + num_skipped * [skipped] + num_well * [{"name": "b", "vulns": []}]}


@pytest.mark.parametrize(
    ("counts", "is_well"), [((0, 1, 50), True), ((0, 51, 0), False), ((0, 10, 41), False), ((1, 0, 50), False)]
)
def test_it_ends_well_only_where_most_was_looked_up_and_nothing_is_known(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    counts: tuple[int, int, int],
    is_well: bool,
) -> None:
    asked = []

    def answer(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, int(counts[0] > 0), json.dumps(packages(*counts)))

    monkeypatch.setattr(subprocess, "run", answer)
    assert (audit.main(["site-packages"]) == 0) == is_well
    assert asked[1:3] == ["-m", "pip_audit"] and "site-packages" in asked
    said = capsys.readouterr().out
    assert f"{counts[0]} known vulnerabilities, {counts[1]} could not be looked up" in said
    assert ("a 1.0: PYSEC-1; mended in 1.1, 2.0" in said) == (counts[0] > 0)


def test_without_an_answer_it_fails(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, ""))
    assert audit.main(["site-packages"]) == 1
