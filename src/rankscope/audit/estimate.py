"""How long the decompositions of a base's matrices will take, and how much room they need, said before they begin."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from rankscope.report.wording import duration

# Large enough for the threads to be busy, small enough to take a second or less.
_SAMPLE = 384
_FLOAT32_BYTES = 4


def decomposition_estimate(shapes: Sequence[tuple[int, ...]]) -> str:
    """A sentence with the time and the disk that decomposing matrices takes at most, from one small one timed here.

    Args:
        shapes: Of the matrices.
    """
    sample = torch.randn(_SAMPLE, _SAMPLE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    torch.linalg.svd(sample, full_matrices=False)
    rate = _work((_SAMPLE, _SAMPLE)) / (time.perf_counter() - started)
    seconds = sum(map(_work, shapes)) / rate
    size = sum(min(shape) * sum(shape) * _FLOAT32_BYTES for shape in shapes)
    return (
        f"decomposing {len(shapes)} matrices of the base: about {duration(seconds)} and {size / 1e9:.2g} GB of the "
        "cache at most, less what it holds already; it can be stopped, and the same command goes on"
    )


def _work(shape: tuple[int, ...]) -> float:
    """The work of a decomposition, up to a factor: rows times columns times the smaller of them."""
    return float(shape[0] * shape[1] * min(shape))
