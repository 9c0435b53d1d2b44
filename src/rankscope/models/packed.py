"""Several LoRA adapters over one frozen linear layer, each applied to its own rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from rankscope.models.quantized import dequantized, is_quantized


@dataclass(frozen=True)
class DrawnText:
    """A text in a forward pass, as dropout knows it.

    Attributes:
        seed: Of its draws: made of the text and, in training, of the run's seed and the step; not of what is beside it.
        length: Its positions.
        extent: The same with the padding behind it.
    """

    seed: int
    length: int
    extent: int


@dataclass
class Routing:
    """Which rows of the batch belong to which adapter; one object shared by all layers of a pack.

    Attributes:
        members: Indices of the adapters whose rows are in the batch, in the order of the rows.
        num_rows: Rows of each of them; where texts stand one behind another in a single row, their positions.
        generators: By adapter, what its dropout draws from where it is not told what texts there are.
        is_training: Dropout is on.
        texts: For each of the members the texts of its rows.
    """

    members: tuple[int, ...] = (0,)
    num_rows: tuple[int, ...] = (0,)
    generators: list[torch.Generator] = field(default_factory=list)
    is_training: bool = False
    texts: tuple[tuple[DrawnText, ...], ...] = ()

    def texts_of(self, member: int) -> tuple[DrawnText, ...]:
        """An adapter's texts; none where it was not told."""
        return self.texts[self.members.index(member)] if self.texts else ()


class PackedLoraLinear(nn.Module):
    """A frozen layer `W0 x` plus `scaling * B A x`, with the `A` and `B` of the adapter that a row belongs to.

    It computes what PEFT's `lora.Linear` computes, so that a run alone, a run in a pack and PEFT itself differ by
    rounding only. Over a plain linear layer it does so in one autograd function, which takes the scaling at the rank's
    width and adds into the layer's output.

    Args:
        base_layer: The frozen layer: `nn.Linear`, transformers' `Conv1D`, or a linear layer of bitsandbytes.
        routing: Shared by the layers of a pack.
        number: The layer's among those of the pack: each draws for itself.
    """

    def __init__(self, base_layer: nn.Module, routing: Routing, number: int = 0) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.number = number
        self.routing = routing
        self.A = nn.ParameterList()  # each rank d_in
        self.B = nn.ParameterList()  # each d_out rank
        self.magnitude = nn.ParameterList()  # DoRA's, each d_out; empty where an adapter has none
        self.scaling: list[float] = []
        self.dropout: list[float] = []
        self._base_lengths: Tensor | None = None  # of the rows of W0, squared; DoRA's
        self._W0: Tensor | None = None  # while an adapter is folded into the layer

    @property
    def weight(self) -> Tensor:
        """The frozen layer's own, as PEFT's layers give it too."""
        return self.base_layer.weight

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
        if self._W0 is not None:
            return self.base_layer(x)
        flat = x.reshape(-1, x.shape[-1])  # positions d_in
        pieces = _pieces(self.routing, flat.shape[0])
        output = (self._fused if self._can_be_fused(x) else self._composed)(flat, pieces)
        return output.reshape(*x.shape[:-1], output.shape[-1])  # of the output head there may be no position

    def _can_be_fused(self, x: Tensor) -> bool:
        """Whether nothing but products is asked for: a plain layer in one precision, no dropout, no DoRA."""
        members = self.routing.members
        has_dropout = self.routing.is_training and any(self.dropout[member] > 0.0 for member in members)
        has_lengths = any(self.magnitude[member].numel() > 0 for member in members)
        is_plain = type(self.base_layer) is nn.Linear and self.base_layer.weight.dtype == self.A[0].dtype == x.dtype
        return is_plain and not has_dropout and not has_lengths and not torch.is_autocast_enabled(x.device.type)

    def _fused(self, x: Float[Tensor, "positions d_in"], pieces: list[int]) -> Float[Tensor, "positions d_out"]:
        members = self.routing.members
        factors = [factor for member in members for factor in (self.A[member], self.B[member])]
        scalings = [self.scaling[member] for member in members]
        return _LoraLinear.apply(x, self.base_layer.weight, self.base_layer.bias, pieces, scalings, *factors)

    def _composed(self, x: Float[Tensor, "positions d_in"], pieces: list[int]) -> Float[Tensor, "positions d_out"]:
        """PEFT's own operations, one after another."""
        result = self.base_layer(x)
        parts = zip(self.routing.members, x.split(pieces), result.split(pieces), strict=True)
        updates = [self._update(piece, base, member) for member, piece, base in parts]
        return result + (updates[0] if len(updates) == 1 else torch.cat(updates)).to(result.dtype)

    @torch.no_grad()
    def fold(self, member: int) -> None:
        """Put an adapter's update into the layer's own weight until `unfold`: scoring then costs what the base costs.

        Where rounding could be felt (less than float32, quantised weights) and with DoRA nothing is done.
        """
        is_plain = type(self.base_layer) in (nn.Linear, Conv1D) and self.magnitude[member].numel() == 0
        if not is_plain or self.base_layer.weight.dtype not in (torch.float32, torch.float64):
            return
        self._W0 = self.base_layer.weight.clone()
        self._weight().addmm_(self.B[member], self.A[member], alpha=self.scaling[member])

    @torch.no_grad()
    def unfold(self) -> None:
        """Give the layer its weight back, bit for bit."""
        if self._W0 is not None:
            self.base_layer.weight.copy_(self._W0)
            self._W0 = None

    def _update(self, x: Tensor, base_result: Tensor, member: int) -> Tensor:
        """What an adapter adds to the frozen layer's output for its rows."""
        A, B, scaling = self.A[member], self.B[member], self.scaling[member]
        x = x.to(A.dtype)
        has_lengths = self.magnitude[member].numel() > 0
        if self.dropout[member] > 0.0 and self.routing.is_training:
            x = self._dropped_out(x, member)
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

    def _dropped_out(self, x: Float[Tensor, "positions d_in"], member: int) -> Float[Tensor, "positions d_in"]:
        """Dropout whose draws for a text are the same in whatever batch, pack, order and padding it stands.

        That is so on one kind of device, and in layers that see the texts' positions: the output head and a mixture's
        experts see others, and draw from the adapter's own generator.
        """
        kept, share = torch.ones_like(x), 1.0 - self.dropout[member]
        texts = self.routing.texts_of(member)
        if sum(text.extent for text in texts) == len(x):
            for text, part in zip(texts, kept.split([text.extent for text in texts]), strict=True):
                part[: text.length].bernoulli_(share, generator=_generator(x.device, text.seed, self.number))
        else:
            kept.bernoulli_(share, generator=self.routing.generators[member])
        return x * kept / share

    @torch.no_grad()
    def _lengths(self, member: int) -> Float[Tensor, " d_out"]:
        """The lengths of the rows of `W0 + scaling * B A`, from the factors; DoRA holds them constant in a step.

        `|w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A') b'` for each row `w` of `W0` and `b` of `B`.
        """
        A, B, scaling = self.A[member], self.B[member], self.scaling[member]
        W0 = self._weight().to(A.dtype)
        if self._base_lengths is None:
            self._base_lengths = W0.square().sum(dim=1)
        with torch.autocast(A.device.type, enabled=False):  # a length in bfloat16 would be off by hundredths
            crossed = (functional.linear(W0, A) * B).sum(dim=1)
            own = ((B @ (A @ A.T)) * B).sum(dim=1)
        return (self._base_lengths + 2.0 * scaling * crossed + scaling**2 * own).sqrt()

    def _weight(self) -> Float[Tensor, "d_out d_in"]:
        if is_quantized(self.base_layer):
            return dequantized(self.base_layer)
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight


