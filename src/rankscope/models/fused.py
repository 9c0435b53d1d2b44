"""Matrices that an architecture stores in one tensor, taken apart: queries, keys and values, gates and ups, experts.

What one tensor holds is declared in a table, architecture by architecture, because nothing in a file says it. A tensor
that is not in the table is taken as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankscope.models.updates import Factors, Update, expert_name

_QKV, _GATE_UP = ("q", "k", "v"), ("gate", "up")
# Rows are `groups` times a run of each part in turn; `sizes` says how many of the run's equal pieces each part has.
Rows = tuple[int, tuple[int, ...]]


def _thirds(_config: Any) -> Rows:
    return 1, (1, 1, 1)


def _halves(_config: Any) -> Rows:
    return 1, (1, 1)


def _by_head(config: Any) -> Rows:
    return config.num_attention_heads, (1, 1, 1)


def _shared_keys(config: Any) -> Rows:
    return 1, (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)


def _falcon(config: Any) -> Rows:
    if config.new_decoder_architecture:
        return config.num_kv_heads, (config.num_attention_heads // config.num_kv_heads, 1, 1)
    return (1, (config.num_attention_heads, 1, 1)) if config.multi_query else _by_head(config)


def _alternating(config: Any) -> Rows:
    return config.intermediate_size, (1, 1)


# By architecture and module: the parts, and how they lie in the rows of (d_out, d_in).
_FUSED: dict[tuple[str, str], tuple[tuple[str, ...], Callable[[Any], Rows]]] = {
    ("gpt2", "c_attn"): (_QKV, _thirds),
    ("mpt", "Wqkv"): (_QKV, _thirds),
    ("gpt_neox", "query_key_value"): (_QKV, _by_head),
    ("bloom", "query_key_value"): (_QKV, _by_head),
    ("falcon", "query_key_value"): (_QKV, _falcon),
    ("phi3", "qkv_proj"): (_QKV, _shared_keys),
    ("phi3", "gate_up_proj"): (_GATE_UP, _halves),
    ("gpt_oss", "gate_up_proj"): (_GATE_UP, _alternating),
    ("llama4_text", "gate_up_proj"): (_GATE_UP, _halves),
    ("mixtral", "gate_up_proj"): (_GATE_UP, _halves),
    ("qwen2_moe", "gate_up_proj"): (_GATE_UP, _halves),
    ("qwen3_moe", "gate_up_proj"): (_GATE_UP, _halves),
    ("olmoe", "gate_up_proj"): (_GATE_UP, _halves),
}
# Experts in one tensor of three axes: whether an expert's matrix is stored as (d_in, d_out).
_EXPERTS = {
    ("gpt_oss", "gate_up_proj"): True,
    ("gpt_oss", "down_proj"): True,
    ("llama4_text", "gate_up_proj"): True,
    ("llama4_text", "down_proj"): True,
}


@dataclass(frozen=True)
class Part:
    """What training did to one matrix of a tensor that may hold several; as an `Update` of a matrix.

    Attributes:
        name: The tensor's name, with the expert and the part after it: `h.0.attn.c_attn.q`.
        module: Likewise, without the expert: `c_attn.q`.
        rows: Which rows of the tensor (of its expert) are the part; None: all.
        expert: Which expert, None where there are none.
    """

    name: str
    layer: int | None
    module: str
    shape: tuple[int, ...]
    read_W0: Callable[[], Tensor]
    factors: Factors | None = None
    delta_W: Float[Tensor, "d_out d_in"] | None = None
    rank: int | None = None
    rows: Int[Tensor, " d_out"] | None = None
    expert: int | None = None
    kind: str = "matrix"

    def tuned(self) -> Float[Tensor, "d_out d_in"]:
        """The tuned matrix, in float64, for what cannot use the factors."""
        return self.read_W0().double() + (self.delta_W if self.factors is None else self.factors.delta_W())


def iter_parts(updates: Iterable[Update], config: Any) -> Iterator[Update | Part]:
    """Updates, with those of matrices taken apart; what is no matrix comes as it is.

    Args:
        updates: As they come from disk; each is read once.
        config: The base's configuration.
    """
    text = config.get_text_config()
    for update in updates:
        is_transposed = _EXPERTS.get((text.model_type, update.module))
        if update.kind == "matrix":
            yield from _rows(_whole(update), text)
        elif update.kind == "other" and len(update.shape) == 3 and is_transposed is not None:
            for expert in _experts(update, is_transposed=is_transposed):
                yield from _rows(expert, text)
        else:
            yield update


def _whole(update: Update) -> Part:
    factors = update.factors
    return Part(
        name=update.name,
        layer=update.layer,
        module=update.module,
        shape=update.shape,
        read_W0=update.read_W0,
        factors=factors,
        delta_W=None if factors is not None else update.delta_W,
        rank=update.rank,
    )


def _experts(update: Update, *, is_transposed: bool) -> Iterator[Part]:
    delta = update.delta_W
    for expert in range(update.shape[0]):

        def read(expert: int = expert) -> Tensor:
            W0 = update.read_W0()[expert]
            return W0.T if is_transposed else W0

        one = delta[expert].T if is_transposed else delta[expert]
        name = expert_name(update.name, expert)
        yield Part(name, update.layer, update.module, tuple(one.shape), read, delta_W=one, expert=expert)


def _rows(part: Part, config: Any) -> Iterator[Part]:
    """A matrix, or the parts that its rows are."""
    declared = _FUSED.get((config.model_type, part.module))
    if declared is None:
        yield part
        return
    names, how = declared
    groups, sizes = how(config)
    order = torch.arange(part.shape[0]).reshape(groups, sum(sizes), -1)  # group piece row
    for name, rows in zip(names, order.split(sizes, 1), strict=True):
        yield _part(part, name, rows.reshape(-1))


def _part(whole: Part, name: str, rows: Tensor) -> Part:
    factors = whole.factors
    return Part(
        name=f"{whole.name}.{name}",
        layer=whole.layer,
        module=f"{whole.module}.{name}",
        shape=(len(rows), whole.shape[1]),
        read_W0=lambda: whole.read_W0()[rows],
        factors=None if factors is None else Factors(factors.A, factors.B[rows], factors.scaling),
        delta_W=None if whole.delta_W is None else whole.delta_W[rows],
        rank=whole.rank,
        rows=rows,
        expert=whole.expert,
    )
