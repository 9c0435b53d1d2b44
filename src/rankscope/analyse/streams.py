"""The residual streams of two models on the same probe texts, kept between them and compared layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import polars as pl
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.analyse.probes import TaskBatch
from rankscope.internals.representations import StreamSums, stream_measures, stream_sums
from rankscope.internals.streams import show_streams

_SCHEMA = {
    "layer": pl.Int32, "task": pl.String, "num_positions": pl.Int64, "cka": pl.Float64, "residual_cosine": pl.Float64,
    "procrustes_residual": pl.Float64,
}  # fmt: skip

# A tensor by the number of the batch and the layer.
Keep = Callable[[int, int, Tensor], None]
Kept = Callable[[int, int], Tensor]


def keep_streams(model: PreTrainedModel, probes: Sequence[TaskBatch], keep: Keep) -> list[int]:
    """Hand a model's residual streams, (positions, d_model) where a token is, to `keep`; returns the layers.

    Raises:
        NotAvailable: The architecture's layers are not known.
    """
    layers: set[int] = set()
    for index, probe in enumerate(probes):
        show_streams(model, probe.batch, partial(_keep_tokens, probe, partial(keep, index), layers))
    return sorted(layers)


def _keep_tokens(
    probe: TaskBatch, keep: Callable[[int, Tensor], None], layers: set[int], layer: int, stream: Tensor
) -> None:
    layers.add(layer)
    keep(layer, stream[probe.batch.is_token.to(stream.device)])


def stream_frame(layers: Sequence[int], probes: Sequence[TaskBatch], before: Kept, after: Kept) -> pl.DataFrame:
    """One row a layer and task: how the tuned model's stream lies to the base's. One layer is in memory at a time."""
    rows = []
    for layer in layers:
        sums: dict[str, StreamSums] = {}
        for index, probe in enumerate(probes):
            new = stream_sums(before(index, layer), after(index, layer))
            sums[probe.task] = sums[probe.task] + new if probe.task in sums else new
        rows += [
            {"layer": layer, "task": task, "num_positions": one.num_positions, **stream_measures(one)}
            for task, one in sums.items()
        ]
    return pl.DataFrame(rows, schema=_SCHEMA)


def stream_summary(frame: pl.DataFrame) -> dict[str, float]:
    """The mean of each measure over layers and tasks."""
    means = frame.drop("layer", "task", "num_positions").mean().row(0, named=True)
    return {key: float(value) for key, value in means.items() if value is not None}
