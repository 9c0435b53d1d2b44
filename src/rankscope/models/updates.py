"""What training did to one tensor of a base: names, shapes, and how its numbers are read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.data.targets import layer_number
from rankscope.errors import UserError
from rankscope.models.base_tensors import BaseTensors, Source

Kind = Literal["matrix", "table", "vector", "other"]
Rows = Callable[[int, int], Tensor]

_KINDS: dict[int, Kind] = {0: "vector", 1: "vector", 2: "matrix"}
# Embedding tables are the largest tensors of a model; their norm needs them only in parts of so many numbers.
NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Factors:
    """A LoRA update as it is stored: `delta_W = scaling * B @ A`, oriented (d_out, d_in)."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    scaling: float

    @property
    def rank(self) -> int:
        """The rank that was granted."""
        return self.A.shape[0]

    def delta_W(self) -> Float[Tensor, "d_out d_in"]:
        """The update written out, in float64; for what cannot use the factors."""
        return self.scaling * (self.B.double() @ self.A.double())


@dataclass(frozen=True)
class Update:
    """What training did to one tensor of the base; its numbers are read from disk each time they are asked for.

    Attributes:
        name: The module's path in the base, `model.layers.0.self_attn.q_proj`; a bias keeps its `.bias`.
        layer: The index of its layer, None outside the layers.
        module: The last part of the name, `q_proj`.
        kind: `matrix` for the weight of a linear layer, `table` for embeddings and the output head, `vector` for
            norms and biases, `other` for anything of three axes or more.
        shape: (d_out, d_in) for a matrix, as stored for the rest; of a table that was resized, what both have.
        read_W0: Reads the base's tensor, oriented like the update.
        rank: What LoRA was granted, DoRA too; None for a tensor that was trained whole.
        num_added_rows: How many rows a resized table has that the base's has not.
        read_factors: Reads an update that is `scaling * B @ A` and nothing more.
        read_rows: Reads rows of any other update, in float64, from one number up to another.
    """

    name: str
    layer: int | None
    module: str
    kind: Kind
    shape: tuple[int, ...]
    read_W0: Callable[[], Tensor]
    rank: int | None = None
    num_added_rows: int = 0
    read_factors: Callable[[], Factors] | None = None
    read_rows: Rows | None = None

    @property
    def factors(self) -> Factors | None:
        """LoRA's factors, where they are the whole update."""
        return None if self.read_factors is None else self.read_factors()

    @property
    def delta_W(self) -> Float[Tensor, "*shape"] | None:
        """Tuned less base in float64, where the update is no product of factors."""
        return None if self.read_rows is None else self.read_rows(0, self.shape[0] if self.shape else 0)

    def iter_rows(self) -> Iterator[Tensor]:
        """The update in float64, in parts along its first axis that fit in memory; a matrix comes whole."""
        if self.read_rows is None:
            yield self.read_factors().delta_W()
            return
        if self.kind != "table":
            yield self.delta_W
            return
        step = max(1, NUMBERS_AT_ONCE // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield self.read_rows(start, min(start + step, self.shape[0]))


def make_update(base: BaseTensors, name: str, shape: tuple[int, ...], source: Source) -> Update:
    """An update of a tensor of the base, still without its numbers.

    Args:
        base: The base's tensors.
        name: The parameter's name in the model.
        shape: As `Update.shape`.
        source: Where the base's own tensor lies.
    """
    path = name.removesuffix(".weight")
    is_table = base.canonical(name) in base.tables
    return Update(
        name=path,
        layer=layer_number(path),
        module=path.removesuffix(".bias").rpartition(".")[2] + (".bias" if path.endswith(".bias") else ""),
        kind="table" if is_table else _KINDS.get(len(shape), "other"),
        shape=shape,
        read_W0=partial(base.read, source),
    )


def expert_name(parameter: str, expert: int) -> str:
    """An expert's matrix within a parameter that holds all of them: `...experts.3.gate_up_proj`."""
    module, _, last = parameter.rpartition(".")
    return f"{module}.{expert}.{last}"


def in_order(name: str) -> tuple[int, str]:
    """Layers in the order of their numbers (10 after 9); what is outside them comes first."""
    layer = layer_number(name)
    return -1 if layer is None else layer, name


def finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor itself.

    Raises:
        UserError: It holds a value that is not finite.
    """
    if not bool(torch.isfinite(tensor).all()):
        text = "holds values that are not finite, in the tuned weights or in the base"
        raise UserError(text, where=name, mend="the training has diverged, or the file is damaged")
    return tensor


def check_name(base: BaseTensors, name: str) -> None:
    """Refuse a tensor that the base does not have.

    Raises:
        UserError: It has none of that name.
    """
    if name not in base.keys:
        text = f"it was tuned, but the base in {base.folder} has no such tensor"
        raise UserError(text, where=name, mend=WRONG_BASE)


def wrong_shape(base: BaseTensors, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> UserError:
    """The error for a tuned tensor of another shape than the base's."""
    text = f"{by(expected)} in the base in {base.folder}, {by(found)} in the tuned weights"
    return UserError(text, where=name, mend=WRONG_BASE)


WRONG_BASE = "give the base that it was tuned from"


def by(shape: tuple[int, ...]) -> str:
    """A shape as people write it: `16 x 24`."""
    return " x ".join(str(size) for size in shape)
