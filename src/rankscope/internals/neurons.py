"""What single neurons do: how active they are, for which task, and what tuning changed of it.

A neuron is active at a position where its activation is further from 0 than a threshold: 0 for ReLU, else a tenth of
the root mean square of the base's layer. The base's threshold holds for the tuned model too. Everything comes from
sums over positions, so batches of any size add up to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Of a layer's root mean square, where the activation function is never exactly 0.
ACTIVE_SHARE = 0.1
# A neuron that was active at this share of the positions, and is at none, is newly dead; newly active: the reverse.
ALIVE_FRACTION = 0.01


@dataclass(frozen=True)
class NeuronSums:
    """Sums over positions of a layer's activations, in float64.

    Attributes:
        num_positions: How many positions they are over.
        total: The sum of activations; `squares` of their squares.
        num_active: At how many positions each is active.
    """

    num_positions: int
    total: Float[Tensor, " d_mlp"]
    squares: Float[Tensor, " d_mlp"]
    num_active: Int[Tensor, " d_mlp"]

    def __add__(self, other: NeuronSums) -> NeuronSums:
        """The sums over the positions of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return NeuronSums(*(mine + theirs for mine, theirs in pairs))


def neuron_sums(activations: Float[Tensor, "positions d_mlp"], threshold: float) -> NeuronSums:
    """The sums over the positions of a batch.

    Args:
        activations: Of positions that hold a token.
        threshold: What an active neuron's activation exceeds, on either side of 0.
    """
    wide = activations.double()
    return NeuronSums(len(wide), wide.sum(0), wide.square().sum(0), (wide.abs() > threshold).sum(0))


def mean_activation(sums: NeuronSums) -> Float[Tensor, " d_mlp"]:
    """Each neuron's mean activation."""
    return sums.total / sums.num_positions


def active_fraction(sums: NeuronSums) -> Float[Tensor, " d_mlp"]:
    """The share of positions at which each neuron is active. 0: never, it is dead on these texts."""
    return sums.num_active.double() / sums.num_positions


def selectivity(tasks: Mapping[str, NeuronSums], task: str) -> Float[Tensor, " d_mlp"] | None:
    """How much more a neuron says on one task than on the others, in standard deviations.

    Its mean on the task less the mean over the other tasks' means, over the standard deviation within tasks, pooled by
    their degrees of freedom. 0 for a neuron that never varies. None for a single task.
    """
    others = [mean_activation(sums) for name, sums in tasks.items() if name != task]
    if not others:
        return None
    difference = mean_activation(tasks[task]) - torch.stack(others).mean(0)
    deviation = pooled_deviation(tasks)
    return torch.where(deviation > 0.0, difference / deviation.clamp_min(torch.finfo(deviation.dtype).tiny), 0.0)


def pooled_deviation(tasks: Mapping[str, NeuronSums]) -> Float[Tensor, " d_mlp"]:
    """The standard deviation of each neuron within tasks."""
    within = [sums.squares - sums.total.square() / sums.num_positions for sums in tasks.values()]
    degrees = sum(sums.num_positions - 1 for sums in tasks.values())
    return (torch.stack(within).sum(0).clamp_min(0.0) / max(1, degrees)).sqrt()


def neuron_shift(base: Mapping[str, NeuronSums], tuned: Mapping[str, NeuronSums]) -> Float[Tensor, " d_mlp"]:
    """How far each neuron's mean moved, over all tasks, in the base's standard deviations within tasks.

    0: not at all, also for a neuron that does not vary and stays; one that did not vary and moves has an infinite one.
    """
    before, after = (mean_activation(all_tasks(tasks)) for tasks in (base, tuned))
    difference, deviation = after - before, pooled_deviation(base)
    return torch.where(difference == 0.0, 0.0, difference / deviation)


def newly_dead(base: NeuronSums, tuned: NeuronSums) -> Bool[Tensor, " d_mlp"]:
    """Neurons that were active at 1% of the positions or more, and are at none."""
    return (active_fraction(base) >= ALIVE_FRACTION) & (tuned.num_active == 0)


def newly_active(base: NeuronSums, tuned: NeuronSums) -> Bool[Tensor, " d_mlp"]:
    """Neurons that were active at no position, and are at 1% or more."""
    return newly_dead(tuned, base)


def all_tasks(tasks: Mapping[str, NeuronSums]) -> NeuronSums:
    """The sums over the positions of all tasks."""
    first, *rest = tasks.values()
    for sums in rest:
        first = first + sums
    return first


def excitation(
    activations: Float[Tensor, "batch pos d_mlp"], is_token: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch d_mlp"], Int[Tensor, "batch d_mlp"]]:
    """The activation of each neuron farthest from 0 in each text, and the position where it is."""
    size = activations.abs().masked_fill(~is_token.unsqueeze(-1), -1.0)
    where = size.argmax(1)
    return activations.gather(1, where.unsqueeze(1)).squeeze(1), where
