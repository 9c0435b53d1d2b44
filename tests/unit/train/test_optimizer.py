"""The learning rate at every step is the one that transformers' own scheduler sets."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from transformers import get_scheduler

from rankscope.spec import Optimization, Scheduler
from rankscope.train.optimizer import rate_factors


@pytest.mark.parametrize("rate", [1e-5, 0.2])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.25])
@pytest.mark.parametrize("name", get_args(Scheduler))
def test_rates_are_those_of_transformers(name: str, warmup_ratio: float, rate: float) -> None:
    num_steps = 12
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule = get_scheduler(name, optimizer, round(num_steps * warmup_ratio), num_steps)
    expected = []
    for _ in range(num_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    factor = rate_factors(Optimization(lr_scheduler=name, warmup_ratio=warmup_ratio), num_steps, rate)
    assert [rate * factor(step) for step in range(num_steps)] == pytest.approx(expected, rel=1e-12, abs=0.0)
