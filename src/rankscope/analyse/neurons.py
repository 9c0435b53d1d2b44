"""What a model's neurons do on the probe texts, gathered batch by batch, and what tuning changed, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.analyse.probes import TaskBatch
from rankscope.internals.neuron_means import neuron_means
from rankscope.internals.neurons import (
    ACTIVE_SHARE,
    NeuronSums,
    active_fraction,
    all_tasks,
    excitation,
    mean_activation,
    neuron_shift,
    neuron_sums,
    newly_active,
    newly_dead,
    selectivity,
)
from rankscope.internals.streams import is_relu, show_neurons

# How many of the most changed neurons are listed, each with so many texts that excite it most.
MOST_CHANGED, MOST_TEXTS = 64, 3


@dataclass
class Activity:
    """The sums of every layer's neurons by task, and each text's strongest excitation of each.

    Attributes:
        sums: By layer and task.
        strongest: By layer: one row a text, in the order of `texts`.
        positions: Where in the text that is.
        texts: The probe ids.
    """

    sums: dict[int, dict[str, NeuronSums]] = field(default_factory=dict)
    strongest: dict[int, Tensor] = field(default_factory=dict)
    positions: dict[int, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def add(self, probe: TaskBatch, thresholds: Mapping[int, float], layer: int, activations: Tensor) -> None:
        """Add a batch's activations of one layer (batch, pos, d_mlp)."""
        is_token = probe.batch.is_token.to(activations.device)
        sums = neuron_sums(activations[is_token], thresholds[layer])
        sums = NeuronSums(sums.num_positions, *(part.cpu() for part in (sums.total, sums.squares, sums.num_active)))
        tasks = self.sums.setdefault(layer, {})
        tasks[probe.task] = tasks[probe.task] + sums if probe.task in tasks else sums
        for known, new in zip((self.strongest, self.positions), excitation(activations, is_token), strict=True):
            known[layer] = torch.cat([known[layer], new.cpu()]) if layer in known else new.cpu()

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a file."""
        found: dict[str, Tensor] = {}
        for layer, tasks in self.sums.items():
            for task, sums in tasks.items():
                counted = torch.tensor([sums.num_positions])
                parts = {"count": counted, "total": sums.total, "squares": sums.squares, "active": sums.num_active}
                found |= {f"{layer}/{part}/{task}": tensor for part, tensor in parts.items()}
            found[f"{layer}/strongest"], found[f"{layer}/positions"] = self.strongest[layer], self.positions[layer]
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], texts: Sequence[str]) -> Activity:
        """What `tensors` gave."""
        found = cls(texts=list(texts))
        for key, tensor in tensors.items():
            layer, part, *rest = key.split("/", 2)
            if part in ("strongest", "positions"):
                getattr(found, part)[int(layer)] = tensor  # the two fields are named like the tensors
            elif part == "count":
                task = rest[0]
                parts = (tensors[f"{layer}/{name}/{task}"] for name in ("total", "squares", "active"))
                found.sums.setdefault(int(layer), {})[task] = NeuronSums(int(tensor), *parts)
        return found


def thresholds_of(model: PreTrainedModel, probes: Sequence[TaskBatch]) -> dict[int, float]:
    """By layer, what an active neuron's activation exceeds: a share of the layer's scale, or 0 for ReLU.

    Raises:
        NotAvailable: A layer's MLP is not known.
    """
    squares: dict[int, float] = {}
    counts: dict[int, int] = {}
    for probe in probes:
        show_neurons(model, probe.batch, partial(_add_squares, probe, squares, counts))
    share = 0.0 if is_relu(model) else ACTIVE_SHARE
    return {layer: share * (squares[layer] / counts[layer]) ** 0.5 for layer in squares}


def _add_squares(
    probe: TaskBatch, squares: dict[int, float], counts: dict[int, int], layer: int, activations: Tensor
) -> None:
    kept = activations[probe.batch.is_token.to(activations.device)].double()
    squares[layer] = squares.get(layer, 0.0) + float(kept.square().sum())
    counts[layer] = counts.get(layer, 0) + kept.numel()


def activity_of(model: PreTrainedModel, probes: Sequence[TaskBatch], thresholds: Mapping[int, float]) -> Activity:
    """What a model's neurons do on the probe texts.

    Args:
        model: Base or tuned.
        probes: The same for both.
        thresholds: Of the base.

    Raises:
        NotAvailable: A layer's MLP is not known.
    """
    found = Activity()
    for probe in probes:
        show_neurons(model, probe.batch, partial(found.add, probe, thresholds))
        found.texts += probe.probe_ids
    return found


def neuron_frame(found: Activity) -> pl.DataFrame:
    """One row a neuron and task: its mean activation, how often it is active, and its selectivity."""
    frames = []
    for layer, tasks in sorted(found.sums.items()):
        for task, sums in tasks.items():
            chosen = selectivity(tasks, task)
            columns = {
                "neuron_mean": mean_activation(sums),
                "neuron_active_fraction": active_fraction(sums),
                **({} if chosen is None else {"neuron_selectivity": chosen}),
            }
            frames.append(_columns(layer, columns).with_columns(pl.lit(task).alias("task")))
    return pl.concat(frames, how="diagonal") if frames else pl.DataFrame()


def change_frame(base: Activity, tuned: Activity) -> pl.DataFrame:
    """One row a neuron over all tasks: how far its mean moved, and whether it fell silent or began to speak."""
    frames = []
    for layer, tasks in sorted(tuned.sums.items()):
        before, after = all_tasks(base.sums[layer]), all_tasks(tasks)
        columns = {
            "neuron_shift": neuron_shift(base.sums[layer], tasks),
            "neuron_active_fraction": active_fraction(after),
            "neuron_active_fraction_base": active_fraction(before),
            "is_newly_dead": newly_dead(before, after),
            "is_newly_active": newly_active(before, after),
        }
        frames.append(_columns(layer, columns))
    return pl.concat(frames) if frames else pl.DataFrame()


def most_changed(changes: pl.DataFrame, base: Activity, tuned: Activity) -> pl.DataFrame:
    """The neurons whose mean moved farthest, each with the texts that excite it most before and after.

    Returns:
        One row a neuron, model (`base` or `tuned`) and text, with the position in the text and the activation there.
    """
    order = changes.with_columns(pl.col("neuron_shift").abs().alias("size"))
    rows: list[dict[str, Any]] = []
    top = order.sort("size", "layer", "neuron", descending=[True, False, False], nulls_last=True).head(MOST_CHANGED)
    for neuron in top.filter(pl.col("size") > 0).iter_rows(named=True):
        layer, index = neuron["layer"], neuron["neuron"]
        for name, model in (("base", base), ("tuned", tuned)):
            values = model.strongest[layer][:, index]
            for place in values.abs().argsort(descending=True, stable=True)[:MOST_TEXTS].tolist():
                rows.append(
                    {
                        "layer": layer, "neuron": index, "neuron_shift": neuron["neuron_shift"], "model": name,
                        "probe_id": model.texts[place], "position": int(model.positions[layer][place, index]),
                        "activation": float(values[place]),
                    }
                )  # fmt: skip
    schema = {
        "layer": pl.Int32, "neuron": pl.Int32, "neuron_shift": pl.Float64, "model": pl.String, "probe_id": pl.String,
        "position": pl.Int32, "activation": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def neuron_summary(neurons: pl.DataFrame, changes: pl.DataFrame | None) -> dict[str, float]:
    """One number a measure: counts over all layers; of the others the mean, of those with a sign the mean size."""
    means = neurons.select(
        pl.col("neuron_mean").mean(), pl.col("neuron_active_fraction").mean(),
        *([pl.col("neuron_selectivity").abs().mean()] if "neuron_selectivity" in neurons.columns else []),
    ).row(0, named=True)  # fmt: skip
    if changes is not None:
        means |= changes.select(neuron_means()).row(0, named=True)
    return {key: float(value) for key, value in means.items() if value is not None and math.isfinite(value)}


def _columns(layer: int, columns: Mapping[str, Tensor]) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    frame = pl.DataFrame({name: column.numpy() for name, column in columns.items()})
    place = pl.lit(layer, dtype=pl.Int32).alias("layer"), pl.int_range(size, dtype=pl.Int32).alias("neuron")
    return frame.select(*place, *columns)