def _pieces(routing: Routing, num_positions: int) -> list[int]:
    """How many of a layer's positions each adapter has; a lone one has all."""
    if len(routing.members) == 1:
        return [num_positions]
    # Rows of one adapter lie together, whatever an architecture has flattened.
    stretch, rest = divmod(num_positions, sum(routing.num_rows))
    if rest:
        raise ValueError(f"{num_positions} positions cannot be those of {sum(routing.num_rows)} rows")
    return [rows * stretch for rows in routing.num_rows]


class _LoraLinear(torch.autograd.Function):
    """`x W0' + b`, and to each piece of the positions `scaling * (x A') B'` added in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W0: Tensor, bias: Tensor | None, pieces: list[int], scalings: list[float], *factors: Tensor
    ) -> Tensor:
        result = functional.linear(x, W0, bias)
        narrow: list[Tensor] = []  # each positions rank
        for part, out, scaling, A, B in zip(
            x.split(pieces), result.split(pieces), scalings, factors[::2], factors[1::2], strict=True
        ):
            narrow.append(functional.linear(part, A).mul_(scaling))
            out.addmm_(narrow[-1], B.T)
        ctx.save_for_backward(x, W0, *factors, *narrow)
        ctx.pieces, ctx.scalings = pieces, scalings
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W0, *saved = ctx.saved_tensors
        number = len(ctx.pieces)
        factors, narrow = saved[: 2 * number], saved[2 * number :]
        grad_x = grad @ W0 if ctx.needs_input_grad[0] else None
        grads_x = [None] * number if grad_x is None else grad_x.split(ctx.pieces)
        grads: list[Tensor | None] = []
        for index, (part, out, into) in enumerate(
            zip(x.split(ctx.pieces), grad.split(ctx.pieces), grads_x, strict=True)
        ):
            A, B = factors[2 * index], factors[2 * index + 1]
            through = (out @ B).mul_(ctx.scalings[index])  # positions rank
            grads += [through.T @ part, out.T @ narrow[index]]
            if into is not None:
                into.addmm_(through, A)
        return grad_x, None, None, None, None, *grads


def mixed(*numbers: int) -> int:
    """One number below 2^63 made of several: a change of any of them may change each of its bits."""
    state = 0
    for number in numbers:
        state = (state ^ number) * 0x9E3779B97F4A7C15 % 2**64  # the golden ratio's, as in SplitMix64
        state ^= state >> 32
    return state >> 1


def _generator(device: torch.device, *numbers: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(mixed(*numbers))


def install(model: nn.Module, names: Sequence[str], routing: Routing) -> dict[str, PackedLoraLinear]:
    """Put a packed layer in the place of each named module; returns them by name."""
    layers = {}
    for number, name in enumerate(names):
        layers[name] = PackedLoraLinear(model.get_submodule(name), routing, number)
        model.set_submodule(name, layers[name])
    return layers


def remove(model: nn.Module, layers: dict[str, PackedLoraLinear]) -> None:
    """Put the frozen layers back."""
    for name, layer in layers.items():
        model.set_submodule(name, layer.base_layer)
