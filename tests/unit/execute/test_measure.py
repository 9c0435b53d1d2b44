"""The short measurement: it makes its steps, and gives a factor for each kind of work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.forecast import Wish, forecast
from rankscope.study_file import load_study
from studies import write_study


def test_a_measurement_scales_the_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write_study(tmp_path), ["execute.num_workers=1"])
    plain = forecast(study, Wish()).plan.estimate
    from rankscope.execute import measure

    seen = {}

    def kept(*arguments: object) -> dict[str, float]:
        seen.update(measure_factors(*arguments))
        return {"full": 2.0, "adapter": 3.0, "evaluate": 5.0}

    measure_factors = measure.measured_factors
    monkeypatch.setattr(measure, "measured_factors", kept)
    found = forecast(study, Wish(is_measured=True)).plan.estimate
    assert set(seen) == {"full", "adapter", "evaluate"} and all(0.05 < factor < 50 for factor in seen.values())
    for key, seconds in found.seconds_by_piece.items():
        factor = 5.0 if key.startswith("evaluate/") else 1.0
        if key.startswith("train/"):
            factor = 2.0 if "/full/" in key else 3.0
        assert seconds == pytest.approx(factor * plain.seconds_by_piece[key], rel=0.2), key
