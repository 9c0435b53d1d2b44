"""Several LoRA adapters over one frozen linear layer, each applied to its own rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


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
        self.scaling: list[float] = []
        self.dropout: list[float] = []

    def add(
        self, A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], scaling: float, dropout: float
    ) -> None:
        """Append an adapter; its index is the number of those before it."""
        self.A.append(nn.Parameter(A))
        self.B.append(nn.Parameter(B))
        self.scaling.append(scaling)
        self.dropout.append(dropout)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The layer's output for rows sorted by adapter, as `routing` says."""
        members, num_rows = self.routing.members, self.routing.num_rows
        result = self.base_layer(x)
        if len(members) == 1:
            return result + self._update(x, members[0]).to(result.dtype)
        # Some architectures flatten batch and position before a layer; rows of one adapter stay together all the same.
        stretch = x.shape[0] // sum(num_rows)
        pieces = x.split([rows * stretch for rows in num_rows])
        updates = [self._update(piece, member) for member, piece in zip(members, pieces, strict=True)]
        return result + torch.cat(updates).to(result.dtype)

    def _update(self, x: Tensor, member: int) -> Tensor:
        A, B, probability = self.A[member], self.B[member], self.dropout[member]
        x = x.to(A.dtype)
        if probability > 0.0 and self.routing.is_training:
            x = _dropout(x, probability, self.routing.generators[member])
        return functional.linear(functional.linear(x, A), B) * self.scaling[member]


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
