"""Several LoRA adapters over one frozen linear layer, each applied to its own rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


@dataclass
class Routing:
    """Which rows of the batch belong to which adapter; one object shared by all layers of a pack.

    Attributes:
        members: Indices of the adapters whose rows are in the batch, in the order of the rows.
        num_rows: Rows of each of them.
        generators: By adapter, what its dropout draws from.
        is_training: Dropout is on.
    """

    members: tuple[int, ...] = (0,)
    num_rows: tuple[int, ...] = (0,)
    generators: list[torch.Generator] = field(default_factory=list)
    is_training: bool = False


class PackedLoraLinear(nn.Module):
    """A frozen layer `W0 x` plus `scaling * B A x`, with the `A` and `B` of the adapter that a row belongs to.

    The arithmetic of one adapter is PEFT's `lora.Linear` operation by operation, so that a run alone, a run in a pack
    and PEFT itself differ by rounding only.

    Args:
        base_layer: The frozen layer: `nn.Linear`, or transformers' `Conv1D`.
        routing: Shared by the layers of a pack.
    """

    def __init__(self, base_layer: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.routing = routing
        self.A = nn.ParameterList()  # each rank d_in
        self.B = nn.ParameterList()  # each d_out rank
        self.magnitude = nn.ParameterList()  # DoRA's, each d_out; empty where an adapter has none
        self.scaling: list[float] = []
        self.dropout: list[float] = []
        self._base_lengths: Tensor | None = None  # of the rows of W0, squared; DoRA's

    def add(
        self,
        A: Float[Tensor, "rank d_in"],
        B: Float[Tensor, "d_out rank"],
        scaling: float,
        dropout: float,
        magnitude: Float[Tensor, " d_out"] | None = None,
    ) -> None:
        """Append an adapter; its index is the number of those before it."""
        self.A.append(nn.Parameter(A))
        self.B.append(nn.Parameter(B))
        self.magnitude.append(nn.Parameter(A.new_empty(0) if magnitude is None else magnitude))
        self.scaling.append(scaling)
        self.dropout.append(dropout)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The layer's output for rows sorted by adapter, as `routing` says."""
        members, num_rows = self.routing.members, self.routing.num_rows
        result = self.base_layer(x)
        if len(members) == 1:
            return result + self._update(x, result, members[0]).to(result.dtype)
        # Some architectures flatten batch and position before a layer; rows of one adapter stay together all the same.
        stretch = x.shape[0] // sum(num_rows)
        rows = [number * stretch for number in num_rows]
        pieces = zip(members, x.split(rows), result.split(rows), strict=True)
        updates = [self._update(piece, base, member) for member, piece, base in pieces]
        return result + torch.cat(updates).to(result.dtype)

    def _update(self, x: Tensor, base_result: Tensor, member: int) -> Tensor:
        """What an adapter adds to the frozen layer's output for its rows."""
        A, B, scaling = self.A[member], self.B[member], self.scaling[member]
        x = x.to(A.dtype)
        has_lengths = self.magnitude[member].numel() > 0
        if self.dropout[member] > 0.0 and self.routing.is_training:
            x = _dropout(x, self.dropout[member], self.routing.generators[member])
            if has_lengths:
                # PEFT's DoRA shows the dropped-out input to the frozen matrix too.
                base_result = functional.linear(x, self._weight().to(x.dtype))
        elif has_lengths and (bias := self.base_layer.bias) is not None:
            base_result = base_result - bias
        product = functional.linear(functional.linear(x, A), B)
        if not has_lengths:
            return product * scaling
        factor = self.magnitude[member] / self._lengths(member)
        return (factor - 1.0) * base_result + factor * product * scaling

    @torch.no_grad()
    def _lengths(self, member: int) -> Float[Tensor, " d_out"]:
        """The lengths of the rows of `W0 + scaling * B A`, from the factors; DoRA holds them constant in a step.

        `|w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A') b'` for each row `w` of `W0` and `b` of `B`.
        """
        A, B, scaling = self.A[member], self.B[member], self.scaling[member]
        W0 = self._weight().to(A.dtype)
        if self._base_lengths is None:
            self._base_lengths = W0.square().sum(dim=1)
        crossed = (functional.linear(W0, A) * B).sum(dim=1)
        own = ((B @ (A @ A.T)) * B).sum(dim=1)
        return (self._base_lengths + 2.0 * scaling * crossed + scaling**2 * own).sqrt()

    def _weight(self) -> Float[Tensor, "d_out d_in"]:
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight


def _dropout(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Dropout from a generator of one's own; torch's takes none."""
    kept = torch.empty_like(x).bernoulli_(1.0 - probability, generator=generator)
    return x * kept / (1.0 - probability)


def install(model: nn.Module, names: Sequence[str], routing: Routing) -> dict[str, PackedLoraLinear]:
    """Put a packed layer in the place of each named module; returns them by name."""
    layers = {}
    for name in names:
        layers[name] = PackedLoraLinear(model.get_submodule(name), routing)
        _replace(model, name, layers[name])
    return layers


def remove(model: nn.Module, layers: dict[str, PackedLoraLinear]) -> None:
    """Put the frozen layers back."""
    for name, layer in layers.items():
        _replace(model, name, layer.base_layer)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
