"""What training writes of every step is JSON, and the report reads from it what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rankscope.report.reading import _ndjson
from rankscope.train.loop import StepLog
from rankscope.train.stage import _line


@pytest.mark.parametrize("first", [2.5, math.nan])
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_survives_its_file(tmp_path: Path, first: float, loss: float) -> None:
    logs = [StepLog(1, first, 1e-3, 1.0, 40, 0.1), StepLog(2, loss, 1e-3, loss, 40, 0.1)]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(_line(log) for log in logs), encoding="utf-8")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
    frame = _ndjson(path)
    assert str(frame["loss_nats_per_token"].to_list()) == str([first, loss])
    assert str(frame["grad_norm"].to_list()) == str([1.0, loss])
    assert frame["step"].to_list() == [1, 2]
